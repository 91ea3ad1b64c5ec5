"""Log files as they come, CSV or Parquet or one sequence a line, to tables of canonical columns.

Canonical columns: `session_id`, `item_id`, `timestamp` and one for each feature of the recipe,
under its name, with the values as they stand in the file. What is skipped on the way is counted.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.core.recipe import Preprocess

if TYPE_CHECKING:
    import pandas as pd

BLOCK_ROWS = 1_000_000
"""Interactions that are read at a time."""
_CSV_BLOCK_BYTES = 1 << 24


@dataclass
class Report:
    """What happened to the rows of a log."""

    rows: int = 0
    """Rows read, broken ones among them; of sessions one a row, their interactions."""
    lines: int = 0
    """Of sequences."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was dropped or set to missing, by reason."""


def find_logs(recipe: Preprocess, paths: Iterable[Path]) -> list[Path]:
    """The files that `paths` name, those of a folder and below it by name; reads none.

    Hidden files, and those that Spark marks with an underscore, are none. DataError for the first
    one that is missing or of an unknown kind, for a folder that cannot be read, and for one
    without any.
    """
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = list(_files_below(path, set()))
        if not found:
            raise DataError(f"{path} holds no file. Expected logs in CSV, TSV or Parquet.")
        files += found
    for file in files:
        _kind(recipe, file)
    return files


def check_tables(recipe: Preprocess) -> None:
    """DataError for the first table beside the log that is missing or of an unknown kind."""
    for table in recipe.tables:
        _kind(recipe.model_copy(update={"format": "auto"}), Path(table.file))


