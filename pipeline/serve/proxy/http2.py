"""Frames of HTTP/2 (RFC 9113), as far as the proxy reads and writes them."""

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from pipeline.serve.proxy.limits import DEFAULT_LIMITS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""First bytes of a client."""
DATA, HEADERS, RESET, SETTINGS, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 8, 9
"""Types of frames."""
ACK = END_STREAM = 0x1
END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_PRIORITY_BYTES = 5
HEADER_TABLE_BYTES = 4096
"""Size of the HPACK table of a client, the default of HTTP/2."""
HEADER_TABLE_SIZE = 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 3, 4, 5
"""Settings: number of streams of a client, initial window of each in bytes, largest payload."""
DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
MAX_FRAME_BYTES = 16_384
"""Largest payload that every receiver accepts, and the limit of the proxy."""
REFUSED_STREAM, _CANCEL = 7, 8
"""Error codes of a reset stream; after the first a client may retry at once."""
_MAX_CACHED_BYTES = 256
"""Largest header whose encoding is cached."""
_HEADER = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
_NUMBER = struct.Struct(">L")


class ProtocolError(ValueError):
    """Bytes that are not HTTP/2, or frames that gRPC never sends."""


class Frame(NamedTuple):
    """A frame, or a block of headers with all its CONTINUATION frames."""

    kind: int
    flags: int
    stream: int
    payload: bytes
    """Payload of the first frame."""
    raw: bytes
    """All bytes, with the header of each frame."""

    @property
    def header_block(self) -> bytes:
        """HPACK block of HEADERS and its CONTINUATION frames. ProtocolError for an invalid one."""
        first, *others = _payloads(self.raw)
        start, stop = 0, len(first)
        if self.flags & _PADDED:
            start, stop = 1, stop - (first[0] if first else 0)
        if self.flags & _PRIORITY:
            start += _PRIORITY_BYTES
        if start > stop:
            raise ProtocolError("HEADERS with more padding than content")
        return b"".join([first[start:stop], *others])


def _payloads(raw: bytes) -> Iterator[bytes]:
    """Yield the payload of each frame."""
    start = 0
    while start < len(raw):
        high, low, *_ = _HEADER.unpack_from(raw, start)
        start += _HEADER.size
        stop = start + (high << 8 | low)
        yield raw[start:stop]
        start = stop


class FrameReader:
    """Splits the data of a connection into frames."""

    def __init__(
        self,
        max_header_bytes: int = DEFAULT_LIMITS.max_head_bytes,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self._max_header_bytes = max_header_bytes
        self._max_frame_bytes = max_frame_bytes
        self._bytes = bytearray()
        self._first: Frame | None = None
        """First frame of an incomplete block of headers."""
        self._block = bytearray()
        """Bytes of this block."""

    @property
    def has_part(self) -> bool:
        """Whether a frame or a block of headers is incomplete."""
        return bool(self._bytes) or self._first is not None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that end in `data`."""
        received = self._bytes
        received += data
        start, end = 0, len(received)
        while end - start >= _HEADER.size:
            high, low, kind, flags, stream = _HEADER.unpack_from(received, start)
            size = high << 8 | low
            if size > self._max_frame_bytes:
                raise ProtocolError(f"a frame of {size} bytes")
            stop = start + _HEADER.size + size
            if stop > end:
                break
            raw = bytes(received[start:stop])
            start = stop
            frame = Frame(kind, flags, stream & MAX_WINDOW, raw[_HEADER.size :], raw)
            if self._first is not None or kind in (HEADERS, CONTINUATION):
                block = self._with_headers(frame)
                if block is None:
                    continue
                frame = block
            yield frame
        del received[:start]

    def _with_headers(self, frame: Frame) -> Frame | None:
        """Return a complete block of headers, None until then; no other frame may interrupt it."""
        first = self._first
        if first is None:
            if frame.kind == CONTINUATION:
                raise ProtocolError("CONTINUATION without HEADERS")
            first = frame
            self._block.clear()
        elif frame.kind != CONTINUATION or frame.stream != first.stream:
            raise ProtocolError("a frame within a block of headers")
        self._block += frame.raw
        if len(self._block) > self._max_header_bytes:
            raise ProtocolError("a block of headers that does not end")
        if not frame.flags & END_HEADERS:
            self._first = first
            return None
        self._first = None
        return first._replace(raw=bytes(self._block))


