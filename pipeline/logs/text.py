"""Text files as blocks of whole lines: decompressed, UTF-8, without byte order marks and NUL bytes.

A truncated or damaged file is read up to the damage.
"""

import codecs
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.logs.compression import DAMAGE, compression_of, decompress
from pipeline.logs.row_counts import RowCounts

BLOCK_BYTES = 1 << 22
"""Approximate bytes of a block."""
LONGEST_LINE = 1 << 24
"""Maximum bytes of a line; longer lines are dropped and counted."""
_BLOCKS_AHEAD = 2
R = TypeVar("R")
_UTF16_CHARACTERS = 4
"""Number of first characters by which UTF-16 without a byte order mark is recognised."""
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_MARKS = re.compile(rb"(?<![^\r\n])(?:%s)+" % codecs.BOM_UTF8)
_LINE_END = re.compile(rb"\n|\r(?!\Z)")
_WINDOWS_1252 = "".join(
    bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(256)
)
"""Windows-1252 character of each byte; the five undefined bytes are control characters."""


class TextFile:
    """Text file, readable once."""

    def __init__(self, file: Path, row_counts: RowCounts, longest: int = LONGEST_LINE) -> None:
        self._file = file
        self._row_counts = row_counts
        self._longest = longest
        self.damaged = False
        """Whether the file is truncated or damaged; set after the last block."""
        self.cut_line = b""
        """Unfinished last line of a damaged file; it is in no block."""
        self.long_lines = 0
        """Number of lines longer than `longest` bytes; they are in no block."""

    def blocks(self) -> Generator[bytes, None, None]:
        """Blocks of whole lines, about BLOCK_BYTES each; the last line may lack its line end.

        OSError if nothing can be read.
        """
        # the next block is read and decompressed while the caller parses this one
        with ThreadPoolExecutor(1) as reader:
            blocks = self._blocks()
            next_block = reader.submit(next, blocks, None)
            while (block := next_block.result()) is not None:
                next_block = reader.submit(next, blocks, None)
                yield self._remove_marks(block)

    def count_lost(self) -> None:
        """Count the lines missing from all blocks, each as one row."""
        lost = {
            f"lines longer than {self._longest >> 20} MiB": self.long_lines,
            "lines cut off with their file": int(self.cut_line.strip(b"\r\n") != b""),
        }
        for reason, lines in lost.items():
            if lines and self.cut_line:
                self._row_counts.add_example(reason, decode(self.cut_line)[0])
            self._row_counts.rows += lines
            self._row_counts.dropped[reason] += lines

    def _blocks(self) -> Iterator[bytes]:
        parts: list[bytes] = []
        size, skipping = 0, False
        for piece in self._remove_nul(_to_utf8(self._pieces(), self._row_counts)):
            if skipping:
                line_end = _LINE_END.search(piece)
                if line_end is None:
                    continue
                piece, skipping = piece[line_end.end() :], False
            end = _last_line_end(piece)
            if end:
                yield b"".join([*parts, piece[:end]])
                parts, size = [], 0
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

    def _remove_marks(self, block: bytes) -> bytes:
        """Remove byte order marks at the start of lines, where files were concatenated."""
        if block.isascii() or codecs.BOM_UTF8 not in block:
            return block
        block, num_marks = _MARKS.subn(b"", block)
        self._row_counts.repaired["byte order marks inside a file, taken out"] += num_marks
        return block

    def _remove_nul(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if b"\0" in piece:
                self._row_counts.repaired["NUL bytes taken out"] += piece.count(b"\0")
                piece = piece.replace(b"\0", b"")
            yield piece

    def _pieces(self) -> Iterator[bytes]:
        if compression := compression_of(self._file):
            yield from self._decompressed(compression)
            return
        with self._file.open("rb", buffering=0) as stream:
            while piece := stream.read(BLOCK_BYTES):
                yield piece

    def _decompressed(self, compression: str) -> Iterator[bytes]:
        pending: list[bytes] = []
        size, has_text = 0, False
        try:
            for text in decompress(self._file, compression):
                has_text = True
                pending.append(text)
                size += len(text)
                if size >= BLOCK_BYTES:
                    yield b"".join(pending)
                    pending, size = [], 0
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno:  # a failing disk, for example
                raise
            if not has_text:
                raise OSError(
                    f"it is no {compression} file, or damaged from its beginning"
                ) from None
            self.damaged = True
            self._row_counts.warnings["files cut off or damaged"] += 1
        if pending:
            yield b"".join(pending)


def decode(text: bytes) -> tuple[str, bool]:
    """Decode UTF-8, else Windows-1252; the flag is true for the latter."""
    try:
        return text.decode(), False
    except UnicodeDecodeError:
        return codecs.charmap_decode(text, "strict", _WINDOWS_1252)[0], True


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[bytes], R], blocks: Iterator[bytes]
) -> Iterator[tuple[bytes, R]]:
    """Yield each block with its result of `function`, computed a few blocks ahead."""
    pending: deque[tuple[bytes, Future[R]]] = deque()
    for block in blocks:
        pending.append((block, pool.submit(function, block)))
        if len(pending) > _BLOCKS_AHEAD:
            block, future = pending.popleft()
            yield block, future.result()
    for block, future in pending:
        yield block, future.result()