def _files_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """By name; links are followed, each folder is entered once."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
    for entry in entries:
        if entry.name[0] in "._":
            continue
        if entry.is_dir():
            yield from _files_below(entry, seen)
        else:
            yield entry


def read_log(recipe: Preprocess, file: Path, report: Report) -> pa.Table:
    """One file with canonical names, rows of whole sessions taken apart.

    DataError if it is missing, cannot be read or lacks a column.
    """
    return pa.concat_tables(scan_log(recipe, file, report))


def scan_log(
    recipe: Preprocess, file: Path, report: Report, rows: int = BLOCK_ROWS
) -> Iterator[pa.Table]:
    """The same in parts of about so many rows, at least one, so that memory is bounded."""
    kind = _kind(recipe, file)
    if kind == "sequences":
        parts, sources = _scan_sequences(recipe, file, report, rows), None
    else:
        sources = _sources(recipe)
        scan = _scan_parquet if kind == "parquet" else _scan_csv
        parts = scan(recipe, file, sources, report, rows)
    while True:
        try:
            table = next(parts, None)
        except (pa.ArrowException, UnicodeDecodeError, EOFError, OSError) as error:
            line = " ".join(str(error).split())
            raise DataError(f"{file} cannot be read as {kind}: {line}") from None
        if table is None:
            return
        if sources is not None:
            table = _canonical(table, sources, str(file))
            report.rows += table.num_rows
        yield table


def read_frame(recipe: Preprocess, frame: "pd.DataFrame") -> pa.Table:
    """A frame with the log's columns as `read_log` gives a file.

    DataError where the columns of session and item are missing; others may be.
    """
    sources = {n: source for n, source in _sources(recipe).items() if source in frame.columns}
    for name, source in ((SESSION, recipe.session), (ITEM, recipe.item)):
        if name not in sources:
            raise DataError(f"The frame has no column {source!r}. It has: {list(frame.columns)}.")
    try:
        table = pa.Table.from_pandas(frame[list(dict.fromkeys(sources.values()))])
    except (pa.ArrowException, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"The frame cannot be read: {line}") from None
    return _canonical(table, sources, "The frame")


def _canonical(table: pa.Table, sources: dict[str, str], where: str) -> pa.Table:
    table = pa.table({name: table[source] for name, source in sources.items()})
    table = _explode(table, where)
    return pa.table({name: _readable(table[name], name, where) for name in table.column_names})


def _kind(recipe: Preprocess, file: Path) -> str:
    if not file.is_file():
        found = "is no file" if file.exists() else "does not exist"
        raise DataError(f"{file} {found}. Expected a log in CSV, TSV or Parquet.")
    if recipe.format != "auto":
        return recipe.format
    name = file.name.lower().removesuffix(".gz")
    for suffix, kind in ((".csv", "csv"), (".tsv", "csv"), (".txt", "csv"), (".dat", "csv")):
        if name.endswith(suffix):
            return kind
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    raise DataError(
        f"{file}: cannot tell the format from the name. Expected .csv, .tsv, .txt, .dat or "
        ".parquet, the text ones also with .gz; or set `format` in the recipe."
    )


def _sources(recipe: Preprocess) -> dict[str, str]:
    """Canonical name to column of the log."""
    sources = {SESSION: recipe.session, ITEM: recipe.item}
    if recipe.timestamp:
        sources[TIMESTAMP] = recipe.timestamp.column
    return sources | {
        feature.name: feature.source for feature in recipe.features if not feature.table
    }


def _check_columns(file: Path, found: list[str], sources: dict[str, str]) -> None:
    for name, column in sources.items():
        if found.count(column) > 1:
            raise DataError(
                f"{file} has {found.count(column)} columns named {column!r}. Name them apart."
            )
        if column not in found:
            role = name if name == column else f"{name}, column {column!r}"
            raise DataError(
                f"{file} has no column for {role}. Found: {', '.join(map(repr, found))}. "
                "Correct the recipe, or `delimiter` if these are not columns."
            )


def _scan_parquet(
    _recipe: Preprocess, file: Path, sources: dict[str, str], _report: Report, rows: int
) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as parquet:
        _check_columns(file, parquet.schema_arrow.names, sources)
        wanted = sorted(set(sources.values()))
        batches = parquet.iter_batches(batch_size=rows, columns=wanted)
        first = next(batches, None)
        if first is None:
            schema = parquet.schema_arrow
            yield pa.schema([schema.field(name) for name in wanted]).empty_table()
            return
        yield pa.Table.from_batches([first])
        for batch in batches:
            yield pa.Table.from_batches([batch])


def _scan_csv(
    recipe: Preprocess, file: Path, sources: dict[str, str], report: Report, rows: int
) -> Iterator[pa.Table]:
    """All columns as text: guessing types from the first block fails on later ones, and turns
    an id such as 00123 into another."""
    tab = file.name.lower().removesuffix(".gz").endswith(".tsv")
    delimiter = recipe.delimiter or ("\t" if tab else ",")
    compression = "gzip" if file.name.lower().endswith(".gz") else None
    parse = pa.csv.ParseOptions(
        delimiter=delimiter, invalid_row_handler=lambda row: _skip(row, report)
    )
    read = pa.csv.ReadOptions(
        column_names=list(recipe.columns) if recipe.columns else None, block_size=_CSV_BLOCK_BYTES
    )
    if recipe.columns:
        _check_columns(file, list(recipe.columns), sources)
    else:
        with pa.input_stream(str(file), compression=compression) as stream:
            found = _header(stream, parse)
        _check_columns(file, found, sources)
    wanted = sorted(set(sources.values()))
    convert = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in wanted},
        include_columns=wanted,
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        null_values=[""],
    )
    with pa.input_stream(str(file), compression=compression) as stream:
        reader = pa.csv.open_csv(
            stream, read_options=read, parse_options=parse, convert_options=convert
        )
        yield from _gathered(reader, reader.schema, rows)


def _gathered(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int
) -> Iterator[pa.Table]:
    """Small batches to tables of at least so many rows, but for the last."""
    waiting: list[pa.RecordBatch] = []
    size, first = 0, True
    for batch in batches:
        waiting.append(batch)
        size += batch.num_rows
        if size >= rows:
            yield pa.Table.from_batches(waiting, schema)
            waiting, size, first = [], 0, False
    if size or first:
        yield pa.Table.from_batches(waiting, schema)


def _header(stream: pa.NativeFile, parse: pa.csv.ParseOptions) -> list[str]:
    first = stream.read(1 << 16).split(b"\n", 1)[0] + b"\n"
    if not first.strip():
        raise pa.ArrowInvalid("the file is empty")
    options = pa.csv.ParseOptions(delimiter=parse.delimiter)
    names = pa.csv.read_csv(pa.BufferReader(first), parse_options=options).column_names
    return [str(name) for name in names]


def _skip(_row: object, report: Report) -> str:
    report.rows += 1
    report.counts["lines with another number of columns"] += 1
    return "skip"


def _scan_sequences(
    recipe: Preprocess, file: Path, report: Report, rows: int
) -> Iterator[pa.Table]:
    compression = "gzip" if file.name.lower().endswith(".gz") else None
    sessions: list[str] = []
    items: list[str] = []

    def table() -> pa.Table:
        found = {SESSION: pa.array(sessions, pa.string()), ITEM: pa.array(items, pa.string())}
        report.rows += len(items)
        sessions.clear()
        items.clear()
        return pa.table(found)

    first = True
    with pa.input_stream(str(file), compression=compression) as stream:
        for line in io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8"):
            words = line.split()
            if not words:
                continue
            report.lines += 1
            # counted through all files: two of them may have the same name
            session = words.pop(0) if recipe.session_first else str(report.lines)
            if not words:
                report.counts["lines without an item"] += 1
            sessions += [session] * len(words)
            items += words
            if len(items) >= rows:
                yield table()
                first = False
    if items or first:
        yield table()


def _explode(table: pa.Table, where: str) -> pa.Table:
    """Rows that hold whole sessions in list columns to one row an interaction."""
    lists = [n for n in table.column_names if _is_list(table[n].type)]
    if not lists:
        return table
    if ITEM not in lists:
        raise DataError(f"{where}: {lists[0]} is a list column but the item is not.")
    lengths = _list_lengths(table[ITEM])
    for name in lists:
        if not np.array_equal(_list_lengths(table[name]), lengths):
            raise DataError(f"{where}: lists of {name} and of {ITEM} differ in length.")
    rows = np.repeat(np.arange(table.num_rows), lengths)
    columns = {}
    for name in table.column_names:
        if name in lists:
            columns[name] = pc.list_flatten(table[name])
        else:
            columns[name] = table[name].take(pa.array(rows))
    return pa.table(columns)


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy()


def _readable(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Bytes become text. DataError for what is neither text nor a number nor a time."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(kind):
        raise DataError(f"{where}: {name} holds {kind}, expected text, numbers or times.")
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return column
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        raise DataError(f"{where}: {name} holds bytes that are not UTF-8 text.") from None


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
