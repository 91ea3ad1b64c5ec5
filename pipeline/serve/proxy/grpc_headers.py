"""Headers of gRPC requests, decoded with the client's HPACK table and encoded without one."""

from typing import NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError

from pipeline.serve.proxy import http2
from pipeline.serve.triton.access import GRPC_PREFIX, KEY_HEADER, PROXY_KEY_HEADER

_KEY_HEADER, _PROXY_KEY_HEADER = (
    (GRPC_PREFIX + name).encode() for name in (KEY_HEADER, PROXY_KEY_HEADER)
)
_SINGLE = {_KEY_HEADER, b":path", b":method", b":scheme", b":authority", b":status"}
"""Headers that occur at most once: of two, Triton could read another one than the proxy."""


class GrpcHeaders(NamedTuple):
    """Headers of a request."""

    path: str
    key: str | None
    """Key that the client sent."""
    block: bytes
    """Headers for Triton, in HPACK."""


class TritonKey:
    """Key header of requests to Triton, which replaces that of the client.

    :param key: key that Triton expects of the proxy, None if it expects none
    :param hides_keys: whether keys that a client sends are removed
    """

    def __init__(self, key: str | None, *, hides_keys: bool) -> None:
        self.removed = {_KEY_HEADER, _PROXY_KEY_HEADER} if hides_keys else set()
        self.literal = b""
        """HPACK literal of the header with the key."""
        if key is not None:
            self.literal = http2.write_literal(_PROXY_KEY_HEADER, key.encode())


class GrpcHeaderReader:
    """Reads the headers of one connection, in order, as HPACK's table is stateful."""

    def __init__(self, max_bytes: int, triton_key: TritonKey) -> None:
        self._decoder = Decoder(max_bytes)
        self._triton_key = triton_key

    def read(self, block: bytes) -> GrpcHeaders:
        """Return the headers of an HPACK block. ProtocolError for those that gRPC never sends."""
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
