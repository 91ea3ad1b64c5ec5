"""Text files as blocks of whole lines: unpacked, without marks and NUL bytes.

What is cut off or damaged is read as far as that goes, and counted.
"""

import codecs
import re
import zlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.logs.row_counts import Report

BLOCK_BYTES = 1 << 22
"""Read at a time."""
LONGEST_LINE = 1 << 24
"""Bytes of a line; a longer one is no row of a log."""
_PIECE_BYTES = 1 << 16
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_MARKS_OF_LINES = re.compile(rb"(?<![^\r\n])(?:%s)+" % codecs.BOM_UTF8)
_WINDOWS_1252 = "".join(
    bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(256)
)
"""Five bytes mean nothing there; they become control characters, as in browsers."""


class TextFile:
    """One file, once through."""

    def __init__(self, file: Path, report: Report, longest: int = LONGEST_LINE) -> None:
        self._file = file
        self._report = report
        self._longest = longest
        self.damaged = False
        """Whether the file ended before its end; known when all blocks were read."""
        self.cut_line = b""
        """The unfinished line at the end of a damaged file; it is in no block."""
        self.long_lines = 0
        """Lines beyond `longest`, which are in no block."""

    def blocks(self) -> Generator[bytes, None, None]:
        """Whole lines of about BLOCK_BYTES; only the last may lack its line end.

        OSError if nothing can be read.
        """
        # the next one is read and unpacked while this one is parsed
        with ThreadPoolExecutor(1) as reader:
            blocks = self._blocks()
            waiting = reader.submit(next, blocks, None)
            while (block := waiting.result()) is not None:
                waiting = reader.submit(next, blocks, None)
                yield self._without_marks(block)

    def _blocks(self) -> Iterator[bytes]:
        parts: list[bytes] = []
        size, skipping = 0, False
        for piece in self._without_nul(_decoded(self._pieces(), self._report)):
            end = _last_line_end(piece)
            if skipping:
                begin = _first_line_end(piece)
                if begin == 0:
                    continue
                piece, skipping = piece[begin:], False
                end = _last_line_end(piece)
            if end:
                if parts:
                    yield b"".join([*parts, piece[:end]])
                else:
                    yield piece[:end]
                parts, size = [], 0
            if end < len(piece):
                parts.append(piece[end:])
                size += len(piece) - end
            if size > self._longest:
                self.long_lines += 1
                parts, size, skipping = [], 0, True
        rest = b"".join(parts)
        if self.damaged:
            self.cut_line = rest
        elif rest:
            yield rest

    def _without_marks(self, block: bytes) -> bytes:
        """Of whole lines, where marked files were put together."""
        if block.isascii() or codecs.BOM_UTF8 not in block:
            return block
        block, found = _MARKS_OF_LINES.subn(b"", block)
        if found:
            self._report.repaired["byte order marks inside a file, taken out"] += found
        return block

    def _without_nul(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if b"\0" in piece:
                self._report.repaired["NUL bytes taken out"] += piece.count(b"\0")
                piece = piece.replace(b"\0", b"")
            yield piece

    def _pieces(self) -> Iterator[bytes]:
        if self._file.name.lower().endswith(".gz"):
            yield from self._unzipped()
            return
        with self._file.open("rb", buffering=0) as stream:
            while piece := stream.read(BLOCK_BYTES):
                yield piece

    def _unzipped(self) -> Iterator[bytes]:
        unzip = zlib.decompressobj(wbits=31)
        waiting: list[bytes] = []
        size, begun, inside = 0, False, False
        with self._file.open("rb", buffering=0) as stream:
            while piece := stream.read(_PIECE_BYTES):
                while piece:
                    if not inside:
                        piece = piece.lstrip(b"\0")  # padding, as gzip itself takes it
                        inside = bool(piece)
                        unzip = zlib.decompressobj(wbits=31)
                        continue
                    before = unzip.copy()
                    try:
                        text = unzip.decompress(piece)
                        piece, inside = unzip.unused_data, not unzip.eof
                    except zlib.error:
                        text, piece, self.damaged = _up_to_damage(before, piece), b"", True
                    if text:
                        begun = True
                        waiting.append(text)
                        size += len(text)
                    if size >= BLOCK_BYTES:
                        yield b"".join(waiting)
                        waiting, size = [], 0
                if self.damaged:
                    break
        self.damaged |= inside
        if self.damaged and not begun:
            raise OSError("it is no gzip file, or damaged from its beginning")
        if self.damaged:
            self._report.counted["files cut off or damaged"] += 1
        if waiting:
            yield b"".join(waiting)


def windows_1252(text: bytes) -> str:
    """Any bytes as text."""
    return codecs.charmap_decode(text, "strict", _WINDOWS_1252)[0]


def _up_to_damage(unzip: "zlib._Decompress", piece: bytes) -> bytes:
    """Of a piece which cannot be unpacked as a whole."""
    found = []
    try:
        for byte in range(len(piece)):
            found.append(unzip.decompress(piece[byte : byte + 1]))
    except zlib.error:
        pass
    return b"".join(found)


def _decoded(pieces: Iterator[bytes], report: Report) -> Iterator[bytes]:
    """UTF-16 with its mark as UTF-8, and everything without a mark."""
    first = b""
    for piece in pieces:
        first += piece
        if len(first) >= len(codecs.BOM_UTF8):
            break
    if first[:2] not in _UTF16:
        if text := first.removeprefix(codecs.BOM_UTF8):
            yield text
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(_UTF16[first[:2]])(errors="replace")
    waiting: bytes | None = first[2:]
    while waiting is not None:
        following = next(pieces, None)
        text16 = decoder.decode(waiting, final=following is None)
        # half of a pair is no character, neither here nor in UTF-8
        if broken := text16.count("�"):
            report.repaired["characters that are no UTF-16, replaced"] += broken
        if text16:
            yield text16.encode()
        waiting = following


def _last_line_end(piece: bytes) -> int:
    """Behind it; 0 for none. A carriage return at the end may be the first half of one."""
    return piece.rfind(b"\n") + 1 or piece.rfind(b"\r", 0, -1) + 1


def _first_line_end(piece: bytes) -> int:
    found = [at for at in (piece.find(b"\n"), piece.find(b"\r", 0, -1)) if at >= 0]
    return min(found) + 1 if found else 0
