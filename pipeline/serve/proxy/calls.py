"""Calls that the proxy passes on to Triton, with the key that they need.

Triton's own checks of closed calls and of keys are not relied on: CVE-2026-24206 and CVE-2026-24207
say that there are ways past them, and not which.
"""

import hmac
import re
from collections.abc import Sequence

from pipeline.serve.proxy.request_checks import RefusedRequestError
from pipeline.serve.triton.access import GRPC_PREFIX, KEY_HEADER, ClientKey

_MODEL = rb"/v2/models/\w[\w.-]*(/versions/\d+)?"
_HTTP_OPEN = re.compile(rb"(/v2/health/(live|ready)|" + _MODEL + rb"/ready)(\?.*)?")
"""Paths that need no key, as probes have none."""
_HTTP_KEYED = re.compile(
    rb"(/v2/?|" + _MODEL + rb"(/(config|stats|infer|generate|generate_stream))?)(\?.*)?"
)
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


class Calls:
    """Decides which calls reach Triton; `keys` are those of clients, none for a server without."""

    def __init__(self, keys: Sequence[ClientKey] = ()) -> None:
        self._keys = [(key, key.key.encode()) for key in keys]

    def check_http(self, path: bytes, sent: str | None) -> ClientKey | None:
        """Return the key that a request over HTTP has. RefusedRequestError for a closed call."""
        if _HTTP_OPEN.fullmatch(path):
            return None
        if _HTTP_KEYED.fullmatch(path):
            return self._check_key(sent, KEY_HEADER)
        if _HTTP_CLOSED.fullmatch(path):
            raise RefusedRequestError("This API is restricted", 403)
        raise RefusedRequestError("Not Found", 404)

    def check_grpc(self, path: str, sent: str | None) -> ClientKey | None:
        """Return the key that a call of gRPC has. RefusedRequestError for a closed call."""
        if path in _GRPC_OPEN:
            return None
        if path in _GRPC_KEYED:
            return self._check_key(sent, GRPC_PREFIX + KEY_HEADER)
        if _GRPC_CLOSED.fullmatch(path):
            raise RefusedRequestError("This protocol is restricted", 403)
        raise RefusedRequestError("there is no such method", 404)

    def _check_key(self, sent: str | None, header: str) -> ClientKey | None:
        if not self._keys:
            return None
        content = (sent or "").encode("utf-8", "surrogateescape")
        # all are compared, so that the time says nothing about which one is close
        owners = [key for key, value in self._keys if hmac.compare_digest(value, content)]
        if not owners:
            raise RefusedRequestError(f"This API is restricted, expecting header '{header}'", 403)
        return owners[0]
