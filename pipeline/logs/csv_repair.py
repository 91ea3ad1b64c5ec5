"""CSV files as tables of text, with damaged lines repaired or dropped.

Arrow parses a block of lines as it is. Only if its result cannot be right, because of a quote that
does not close, text that is no UTF-8 or a repeated header, the lines are examined one by one.
"""

import re
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.logs.columns import recipe_names
from pipeline.logs.compression import inner_name
from pipeline.logs.row_counts import NO_UTF8, RowCounts
from pipeline.logs.text import TextFile, decode, has_lines, has_long_line, map_ahead
from pipeline.recipe.preprocess import Preprocess

_THREADS = 2
_TEXT = re.compile(rb"[^\r\n]")
LONGEST_RECORD = 1 << 16
"""Maximum bytes of an interaction whose values contain line ends."""
_MOST_COLUMNS, _MOST_VALUES = 10_000, 50_000
"""Maximum columns of a header and values of a line: Arrow aborts at a line of a million values."""
_LINE_ENDS = b"\r\n"
_CACHED_BYTES = 1 << 17
_UNIT_SEPARATOR = "\x1f"
_TAB_SUFFIXES = (".tsv", ".inter", ".item", ".user")


class CsvFile:
    """CSV file, readable once."""

    def __init__(self, recipe: Preprocess, file: Path, row_counts: RowCounts) -> None:
        is_tab = inner_name(file).endswith(_TAB_SUFFIXES)
        self._separator = recipe.delimiter or ("\t" if is_tab else ",")
        self.delimiter = self._separator if len(self._separator) == 1 else _UNIT_SEPARATOR
        """Character between the values of a line in `blocks`."""
        self._recipe = recipe
        self._file = file
        self._text = TextFile(file, row_counts)
        self._row_counts = row_counts
        self.header = b"" if recipe.columns else None
        """Header line without its line end, empty for a file without one; None before the first
        block."""
        self._quotes = None if recipe.quote == "none" else _Quotes(self.delimiter.encode())
        self.names = list(recipe.columns or ())
        """Names of all columns; set after the first block."""

    def blocks(self) -> Generator[bytes, None, None]:
        """Blocks of whole lines without the header.

        OSError if the file cannot be read, ArrowInvalid if its header cannot be parsed.
        """
        has_rows = False
        for block in self._text.blocks():
            if self.delimiter != self._separator:  # Arrow's parser knows single characters alone
                block = block.replace(self._separator.encode(), self.delimiter.encode())
            if self.header is None:
                block = block.lstrip(_LINE_ENDS)
                end = re.search(rb"[\r\n]|$", block).start()  # type: ignore[union-attr]
                self.header, block = block[:end] or None, block[end:]
                if self.header is not None:
                    self.names = recipe_names(self._recipe, self._parse_header(self.header))
            if has_rows or not _is_blank(block):
                has_rows = True  # from here on empty lines may be part of a value
                yield block
        self._text.count_lost()

    def tables(self, blocks: Iterator[bytes], columns: list[str]) -> Iterator[pa.Table]:
        """Tables of `columns` as text, one per block.

        Types are not inferred: those of the first block may not fit later ones, and an id such as
        00123 would become 123.
        """
        if self._quotes is not None:
            self._quotes.width = len(self.names)
        rest = b""
        # Arrow's own threaded reader hung on files with damaged lines
        with ThreadPoolExecutor(_THREADS) as pool:
            for block, parsed in map_ahead(pool, lambda b: self._parse_intact(b, columns), blocks):
                if rest or parsed is None:
                    repaired, rest = self._repair(rest + block, is_last=False)
                    parsed = self._parse(repaired, columns)
                yield self._count_skipped(*parsed)
        if rest:
            repaired, _ = self._repair(rest, is_last=True)
            yield self._count_skipped(*self._parse(repaired, columns))

    def _count_skipped(self, table: pa.Table, skipped: list[str]) -> pa.Table:
        reason = "lines with another number of columns"
        self._row_counts.rows += len(skipped)
        self._row_counts.dropped[reason] += len(skipped)
        for line in skipped[:1]:
            self._row_counts.add_example(reason, line.replace(self.delimiter, self._separator))
        if self.delimiter != self._separator:  # those inside quotes
            columns = [
                pc.replace_substring(column, self.delimiter, self._separator)
                for column in table.columns
            ]
            table = pa.table(columns, table.column_names)
        return table

    def _parse_header(self, header: bytes) -> list[str]:
        if header.count(self.delimiter.encode()) >= _MOST_COLUMNS:
            raise DataError(f"{self._file} has a header of more than {_MOST_COLUMNS:,} columns.")
        text, _ = decode(header)
        table = pa.csv.read_csv(
            pa.BufferReader(text.encode() + b"\n"),
            read_options=pa.csv.ReadOptions(block_size=len(header) * 4 + 2, use_threads=False),
            parse_options=self._parse_options(),
        )
        return list(table.column_names)

    def _parse_options(self, **options: Any) -> pa.csv.ParseOptions:
        quote = False if self._quotes is None else '"'
        return pa.csv.ParseOptions(delimiter=self.delimiter, quote_char=quote, **options)

    def _parse_intact(self, block: bytes, columns: list[str]) -> tuple[pa.Table, list[str]] | None:
        """Result of `_parse`; None if the block needs repair."""
        if not is_utf8(block) or self._has_many_values(block):
            return None
        if self.header and (
            block.startswith(self.header)
            or b"\n" + self.header in block
            or (b"\r" in block and b"\r" + self.header in block)
        ):
            return None
        table, skipped = self._parse(block, columns)
        if (
            self._quotes is not None
            and b'"' in block
            and (
                # an open quote makes further lines part of its value
                not has_lines(block, table.num_rows + len(skipped))
                or self._quotes.is_open(_last_line(block))
                or self._quotes.has_text_after(block)
            )
        ):
            return None
        return table, skipped

    def _parse(self, block: bytes, columns: list[str]) -> tuple[pa.Table, list[str]]:
        """Table of a block, and the skipped lines with another number of columns."""
        if _is_blank(block):
            return pa.table({name: pa.array([], pa.string()) for name in columns}), []
        skipped: list[str] = []

        def skip(row: pa.csv.InvalidRow) -> str:
            skipped.append(row.text)
            return "skip"

        table = pa.csv.read_csv(
            pa.BufferReader(block),
            read_options=pa.csv.ReadOptions(
                column_names=self.names, block_size=len(block) + 1, use_threads=False
            ),
            parse_options=self._parse_options(
                newlines_in_values=self._quotes is not None, invalid_row_handler=skip
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in columns},
                include_columns=columns,
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                null_values=[""],
                check_utf8=False,  # the block is validated as a whole
            ),
        )
        return table, skipped

    def _repair(self, block: bytes, *, is_last: bool) -> tuple[bytes, bytes]:
        """Lines that can be parsed, in UTF-8, and lines that the next block may complete."""
        lines = block.splitlines(keepends=True)
        kept: list[bytes] = []
        at = 0
        while at < len(lines):
            line = lines[at]
            if self.header and line.rstrip(_LINE_ENDS) == self.header:
                self._drop("lines that repeat the header", line)
                at += 1
                continue
            end = at + 1
            if self._has_many_values(line):
                self._drop("lines with another number of columns", line[:LONGEST_RECORD])
                at = end
                continue
            if self._quotes is None or b'"' not in line:
                kept.append(self._to_utf8(line))
                at = end
                continue
            if self._quotes.is_open(line):
                num_lines = self._quotes.num_lines(lines, at)
                if num_lines is None and not is_last and sum(map(len, lines[at:])) < LONGEST_RECORD:
                    return b"".join(kept), b"".join(lines[at:])
                if not num_lines:
                    self._drop("lines with a quote that does not close", line)
                    at += 1
                    continue
                self._row_counts.warnings["rows with line ends inside a value"] += 1
                end = at + num_lines
            record = b"".join(self._to_utf8(each) for each in lines[at:end])
            kept.append(self._quotes.quote_whole(record))
            at = end
        return b"".join(kept), b""

    def _has_many_values(self, block: bytes) -> bool:
        """Whether a line has more values than can be parsed."""
        delimiter = self.delimiter.encode()
        return has_long_line(block, _MOST_VALUES) and any(
            len(line) > _MOST_VALUES and line.count(delimiter) > _MOST_VALUES
            for line in block.splitlines()
        )

    def _drop(self, reason: str, line: bytes) -> None:
        self._row_counts.rows += 1
        text = decode(line.rstrip(_LINE_ENDS))[0]
        self._row_counts.add_example(reason, text.replace(self.delimiter, self._separator))
        self._row_counts.dropped[reason] += 1

    def _to_utf8(self, line: bytes) -> bytes:
        if line.isascii():
            return line
        values = [decode(value) for value in line.split(self.delimiter.encode())]
        self._row_counts.repaired[NO_UTF8] += sum(is_repaired for _, is_repaired in values)
        return self.delimiter.join(text for text, _ in values).encode()


