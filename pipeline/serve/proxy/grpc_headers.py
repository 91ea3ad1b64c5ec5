"""Headers of gRPC requests: read with the client's HPACK table, written for Triton without one."""

from typing import NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError

from pipeline.serve.proxy import http2
from pipeline.serve.triton.access import GRPC_PREFIX, KEY_HEADER, PROXY_KEY_HEADER

_KEY_HEADER, _PROXY_KEY_HEADER = (
    (GRPC_PREFIX + name).encode() for name in (KEY_HEADER, PROXY_KEY_HEADER)
)
_SINGLE = {_KEY_HEADER, b":path", b":method", b":scheme", b":authority", b":status"}
"""Headers that come once, and pseudo-headers first: of two, Triton could take another one."""


class GrpcHeaders(NamedTuple):
    """Headers of a request."""

    path: str
    key: str | None
    """Key that the client sent."""
    block: bytes
    """Headers for Triton, in HPACK."""


class TritonKey:
    """What the headers of a request for Triton have in place of the client's key.

    :param key: key that Triton expects of the proxy, None where it expects none
    :param hides_keys: whether keys that a client sends are removed
    """

    def __init__(self, key: str | None, *, hides_keys: bool) -> None:
        self.removed = {_KEY_HEADER, _PROXY_KEY_HEADER} if hides_keys else set()
        self.literal = b""
        """Header of HPACK with the key."""
        if key is not None:
            self.literal = http2.write_literal(_PROXY_KEY_HEADER, key.encode())


class GrpcHeaderReader:
    """Reads the headers of one connection, in their order, as HPACK's table has a state."""

    def __init__(self, max_bytes: int, triton_key: TritonKey) -> None:
        self._decoder = Decoder(max_bytes)
        self._triton_key = triton_key

    def read(self, block: bytes) -> GrpcHeaders:
        """Return the headers in a block of HPACK. ProtocolError for those that gRPC never sends."""
        http2.check_size_updates(block)
        try:
            fields = [(bytes(n), bytes(v)) for n, v in self._decoder.decode(block, raw=True)]
        except HPACKError:
            raise http2.ProtocolError("headers that are no HPACK") from None
        names = [name for name, _ in fields]
        pseudo = [name for name in names if name.startswith(b":")]
        single = [name for name in names if name in _SINGLE]
        if names[: len(pseudo)] != pseudo or len(set(single)) < len(single):
            raise http2.ProtocolError("headers that two servers could read differently")
        values = dict(fields)
        key = values.get(_KEY_HEADER)
        kept = [
            http2.write_literal(name, value)
            for name, value in fields
            if name not in self._triton_key.removed
        ]
        return GrpcHeaders(
            path=values.get(b":path", b"").decode("latin-1"),
            key=None if key is None else key.decode("latin-1"),
            block=b"".join([*kept, self._triton_key.literal]),
        )
