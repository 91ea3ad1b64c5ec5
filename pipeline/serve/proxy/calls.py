"""Calls that the proxy forwards to Triton, and the keys that they need.

The proxy does not rely on Triton's own checks of closed calls and keys: CVE-2026-24206 and
CVE-2026-24207 report that they can be bypassed, without details.
"""

import hmac
import re
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.serve.proxy.request_checks import RefusedRequestError
from pipeline.serve.triton.access import GRPC_PREFIX, KEY_HEADER, ClientKey

_MODEL = rb"/v2/models/\w[\w.-]*(/versions/\d+)?"
_HTTP_OPEN = re.compile(rb"(/v2/health/(live|ready)|" + _MODEL + rb"/ready)")
"""Paths without a key, for probes."""
_HTTP_KEYED = re.compile(
    rb"(/v2/?|" + _MODEL + rb"(/(config|stats|infer|generate|generate_stream))?)"
)
_RUNS_MODEL = (b"/infer", b"/generate", b"/generate_stream")
_HTTP_CLOSED = re.compile(rb"/v2/(repository|\w*sharedmemory|(models/.*)?trace|logging)\b.*")
_SERVICE = "/inference.GRPCInferenceService/"
_GRPC_OPEN = {
    *(_SERVICE + name for name in ("ServerLive", "ServerReady", "ModelReady")),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
}
_GRPC_KEYED = {
    _SERVICE + name
    for name in (
        "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelInfer",
        "ModelStreamInfer",
    )
}  # fmt: skip
_GRPC_CLOSED = re.compile(
    _SERVICE + r"(Repository|SystemSharedMemory|CudaSharedMemory|TraceSetting|LogSettings)\w*"
)


class Call(NamedTuple):
    """Call that is forwarded."""

    key: ClientKey | None
    """Key of the client, None if the call or the server needs none."""
    runs_model: bool
    """Whether a model answers the call. Other calls take no body and no large message."""


class Calls:
    """Decides which calls reach Triton; `keys` are those of clients, empty for no check."""

    def __init__(self, keys: Sequence[ClientKey] = ()) -> None:
        self._keys = [(key, key.key.encode()) for key in keys]

    @property
    def has_keys(self) -> bool:
        """Whether clients need a key."""
        return bool(self._keys)

    def check_http(self, path: bytes, sent: str | None) -> Call:
        """Return a call over HTTP; `path` has no query. RefusedRequestError for a closed one."""
        if _HTTP_OPEN.fullmatch(path):
            return Call(None, runs_model=False)
        if _HTTP_KEYED.fullmatch(path):
            runs_model = path.endswith(_RUNS_MODEL)
            return Call(self._check_key(sent, KEY_HEADER), runs_model=runs_model)
        if _HTTP_CLOSED.fullmatch(path):
            raise RefusedRequestError("This API is restricted", 403)
        raise RefusedRequestError("Not Found", 404)

    def check_grpc(self, path: str, sent: str | None) -> Call:
        """Return a call of gRPC. RefusedRequestError for a closed one."""
        if path in _GRPC_OPEN:
            return Call(None, runs_model=False)
        if path in _GRPC_KEYED:
            runs_model = path.endswith("Infer")
            return Call(self._check_key(sent, GRPC_PREFIX + KEY_HEADER), runs_model=runs_model)
        if _GRPC_CLOSED.fullmatch(path):
            raise RefusedRequestError("This protocol is restricted", 403)
        raise RefusedRequestError("there is no such method", 404)

    def _check_key(self, sent: str | None, header: str) -> ClientKey | None:
        if not self._keys:
            return None
        content = (sent or "").encode("utf-8", "surrogateescape")
        # all are compared in constant time, so that the time reveals nothing about a key
        owners = [key for key, value in self._keys if hmac.compare_digest(value, content)]
        if not owners:
            raise RefusedRequestError(f"This API is restricted, expecting header '{header}'", 403)
        return owners[0]