class _Quotes:
    """Quotes as Arrow's parser reads them: one opens at the start of a value only."""

    def __init__(self, delimiter: bytes) -> None:
        end = re.escape(delimiter)
        inside = rb'[^"]*(?:""[^"]*)*'
        # A closing quote is not followed by another one, so that a line matches in one way only.
        # Possessive quantifiers would do the same, but match wrongly before Python 3.11.5.
        value = rb'(?:"%s"(?!")[^%s]*|[^"%s][^%s]*)?%s' % (inside, end, end, end, end)
        self._values = re.compile(rb"(?:%s)*" % value)
        self._inside = re.compile(inside)
        self._value = re.compile(value)
        self._ends = (delimiter, b"\r", b"\n", b"")
        self._quoted = re.compile(rb'(?<![^%s])"%s"(?!")([^%s\r\n]*)' % (end, inside, end))
        self._is_end = np.isin(np.arange(256), [*delimiter, *_LINE_ENDS])
        self.width = 0
        """Number of columns."""

    def is_open(self, line: bytes, begin: int = 0) -> bool:
        """Whether the line ends inside quotes."""
        at = self._values.match(line, begin).end()  # type: ignore[union-attr]
        if line[at : at + 1] != b'"':
            return False
        end = self._inside.match(line, at + 1).end()  # type: ignore[union-attr]
        return line[end : end + 1] != b'"'

    def has_text_after(self, block: bytes) -> bool:
        """Whether a line may have text after a closing quote, such as `"Weird" Al`."""
        codes = np.frombuffer(b"\n" + block + b"\n", np.uint8)
        if not self._has_quote_inside(codes):
            return False
        quotes = np.flatnonzero(codes == ord('"'))
        before, after = codes[quotes - 1], codes[quotes + 1]
        is_first = self._is_end[before]
        is_empty = (before == ord('"')) & self._is_end[codes[quotes - 2]]
        is_inside = ~self._is_end[after] & (after != ord('"'))
        is_inside &= (~is_first & (before != ord('"'))) | is_empty
        if not is_inside.any():
            return False
        # a quote inside a value matters if a value of its line begins with one
        ends = np.flatnonzero((codes == 10) | (codes == 13))
        lines = np.searchsorted(ends, quotes)
        return bool(np.isin(lines[is_inside], lines[is_first]).any())

    def _has_quote_inside(self, codes: NDArray[np.uint8]) -> bool:
        """Whether a quote has neither a delimiter nor a line end beside it."""
        for begin in range(1, len(codes) - 1, _CACHED_BYTES):  # parts that the cache holds
            part = codes[begin - 1 : begin + _CACHED_BYTES + 1]
            is_end = (part == ord(self._ends[0])) | (part == 10) | (part == 13)
            if ((part[1:-1] == ord('"')) > (is_end[:-2] | is_end[2:])).any():
                return True
        return False

    def quote_whole(self, record: bytes) -> bytes:
        """Quote values that begin with a quoted word, so that they keep the quotes of that word."""

        def quoted(match: re.Match[bytes]) -> bytes:
            value = match.group()
            return b'"' + value.replace(b'"', b'""') + b'"' if match.group(1) else value

        return self._quoted.sub(quoted, record)

    def num_lines(self, lines: list[bytes], begin: int) -> int | None:
        """Number of lines of the interaction that begins with the open line at `begin`.

        Its quote must close before a delimiter or a line end, and it must have `width` columns; 0
        otherwise, None if there are too few lines to decide.
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
            # the text before is part of the value; `x` replaces it as an unquoted value
            if not self.is_open(b"x" + line[end + 1 :]):
                record = b"".join(lines[begin : at + 1])
                return at + 1 - begin if self._num_values(record) == self.width else 0
        return None

    def _num_values(self, record: bytes) -> int:
        count, at = 1, 0
        while match := self._value.match(record, at):
            count, at = count + 1, match.end()
        return count


def _is_blank(block: bytes) -> bool:
    return _TEXT.search(block) is None


def is_utf8(text: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    if text.isascii():
        return True
    offsets = pa.py_buffer(np.array([0, len(text)], np.int32))
    whole = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(text)])
    try:
        whole.cast(pa.string())  # validates without copying
    except pa.ArrowInvalid:
        return False
    return True


def _last_line(block: bytes) -> bytes:
    """Last non-empty line."""
    end = len(block) - len(block[-1024:]) + len(block[-1024:].rstrip(_LINE_ENDS))
    if end <= len(block) - 1024:
        end = len(block.rstrip(_LINE_ENDS))
    return block[max(block.rfind(b"\n", 0, end), block.rfind(b"\r", 0, end)) + 1 :]
