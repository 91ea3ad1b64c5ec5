"""Formats of log files: CSV, Parquet and item sequences, read in blocks of canonical columns."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.columns import ITEM, ORDER, SESSION, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.logs.columns import canonical_table, log_columns
from pipeline.logs.csv_repair import CsvFile
from pipeline.logs.row_counts import NO_UTF8, RowCounts
from pipeline.logs.text import TextFile, decode
from pipeline.recipe.preprocess import Preprocess

_LONGEST_SEQUENCE_BYTES = 1 << 28
_SUFFIXES = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".dat"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}


def format_of(recipe: Preprocess, file: Path) -> str:
    """Format of a log file: csv, parquet or sequences.

    DataError if the file is missing or its name ends in no known suffix.
    """
    if not file.is_file():
        state = "is no file" if file.exists() else "does not exist"
        raise DataError(f"{file} {state}. Expected a log in CSV, TSV or Parquet.")
    if recipe.format != "auto":
        return recipe.format
    name = file.name.lower().removesuffix(".gz")
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    raise DataError(
        f"{file}: cannot tell the format from the name. Expected .csv, .tsv, .txt, .dat or "
        ".parquet, the text ones also with .gz; or set `format` in the recipe."
    )


def file_columns(recipe: Preprocess, file: Path) -> list[str]:
    """Names of the columns of a CSV or Parquet file; empty for an empty file."""
    if format_of(recipe, file) == "parquet":
        return list(pq.read_schema(file).names) if file.stat().st_size else []
    csv = CsvFile(recipe, file, RowCounts())
    with closing(csv.blocks()) as blocks:
        next(blocks, None)
    return csv.names


def check_columns(file: Path, names: list[str], columns: dict[str, str]) -> None:
    """DataError unless each of `columns` is in the file, whose columns are `names`, once."""
    for name, column in columns.items():
        if names.count(column) > 1:
            raise DataError(
                f"{file} has {names.count(column)} columns named {column!r}. Name them apart."
            )
        if column not in names:
            feature = name.split(".")[0]  # inputs of a feature have its name and a dot
            role = name if name == column else f"{feature}, column {column!r}"
            raise DataError(
                f"{file} has no column for {role}. Found: {', '.join(map(repr, names))}. "
                "Correct the recipe, or `delimiter` if these are not columns."
            )


def scan_parquet(
    recipe: Preprocess, file: Path, row_counts: RowCounts, num_rows: int
) -> Iterator[pa.Table]:
    """Canonical columns of a Parquet file, in blocks of about `num_rows` rows."""
    if not file.stat().st_size:
        return
    with pq.ParquetFile(file) as parquet:
        if not parquet.metadata.num_rows:
            return
        columns = _present_columns(recipe, file, parquet.schema_arrow.names)
        selected = sorted(set(columns.values()))
        for batch in parquet.iter_batches(batch_size=num_rows, columns=selected):
            table = pa.Table.from_batches([batch])
            table = canonical_table(recipe, table, str(file), row_counts)
            yield _add_missing(recipe, table, row_counts)


def scan_csv(
    recipe: Preprocess, file: Path, row_counts: RowCounts, num_rows: int
) -> Iterator[pa.Table]:
    """Canonical columns of a CSV file as text, in blocks of about `num_rows` rows."""
    csv = CsvFile(recipe, file, row_counts)
    with closing(csv.blocks()) as blocks:
        first = next(blocks, None)
        if first is None:
            return
        columns = _present_columns(recipe, file, csv.names)
        tables = csv.tables(chain([first], blocks), sorted(set(columns.values())))
        for table in _merge_small(tables, num_rows):
            renamed = pa.table({name: table[column] for name, column in columns.items()})
            yield _add_missing(recipe, renamed, row_counts)


def _present_columns(recipe: Preprocess, file: Path, names: list[str]) -> dict[str, str]:
    """Columns of the log by canonical name; those of features may be missing in the file."""
    required = {SESSION, ITEM, TIMESTAMP}
    columns = log_columns(recipe).items()
    required |= {name for name, _ in columns if name.startswith(ORDER)}
    present = {name: column for name, column in columns if name in required or column in names}
    check_columns(file, names, present)
    return present


def _add_missing(recipe: Preprocess, table: pa.Table, row_counts: RowCounts) -> pa.Table:
    """Canonical columns in order, with nulls for features that the file lacks; counts the rows."""
    row_counts.rows += table.num_rows
    columns = log_columns(recipe)
    missing = {name: c for name, c in columns.items() if name not in table.column_names}
    for column in dict.fromkeys(missing.values()):
        row_counts.repaired[f"rows of files without the column {column}"] += table.num_rows
    nulls = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    return pa.table({name: nulls if name in missing else table[name] for name in columns})


def _merge_small(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Concatenate tables until they have at least `num_rows` rows; the last may have fewer."""
    pending: list[pa.Table] = []
    size, is_first = 0, True
    for table in tables:
        pending.append(table)
        size += table.num_rows
        if size >= num_rows:
            yield pa.concat_tables(pending)
            pending, size, is_first = [], 0, False
    if size or (is_first and pending):
        yield pa.concat_tables(pending)


def scan_sequences(
    recipe: Preprocess, file: Path, row_counts: RowCounts, num_rows: int
) -> Iterator[pa.Table]:
    """Sessions and items of a file with a session a line, in blocks of about `num_rows` rows."""
    sessions: list[str] = []
    items: list[str] = []
    num_lines, has_yielded = 0, False
    text = TextFile(file, row_counts, _LONGEST_SEQUENCE_BYTES)
    for block in text.blocks():
        for line in block.splitlines():
            words = _words(line, row_counts)
            if not words:
                continue
            row_counts.lines += 1
            num_lines += 1
            # lines are numbered through all files: two of them may have the same name
            session = words.pop(0) if recipe.session_first else str(row_counts.lines)
            if not words:
                row_counts.warnings["lines without an item"] += 1
            sessions += [session] * len(words)
            items += words
            if len(items) >= num_rows:
                yield _sequence_table(sessions, items, row_counts)
                sessions, items, has_yielded = [], [], True
    lost = len(_words(text.cut_line, row_counts)[recipe.session_first :])
    row_counts.rows += lost
    row_counts.dropped["interactions of a line cut off with its file"] += lost
    too_long = f"lines longer than {_LONGEST_SEQUENCE_BYTES >> 20} MiB"
    row_counts.warnings[too_long] += text.long_lines
    if items or (num_lines and not has_yielded):
        yield _sequence_table(sessions, items, row_counts)


def _sequence_table(sessions: list[str], items: list[str], row_counts: RowCounts) -> pa.Table:
    row_counts.rows += len(items)
    return pa.table({SESSION: pa.array(sessions, pa.string()), ITEM: pa.array(items, pa.string())})


def _words(line: bytes, row_counts: RowCounts) -> list[str]:
    """Split at ASCII white space alone: other white space may be part of an id."""
    words = [decode(word) for word in line.split()]
    row_counts.repaired[NO_UTF8] += sum(is_repaired for _, is_repaired in words)
    return [text for text, _ in words]