def has_lines(block: bytes, number: int) -> bool:
    """Whether the block has this number of non-empty lines."""
    codes = np.frombuffer(block, np.uint8)
    # too large if there are empty lines, too small if there are lone carriage returns
    estimate = int(np.count_nonzero(codes == ord("\n"))) + (not block.endswith(b"\n"))
    if number == estimate and (b"\r" not in block or block.count(b"\r\n") == block.count(b"\r")):
        return True
    is_text = (codes != ord("\n")) & (codes != ord("\r"))
    return number == int(np.count_nonzero(is_text[1:] & ~is_text[:-1])) + bool(is_text[0])


def has_long_line(block: bytes, length: int) -> bool:
    """Whether the block may have a line of `length` bytes or more; False is certain."""
    half = length // 2
    return any(
        block.find(b"\n", at, at + half) < 0 and block.find(b"\r", at, at + half) < 0
        for at in range(0, len(block) - half + 1, half)
    )


def _to_utf8(pieces: Iterator[bytes], row_counts: RowCounts) -> Iterator[bytes]:
    """Convert UTF-16 to UTF-8 and remove the byte order mark of the file."""
    first = b""
    while len(first) < len(codecs.BOM_UTF8) and (piece := next(pieces, b"")):
        first += piece
    encoding = _UTF16.get(first[:2]) or _unmarked_utf16(first)
    if encoding is None:
        yield from filter(None, chain([first.removeprefix(codecs.BOM_UTF8)], pieces))
        return
    text16 = chain([first[2:] if first[:2] in _UTF16 else first], pieces)
    for text in codecs.iterdecode(text16, encoding, errors="replace"):
        if replaced := text.count("�"):  # half of a surrogate pair, for example
            row_counts.repaired["characters that are no UTF-16, replaced"] += replaced
        yield text.encode()


def _unmarked_utf16(text: bytes) -> str | None:
    """Encoding of text in UTF-16 without a byte order mark, None for other text.

    Recognised by ASCII characters, as in a header, each beside a NUL byte.
    """
    head = text[: 2 * _UTF16_CHARACTERS]
    if len(head) == 2 * _UTF16_CHARACTERS:
        for encoding, nul in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if not any(nul) and head.count(0) == _UTF16_CHARACTERS:
                return encoding
    return None


def _last_line_end(piece: bytes) -> int:
    """Position after the last line end, or 0. A final CR may be the first half of CRLF."""
    return piece.rfind(b"\n") + 1 or piece.rfind(b"\r", 0, -1) + 1
