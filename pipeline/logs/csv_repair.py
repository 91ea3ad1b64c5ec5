"""Blocks of CSV to tables of text.

A block goes to Arrow's parser as it is. Only where that cannot be right, because of quotes that do
not close, text that is no UTF-8 or a header that comes again, its lines are looked at one by one.
"""

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipeline.logs.row_counts import NO_UTF8, Report
from pipeline.logs.text import LONGEST_LINE, TextFile, windows_1252
from pipeline.recipe.preprocess import Preprocess

_THREADS = 2
_SHORT = 1 << 20
"""Bytes of text that Python checks as fast as Arrow."""
R = TypeVar("R")
LONGEST_RECORD = 1 << 16
"""Bytes of an interaction with line ends inside its values."""
_BLANK = b"\r\n"


class CsvFile:
    """One file of separated columns."""

    def __init__(self, recipe: Preprocess, file: Path, report: Report) -> None:
        tab = file.name.lower().removesuffix(".gz").endswith(".tsv")
        self._delimiter = recipe.delimiter or ("\t" if tab else ",")
        self._text = TextFile(file, report)
        self._report = report
        self._header = b"" if recipe.columns else None
        self._lines = _Lines(self._delimiter.encode())
        self.names = list(recipe.columns or ())
        """Of all columns; known when the first block came."""

    def blocks(self) -> Generator[bytes, None, None]:
        """Lines without the header; none of a file that has no other.

        OSError if the file cannot be read, ArrowInvalid if its header cannot.
        """
        begun = False
        for block in self._text.blocks():
            if self._header is None:
                block = block.lstrip(_BLANK)
                end = re.search(rb"[\r\n]|$", block).start()  # type: ignore[union-attr]
                self._header, block = block[:end] or None, block[end:]
                if self._header is not None:
                    self.names = self._columns(self._header)
            if begun or not _is_blank(block):
                begun = True  # from here on empty lines may stand inside a value
                yield block
        lost = {
            f"lines longer than {LONGEST_LINE >> 20} MiB": self._text.long_lines,
            "lines cut off with their file": int(self._text.cut_line.strip(_BLANK) != b""),
        }
        for reason, lines in lost.items():
            self._report.rows += lines
            self._report.dropped[reason] += lines

    def tables(self, blocks: Iterator[bytes], wanted: list[str]) -> Iterator[pa.Table]:
        """The columns `wanted`, all of them text: guessing types from the first block fails on
        later ones, and turns an id such as 00123 into another."""
        self._lines.width = len(self.names)
        rest = b""
        # threads of our own: those of Arrow's reader came to a standstill where lines are broken
        with ThreadPoolExecutor(_THREADS) as pool:
            for block, parsed in _ahead(pool, lambda b: self._as_it_is(b, wanted), blocks):
                if rest or parsed is None:
                    mended, rest = self._mend(rest + block, last=False)
                    parsed = self._parse(mended, wanted)
                yield self._counted(*parsed)
        if rest:
            mended, _ = self._mend(rest, last=True)
            yield self._counted(*self._parse(mended, wanted))

    def _counted(self, table: pa.Table, skipped: int) -> pa.Table:
        self._report.rows += skipped
        self._report.dropped["lines with another number of columns"] += skipped
        return table

    def _columns(self, header: bytes) -> list[str]:
        try:
            text = header.decode()
        except UnicodeDecodeError:
            text = windows_1252(header)
        options = pa.csv.ParseOptions(delimiter=self._delimiter)
        names = pa.csv.read_csv(
            pa.BufferReader(text.encode() + b"\n"),
            read_options=pa.csv.ReadOptions(block_size=len(header) * 4 + 2, use_threads=False),
            parse_options=options,
        ).column_names
        return [str(name) for name in names]

    def _as_it_is(self, block: bytes, wanted: list[str]) -> tuple[pa.Table, int] | None:
        """None where a look at each line is needed."""
        if not _is_utf8(block):
            return None
        if self._header and (
            block.startswith(self._header)
            or b"\n" + self._header in block
            or (b"\r" in block and b"\r" + self._header in block)
        ):
            return None
        table, skipped = self._parse(block, wanted)
        if b'"' in block and (
            # an open quote takes further lines into its value
            not _has_lines(block, table.num_rows + skipped)
            or self._lines.is_open(_last_line(block))
        ):
            return None
        return table, skipped

    def _parse(self, block: bytes, wanted: list[str]) -> tuple[pa.Table, int]:
        """Rows, and the number of lines with another number of columns, which are passed over."""
        skipped = 0

        def skip(_row: object) -> str:
            nonlocal skipped
            skipped += 1
            return "skip"

        if _is_blank(block):
            return pa.table({name: pa.array([], pa.string()) for name in wanted}), 0
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            read_options=pa.csv.ReadOptions(
                column_names=self.names, block_size=len(block) + 1, use_threads=False
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=skip
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in wanted},
                include_columns=wanted,
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                null_values=[""],
                check_utf8=False,  # was done for the whole block
            ),
        )
        return table, skipped

    def _mend(self, block: bytes, *, last: bool) -> tuple[bytes, bytes]:
        """Lines that can be parsed, in UTF-8, and those which the next block may complete."""
        lines = block.splitlines(keepends=True)
        kept: list[bytes] = []
        at = 0
        while at < len(lines):
            line = lines[at]
            if self._header and line.rstrip(_BLANK) == self._header:
                self._drop("lines that repeat the header")
                at += 1
                continue
            num = 1
            if b'"' in line and self._lines.is_open(line):
                found = self._lines.record(lines, at)
                if found is None and not last and sum(map(len, lines[at:])) < LONGEST_RECORD:
                    return b"".join(kept), b"".join(lines[at:])
                if not found:
                    self._drop("lines with a quote that does not close")
                    at += 1
                    continue
                num = found
                self._report.counted["rows with line ends inside a value"] += 1
            kept += [self._utf8(each) for each in lines[at : at + num]]
            at += num
        return b"".join(kept), b""

    def _drop(self, reason: str) -> None:
        self._report.rows += 1
        self._report.dropped[reason] += 1

    def _utf8(self, line: bytes) -> bytes:
        if line.isascii() or _is_utf8(line):
            return line
        delimiter = self._delimiter.encode()
        values = line.split(delimiter)
        for at, value in enumerate(values):
            if not _is_utf8(value):
                values[at] = windows_1252(value).encode()
                self._report.repaired[NO_UTF8] += 1
        return delimiter.join(values)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[bytes], R], blocks: Iterator[bytes]
) -> Iterator[tuple[bytes, R]]:
    """Each block and what becomes of it, a few of them ahead of the one that is asked for."""
    waiting: deque[tuple[bytes, Future[R]]] = deque()
    for block in blocks:
        waiting.append((block, pool.submit(work, block)))
        if len(waiting) > _THREADS:
            block, found = waiting.popleft()
            yield block, found.result()
    for block, found in waiting:
        yield block, found.result()


