"""Bounds of Parquet files: how much a file may expand in memory.

A file of a few kilobytes may hold a value a billion times, or one of gigabytes. The footer, which
describes row groups and columns, takes up to 300 times its size once it is decoded.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.errors import DataError

MOST_VALUES = 100
"""Largest number of values of a column per byte of the file; logs have less than one."""
MOST_INFLATED = 250
"""Largest ratio of decompressed and compressed bytes of a column; logs have 2 to 30."""
LONGEST_VALUE = 1 << 20
"""Largest bytes of a text that a column may repeat."""
MOST_COLUMNS = 10_000
"""Largest number of columns of a file, nested ones included."""
MOST_FOOTER = 10
"""Smallest ratio of the sizes of a file and its footer; logs have 1,000 and more."""
_FREE_FOOTER_BYTES = 2 << 20
"""Bytes of a footer above which this ratio is checked."""
_BATCH_BYTES = 1 << 27


def check_footer(file: Path) -> None:
    """DataError for a footer that is large for its file, before it is decoded."""
    tail_bytes, magic = 8, b"PAR1"
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - tail_bytes))
        tail = stream.read()
    footer = int.from_bytes(tail[:4], "little")
    is_large = max(_FREE_FOOTER_BYTES, size // MOST_FOOTER) < footer <= size
    if tail[4:] == magic and is_large:
        raise DataError(
            f"{file} has a footer of {footer:,} bytes in {size:,}, more than 1/{MOST_FOOTER} of "
            "it, as no log has: it describes very many row groups or columns. Write it anew with "
            "larger row groups."
        )


@contextmanager
def open_parquet(file: Path) -> Iterator[pq.ParquetFile]:
    """Yield a Parquet file. DataError for a footer as in `check_footer`, and for many columns.

    ArrowInvalid for row groups that do not match the rows and columns of the file.
    """
    check_footer(file)
    with pq.ParquetFile(file) as parquet:
        if parquet.metadata.num_columns > MOST_COLUMNS:
            raise DataError(
                f"{file} has {parquet.metadata.num_columns:,} columns, of which up to "
                f"{MOST_COLUMNS:,} are read."
            )
        _check_row_groups(parquet.metadata)
        yield parquet


def _check_row_groups(metadata: pq.FileMetaData) -> None:
    """ArrowInvalid for row groups that lack a column or have other rows than the file."""
    num_rows = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        num_rows += group.num_rows
        if group.num_columns != metadata.num_columns:
            raise pa.ArrowInvalid(
                f"row group {index} has {group.num_columns} columns, expected "
                f"{metadata.num_columns}"
            )
    if num_rows != metadata.num_rows:
        raise pa.ArrowInvalid(f"{metadata.num_rows} rows, and its row groups have {num_rows}")


class Free(NamedTuple):
    """Values and bytes of a column above which the bounds are checked."""

    values: int = 10_000_000
    bytes: int = 1 << 26


_FREE = Free()


def check_expansion(file: Path, free: Free = _FREE) -> None:
    """DataError for a file that expands beyond the bounds in memory."""
    with open_parquet(file) as parquet:
        if parquet.metadata.num_rows:
            bounded_rows(parquet, file, (), parquet.metadata.num_rows, free)


def bounded_rows(
    parquet: pq.ParquetFile,
    file: Path,
    columns: Collection[str],
    num_rows: int,
    free: Free = _FREE,
) -> int:
    """Return how many rows may be read at once, `num_rows` or less for long texts.

    `columns` are top-level names, empty for all. DataError for a file whose columns expand beyond
    the bounds in memory.
    """
    longest, size, metadata = 1, file.stat().st_size, parquet.metadata
    for index in range(metadata.num_columns):
        name = metadata.row_group(0).column(index).path_in_schema
        # a dot is part of a name, or separates those of nested columns
        if columns and not any(f"{name}.".startswith(f"{column}.") for column in columns):
            continue
        num_values, decoded = 0, 0
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(index)
            num_values += chunk.num_values
            _check_inflated(chunk, file, name, free)
            # each row may repeat a value of the dictionary
            if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY":
                is_list = "." in name  # its rows have any number of values
                most_read = chunk.num_values if is_list else min(num_rows, chunk.num_values)
                if most_read * chunk.total_uncompressed_size > min(_BATCH_BYTES, 2 * free.bytes):
                    longest_here = _longest_value(file, name, group)
                    longest = max(longest, longest_here)
                    decoded += longest_here * chunk.num_values
        if num_values > max(free.values, MOST_VALUES * size):
            raise DataError(
                f"{file} has {num_values:,} values of {name!r} in {size:,} bytes, more than "
                f"{MOST_VALUES} a byte, as no log does. Write it anew without compression and "
                "dictionaries to read it."
            )
        most = max(free.bytes, MOST_INFLATED * size)
        if decoded > most and (decoded := _decoded_bytes(file, name)) > most:
            raise DataError(
                f"{file} repeats texts of {name!r} to {decoded:,} bytes, more than "
                f"{MOST_INFLATED} times its size, as no log does. Write it anew without "
                "compression and dictionaries to read it."
            )
    return max(1, min(num_rows, _BATCH_BYTES // longest))


def _check_inflated(chunk: pq.ColumnChunkMetaData, file: Path, name: str, free: Free) -> None:
    inflated = chunk.total_uncompressed_size
    if inflated > max(free.bytes, MOST_INFLATED * chunk.total_compressed_size):
        raise DataError(
            f"{file} inflates more than {MOST_INFLATED} times, as no log does: "
            f"{chunk.total_compressed_size:,} bytes of {name!r} become {inflated:,}. Write it anew "
            "without compression to read it."
        )


def _innermost(values: pa.Array) -> pa.Array:
    """Return the values inside lists and objects, with their dictionary."""
    while pa.types.is_nested(values.type):
        values = values.flatten() if hasattr(values, "offsets") else values.field(0)
    return values


def _decoded_bytes(file: Path, name: str) -> int:
    """Return the bytes of all texts of a column, from its dictionary and indices alone."""
    total = 0
    with pq.ParquetFile(file, read_dictionary=[name]) as parquet:
        for batch in parquet.iter_batches(1 << 16, columns=[name]):
            values = _innermost(batch.column(0))
            if pa.types.is_dictionary(values.type):
                lengths = pc.binary_length(values.dictionary).cast(pa.int64())
                total += pc.sum(lengths.take(values.indices)).as_py() or 0
    return total


def _longest_value(file: Path, name: str, group: int) -> int:
    """Return the bytes of the longest text in a column's dictionary. DataError for too many."""
    where: dict[str, Any] = {"row_groups": [group], "columns": [name]}
    with pq.ParquetFile(file, read_dictionary=[name]) as parquet:
        batch = next(parquet.iter_batches(1, **where), None)
        if batch is None:  # a group of no rows
            return 0
        first = _innermost(batch.column(0))
        if not pa.types.is_dictionary(first.type):
            return 0
        longest = _longest_entry(first)
        if len(first.dictionary) <= len(first):
            # its page may hold the texts themselves, and a later one repeat a longer text
            batches = parquet.iter_batches(1 << 16, **where)
            longest = max(_longest_entry(_innermost(batch.column(0))) for batch in batches)
    if longest > LONGEST_VALUE:
        raise DataError(
            f"{file} has a value of {longest:,} bytes in {name!r}, which may be there many times. "
            f"The longest that is read has {LONGEST_VALUE:,}."
        )
    return longest


def _longest_entry(values: pa.DictionaryArray) -> int:
    """Return the bytes of the longest text in the dictionary of an array."""
    return pc.max(pc.binary_length(values.dictionary)).as_py() or 0
