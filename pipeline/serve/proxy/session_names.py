"""Session id of a request, and its hash as a fraction."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

SESSION_PARAMETER = "session"
"""Parameter of a request over HTTP or gRPC: text or a whole number."""
CONTROL = "control"
"""Arm of an experiment for which the requested model answers."""
_MAX_KEY_BYTES = 64
"""Largest key that BLAKE2b takes."""


def session_of(parameters: Any) -> str | None:
    """Return the session in the parameters of a request in JSON, None without one."""
    value = parameters.get(SESSION_PARAMETER) if isinstance(parameters, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None


def session_of_message(parameters: Mapping[str, Any]) -> str | None:
    """Return the session in the parameters of a request of gRPC, None without one.

    A number has the same name in both protocols.
    """
    if SESSION_PARAMETER not in parameters:
        return None
    parameter = parameters[SESSION_PARAMETER]
    kind = parameter.WhichOneof("parameter_choice")
    return session_of({SESSION_PARAMETER: getattr(parameter, kind)}) if kind else None


def session_fraction(key: str, session: str) -> float:
    """Return a number in [0, 1) that depends only on both texts: BLAKE2b of `session`.

    Fractions of different keys are independent.
    """
    content = session.encode("utf-8", "surrogatepass")
    digest = blake2b(content, digest_size=6, key=key.encode()[:_MAX_KEY_BYTES]).digest()
    return int.from_bytes(digest) / 2**48