class _Lines:
    """Where quotes open and close, as Arrow's parser takes them: at the start of a value only."""

    def __init__(self, delimiter: bytes) -> None:
        end = re.escape(delimiter)
        inside = rb'[^"]*(?:""[^"]*)*'
        # A quote that closes is followed by no other, so that there is one way alone to read a
        # line. Possessive quantifiers would say the same, but match wrongly before Python 3.11.5.
        value = rb'(?:"%s"(?!")[^%s]*|[^"%s][^%s]*)?%s' % (inside, end, end, end, end)
        self._values = re.compile(rb"(?:%s)*" % value)
        self._inside = re.compile(inside)
        self._value = re.compile(value)
        self._ends = (delimiter, b"\r", b"\n", b"")
        self.width = 0
        """Columns of a whole line."""

    def is_open(self, line: bytes, begin: int = 0) -> bool:
        """Whether the line ends inside quotes."""
        at = self._values.match(line, begin).end()  # type: ignore[union-attr]
        if line[at : at + 1] != b'"':
            return False
        end = self._inside.match(line, at + 1).end()  # type: ignore[union-attr]
        return line[end : end + 1] != b'"'

    def record(self, lines: list[bytes], begin: int) -> int | None:
        """How many lines the one at `begin`, which is open, has with those that belong to it.

        A value that goes on must close before a delimiter or a line end, and there must be as many
        columns as anywhere. 0 if it is not so, None if there are too few lines to know.
        """
        size = len(lines[begin])
        for at in range(begin + 1, len(lines)):
            line = lines[at]
            size += len(line)
            if size > LONGEST_RECORD:
                return 0
            if b'"' not in line:
                continue
            end = self._inside.match(line).end()  # type: ignore[union-attr]
            if end == len(line):
                continue
            if line[end + 1 : end + 2] not in self._ends:
                return 0
            # what stands before counts as a value without quotes
            if not self.is_open(b"x" + line[end + 1 :]):
                record = b"".join(lines[begin : at + 1])
                return at + 1 - begin if self._num_values(record) == self.width else 0
        return None

    def _num_values(self, record: bytes) -> int:
        found, at = 1, 0
        while match := self._value.match(record, at):
            found, at = found + 1, match.end()
        return found


def _is_blank(block: bytes) -> bool:
    return not block[:1024].strip(_BLANK) and not block.strip(_BLANK)


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    if len(text) < _SHORT:
        try:
            text.decode()
        except UnicodeDecodeError:
            return False
        return True
    offsets = pa.py_buffer(np.array([0, len(text)], np.int32))
    whole = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(text)])
    try:
        whole.cast(pa.string())  # checks without making a copy
    except pa.ArrowInvalid:
        return False
    return True


def _has_lines(block: bytes, number: int) -> bool:
    """Whether it has so many lines, without the empty ones."""
    codes = np.frombuffer(block, np.uint8)
    feeds = codes == 10
    # empty lines make this too large, and lone carriage returns too small
    most = int(np.count_nonzero(feeds)) + (not block.endswith(b"\n"))
    if b"\r" not in block:
        if number == most:
            return True
        returns = np.zeros_like(feeds)
    else:
        returns = codes == 13
        pairs = np.count_nonzero(returns[:-1] & feeds[1:])
        if number == most and pairs == np.count_nonzero(returns):
            return True
    inside = ~(feeds | returns)
    return number == int(np.count_nonzero(inside[1:] & ~inside[:-1])) + bool(inside[0])


def _last_line(block: bytes) -> bytes:
    end = len(block) - len(block[-1024:]) + len(block[-1024:].rstrip(_BLANK))
    if end <= len(block) - 1024:
        end = len(block.rstrip(_BLANK))
    return block[max(block.rfind(b"\n", 0, end), block.rfind(b"\r", 0, end)) + 1 :]