def write_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return the bytes of a frame."""
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def write_data(stream: int, content: bytes, *, ends: bool) -> bytes:
    """Return the DATA frames of `content`, the last of which may end the stream."""
    parts = [content[i : i + MAX_FRAME_BYTES] for i in range(0, len(content), MAX_FRAME_BYTES)]
    last = parts.pop() if parts else b""
    frames = [write_frame(DATA, 0, stream, part) for part in parts]
    return b"".join([*frames, write_frame(DATA, END_STREAM if ends else 0, stream, last)])


def write_headers(stream: int, block: bytes, *, ends: bool) -> bytes:
    """Return the frames of a block of headers, which may end the stream."""
    parts = [block[i : i + MAX_FRAME_BYTES] for i in range(0, len(block), MAX_FRAME_BYTES)]
    frames = []
    for number, part in enumerate(parts):
        kind = CONTINUATION if number else HEADERS
        flags = END_HEADERS if number == len(parts) - 1 else 0
        flags |= END_STREAM if ends and not number else 0
        frames.append(write_frame(kind, flags, stream, part))
    return b"".join(frames)


def write_literal(name: bytes, value: bytes) -> bytes:
    """Return the HPACK literal of a header that enters no table."""
    is_short = len(name) + len(value) <= _MAX_CACHED_BYTES
    return _short_literal(name, value) if is_short else b"\0" + _string(name) + _string(value)


@lru_cache(1_024)
def _short_literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + _string(name) + _string(value)


def check_size_updates(block: bytes) -> None:
    """Check the updates of the table size before a block, at most two by RFC 7541, section 4.2.

    ProtocolError for more, which cost time and count for no other limit.
    """
    position = count = 0
    while position < len(block) and block[position] & 0xE0 == 0x20:
        count += 1
        if count > 2:
            raise ProtocolError("more than two changes of a table's size")
        is_long = block[position] & 0x1F == 0x1F
        position += 1
        while is_long and position < len(block) and block[position] & 0x80:
            position += 1
        position += is_long


def write_window_update(stream: int, size: int) -> bytes:
    """Return a frame that lets the other side send `size` bytes more; stream 0: the connection."""
    return write_frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(size))


def write_reset(stream: int, code: int = _CANCEL) -> bytes:
    """Return a frame that ends a stream."""
    return write_frame(RESET, 0, stream, _NUMBER.pack(code))


def write_status(stream: int, code: int, message: str, *, has_headers: bool) -> bytes:
    """Return the frame that ends a call of gRPC; `has_headers`: whether its answer has begun.

    The headers are literals that enter no table, so that Triton's table stays valid.
    """
    # entries 8, `:status: 200`, and 31, `content-type`, of the static table of HPACK
    start = b"" if has_headers else b"\x88\x0f\x10" + _text("application/grpc")
    fields = {"grpc-status": str(code), "grpc-message": _percent_encode(message)}
    literals = [b"\0" + _text(name) + _text(value) for name, value in fields.items()]
    return write_frame(HEADERS, END_STREAM | END_HEADERS, stream, start + b"".join(literals))


def read_window_update(frame: Frame) -> int:
    """Return how many more bytes a frame allows."""
    if len(frame.payload) != _NUMBER.size:
        raise ProtocolError("WINDOW_UPDATE of another size")
    (size,) = _NUMBER.unpack(frame.payload)
    return int(size) & MAX_WINDOW


def with_settings(frame: Frame, settings: dict[int, int]) -> bytes:
    """Return a SETTINGS frame with further settings, which override its own."""
    more = b"".join(_SETTING.pack(*setting) for setting in settings.items())
    return write_frame(SETTINGS, 0, 0, frame.payload + more)


def read_settings(frame: Frame) -> dict[int, int]:
    """Return the settings of a SETTINGS frame by their number."""
    if len(frame.payload) % _SETTING.size:
        raise ProtocolError("SETTINGS of another size")
    return dict(_SETTING.iter_unpack(frame.payload))


def _text(text: str) -> bytes:
    return _string(text.encode("ascii"))


def _string(content: bytes) -> bytes:
    """Return a string literal of HPACK: the length, 7 bits first, and the bytes."""
    length, prefix = len(content), bytearray()
    if length < 127:
        prefix.append(length)
    else:
        prefix.append(127)
        length -= 127
        while length >= 128:
            prefix.append(length & 127 | 128)
            length >>= 7
        prefix.append(length)
    return bytes(prefix) + content


def _percent_encode(message: str) -> str:
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte != 37 else f"%{byte:02X}"
        for byte in message.encode()
    )
