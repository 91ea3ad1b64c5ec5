"""Headers of HTTP/2: read as RFC 7541 says, and written so that any reader takes them."""

import pytest
from hypothesis import given as draw
from hypothesis import strategies

from pipeline.serve.proxy.hpack import _CODE_BITS, HeaderReader, field
from pipeline.serve.proxy.http2 import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    FrameReader,
    ProtocolError,
    header_block,
    write_frame,
    write_headers,
)

# appendix C.4 of the RFC: three requests of one connection
EXAMPLES = {
    "828684418cf1e3c2e5f23a6ba0ab90f4ff": [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
    ],
    "828684be5886a8eb10649cbf": [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
        (b"cache-control", b"no-cache"),
    ],
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf": [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ],
}
TEXTS = strategies.binary(max_size=300)


def test_requests_of_the_standard_are_read() -> None:
    reader = HeaderReader()
    for block, expected in EXAMPLES.items():
        fields = reader.read(bytes.fromhex(block))
        assert [(name, value) for name, value, _ in fields] == expected
        again = HeaderReader().read(b"".join(field.literal for field in fields))
        assert [(name, value) for name, value, _ in again] == expected


def test_codes_leave_no_gap_among_the_bytes_that_headers_have() -> None:
    visible = [_CODE_BITS[byte] for byte in range(32, 127)]
    # what is left of all codes is for bytes beyond ASCII and control characters
    assert 0 < 1 - sum(2.0**-bits for bits in visible) < 2**-12


@draw(strategies.lists(strategies.tuples(TEXTS, TEXTS), max_size=5))
def test_headers_are_read_as_they_were_written(headers: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(field(name, value).literal for name, value in headers)
    fields = HeaderReader().read(block)
    assert [(name, value) for name, value, _ in fields] == headers
    reader = FrameReader(1 << 20)
    [frame] = reader.feed(write_headers(5, block, ends=True))
    assert (frame.stream, bool(frame.flags & END_STREAM), header_block(frame)) == (5, True, block)


@draw(strategies.binary(max_size=60))
def test_damaged_blocks_are_an_error_of_the_protocol(block: bytes) -> None:
    reader = HeaderReader()
    try:
        fields = reader.read(block)
    except ProtocolError:
        return
    assert sum(len(field.literal) for field in fields) < 100_000


def test_table_forgets_its_oldest_entries() -> None:
    reader = HeaderReader()
    for number in range(3):
        reader.read(b"\x40\x01a" + b"\x7f\xd1\x0e" + bytes([number]) * 2_000)
    assert [entry.value[0] for entry in reader.read(b"\xbe\xbf")] == [2, 1]
    with pytest.raises(ProtocolError):
        reader.read(b"\xc0")
    assert reader.read(b"\x20") == []
    with pytest.raises(ProtocolError):
        reader.read(b"\xbe")
    with pytest.raises(ProtocolError, match="too large"):
        reader.read(b"\x3f\xe2\x1f")


def test_padding_is_refused_and_priority_is_left_out() -> None:
    [frame] = FrameReader().feed(
        write_frame(HEADERS, END_HEADERS | 0x20, 1, b"\0\0\0\0\x10" + b"\x82")
    )
    assert header_block(frame) == b"\x82"
    [frame] = FrameReader().feed(write_frame(HEADERS, END_HEADERS | 0x8, 1, b"\x01\x82\0"))
    with pytest.raises(ProtocolError, match="padding"):
        header_block(frame)
