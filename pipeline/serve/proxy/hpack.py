"""Headers of HTTP/2 as HPACK (RFC 7541) packs them, as far as the proxy reads and writes them.

A block is read with the client's table, and written for Triton without any: its fields are literals
that enter no table.
"""

from collections import deque
from typing import NamedTuple

from pipeline.serve.proxy.http2 import ProtocolError

TABLE_BYTES = 4_096
"""Size of the table of a client: HTTP/2's default, which the proxy keeps."""
_ENTRY_BYTES = 32
"""What an entry of a table counts beside its texts."""
_STATIC = [
    *(":authority", ":method GET", ":method POST", ":path /", ":path /index.html", ":scheme http"),
    *(":scheme https", ":status 200", ":status 204", ":status 206", ":status 304", ":status 400"),
    *(":status 404", ":status 500", "accept-charset", "accept-encoding gzip, deflate"),
    *("accept-language", "accept-ranges", "accept", "access-control-allow-origin", "age", "allow"),
    *("authorization", "cache-control", "content-disposition", "content-encoding"),
    *("content-language", "content-length", "content-location", "content-range", "content-type"),
    *("cookie", "date", "etag", "expect", "expires", "from", "host", "if-match"),
    *("if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified"),
    *("link", "location", "max-forwards", "proxy-authenticate", "proxy-authorization", "range"),
    *("referer", "refresh", "retry-after", "server", "set-cookie", "strict-transport-security"),
    *("transfer-encoding", "user-agent", "vary", "via", "www-authenticate"),
]
"""Table that both sides know: name, and value where it has one."""
_CODE_BITS = (
    *(13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28),
    *(28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28),
    *(6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6),
    *(5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10),
    *(13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7),
    *(7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6),
    *(15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5),
    *(6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28),
)
"""Bits of Huffman's code of each byte of ASCII. Codes of one length follow each other, those of
each length those of the shorter ones; gRPC's headers have no other byte."""
_MAX_CODE_BITS = 19
"""Bits of the longest code of a visible byte of ASCII, the backslash."""


class Field(NamedTuple):
    """A header."""

    name: bytes
    value: bytes
    literal: bytes
    """The field as it is written."""


def field(name: bytes, value: bytes) -> Field:
    """Return a header."""
    return Field(name, value, b"\0" + _write_text(name) + _write_text(value))


class HeaderReader:
    """Reads the blocks of one connection."""

    def __init__(self) -> None:
        self._table: deque[Field] = deque()
        self._table_bytes, self._max_bytes = 0, TABLE_BYTES

    def read(self, block: bytes) -> list[Field]:
        """Return the headers of a block. ProtocolError for one that is damaged."""
        fields, position = [], 0
        try:
            while position < len(block):
                first = block[position]
                if first & 0x80:
                    index, position = _read_number(block, position, 7)
                    fields.append(self._entry(index))
                elif first & 0xE0 == 0x20:
                    size, position = _read_number(block, position, 5)
                    self._resize(size)
                else:
                    enters = bool(first & 0x40)
                    entry, position = self._read_literal(block, position, 6 if enters else 4)
                    fields.append(entry)
                    if enters:
                        self._insert(entry)
        except IndexError:
            raise ProtocolError("a block of headers that is damaged") from None
        return fields

    def _read_literal(self, block: bytes, position: int, bits: int) -> tuple[Field, int]:
        index, position = _read_number(block, position, bits)
        if index:
            name = self._entry(index).name
        else:
            name, position = _read_text(block, position)
        value, position = _read_text(block, position)
        return field(name, value), position

    def _entry(self, index: int) -> Field:
        if index == 0:
            raise ProtocolError("a header without an index")
        if index <= len(_FIELDS):
            return _FIELDS[index - 1]
        return self._table[index - len(_FIELDS) - 1]

    def _insert(self, entry: Field) -> None:
        self._table.appendleft(entry)
        self._table_bytes += _size(entry)
        self._evict()

    def _resize(self, size: int) -> None:
        if size > TABLE_BYTES:
            raise ProtocolError("a table of headers that is too large")
        self._max_bytes = size
        self._evict()

    def _evict(self) -> None:
        while self._table_bytes > self._max_bytes:
            self._table_bytes -= _size(self._table.pop())


def _size(entry: Field) -> int:
    return len(entry.name) + len(entry.value) + _ENTRY_BYTES


def _read_number(block: bytes, position: int, bits: int) -> tuple[int, int]:
    """Return the number whose first bits are the last of a byte, and the position behind it."""
    most = (1 << bits) - 1
    number = block[position] & most
    position += 1
    if number < most:
        return number, position
    for shift in range(0, 28, 7):
        byte = block[position]
        position += 1
        number += (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ProtocolError("a number of a header is too large")


def _read_text(block: bytes, position: int) -> tuple[bytes, int]:
    is_coded = bool(block[position] & 0x80)
    size, position = _read_number(block, position, 7)
    text = block[position : position + size]
    if len(text) < size:
        raise ProtocolError("a header that ends early")
    return (_decode(text) if is_coded else text), position + size


def _write_text(text: bytes) -> bytes:
    """Return a text with its length, 7 bits first."""
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    prefix = bytearray([127])
    length -= 127
    while length >= 128:
        prefix.append(length & 127 | 128)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + text


def _codes() -> dict[tuple[int, int], int]:
    """Return each byte of ASCII by the length and the bits of its code."""
    codes, code, length = {}, 0, 0
    for bits, byte in sorted(
        (bits, byte) for byte, bits in enumerate(_CODE_BITS) if bits <= _MAX_CODE_BITS
    ):
        code <<= bits - length
        length = bits
        codes[bits, code] = byte
        code += 1
    return codes


_CODES = _codes()
_FIELDS = [field(*line.encode().partition(b" ")[::2]) for line in _STATIC]


def _decode(coded: bytes) -> bytes:
    """Return a text in Huffman's code; bytes that no header of gRPC has are refused."""
    text, code, length = bytearray(), 0, 0
    for byte in coded:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            if (symbol := _CODES.get((length, code))) is not None:
                text.append(symbol)
                code = length = 0
            elif length > _MAX_CODE_BITS:
                raise ProtocolError("a header with a byte that is no ASCII")
    if length > 7 or code != (1 << length) - 1:
        raise ProtocolError("a header whose code does not end")
    return bytes(text)
