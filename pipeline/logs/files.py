"""Log files as they come, CSV or Parquet or one sequence a line, to tables of canonical columns.

Canonical columns: `session_id`, `item_id`, `timestamp` and one for each feature of the recipe,
under its name, with the values as they stand in the file. What is skipped on the way is counted.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.artifact import MANIFEST
from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.logs.columns import explode, joined, readable
from pipeline.logs.csv_repair import CsvFile
from pipeline.logs.row_counts import NO_UTF8, Report
from pipeline.logs.text import TextFile, windows_1252
from pipeline.recipe.features import CategoryFeature, ColumnFeature, Feature, TargetEncodedFeature
from pipeline.recipe.preprocess import Preprocess

if TYPE_CHECKING:
    import pandas as pd

BLOCK_ROWS = 500_000
"""Interactions that are read at a time."""
_LONGEST_SEQUENCE = 1 << 28
"""Bytes of a line that is a session."""


def find_logs(recipe: Preprocess, paths: Iterable[Path]) -> list[Path]:
    """Log files of `paths`, those of a folder and its subfolders sorted by name; none is read.

    Files whose name begins with `.` or `_` (Spark's markers) are skipped. DataError for a file that
    is missing or of an unknown format, and for a folder that is empty or cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        logs = list(_files_below(path, set()))
        if not logs:
            raise DataError(f"{path} holds no file. Expected logs in CSV, TSV or Parquet.")
        files += logs
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
            if not (entry / MANIFEST).is_file():  # what a command wrote is no log
                yield from _files_below(entry, seen)
        else:
            yield entry


def read_logs(recipe: Preprocess, files: Iterable[Path], report: Report) -> list[pa.Table]:
    """Files with canonical names, rows of whole sessions taken apart; a table for each with rows.

    DataError if one is missing, cannot be read or lacks a column.
    """
    check_features(recipe, files)
    tables = []
    for file in files:
        parts = list(scan_log(recipe, file, report))
        tables += [pa.concat_tables(parts)] if parts else []
    return tables


def check_features(recipe: Preprocess, files: Iterable[Path]) -> None:
    """DataError if a feature's column is in none of the files; empty ones say nothing."""
    missing = _feature_sources(recipe)
    found: list[str] = []
    last = None
    for file in files:
        if not missing:
            return
        names = _told(file, _kind(recipe, file), partial(_column_names, recipe, file))
        if names:
            missing = {name: source for name, source in missing.items() if source not in names}
            found, last = names, file
    if missing and last is not None:
        _check_columns(last, found, missing)


def known_columns(recipe: Preprocess, files: Iterable[Path]) -> set[str]:
    """Columns that stand in any of the files."""
    return {
        name
        for file in files
        for name in _told(file, _kind(recipe, file), partial(_column_names, recipe, file))
    }


def scan_log(
    recipe: Preprocess, file: Path, report: Report, rows: int = BLOCK_ROWS
) -> Iterator[pa.Table]:
    """One file in parts of about so many rows, so that memory is bounded; none if it is empty.

    A feature whose column it lacks is missing in it. DataError as `read_logs`.
    """
    kind = _kind(recipe, file)
    scan = {"sequences": _scan_sequences, "parquet": _scan_parquet, "csv": _scan_csv}[kind]
    parts = scan(recipe, file, report, rows)
    before = report.rows
    first = next_part = _told(file, kind, lambda: next(parts, None))
    while next_part is not None:
        yield next_part
        next_part = _told(file, kind, lambda: next(parts, None))
    if first is None and report.rows == before:
        report.counted["empty files"] += 1


T = TypeVar("T")


def _told(file: Path, kind: str, read: Callable[[], T]) -> T:
    """What `read` gives. DataError where the file cannot be read."""
    try:
        return read()
    except (pa.ArrowException, UnicodeDecodeError, EOFError, OSError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read as {kind}: {line}") from None


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
    return _canonical(recipe, table, sources, "The frame", Report())


def _canonical(
    recipe: Preprocess, table: pa.Table, sources: dict[str, str], where: str, report: Report
) -> pa.Table:
    """Without the columns that the table lacks."""
    there = {n: source for n, source in sources.items() if source in table.column_names}
    several = {f.name: f.separator for f in recipe.multi_valued_features}
    several |= {
        input_name(f, source): f.separator if isinstance(f, CategoryFeature) else "|"
        for f in recipe.operator_features
        for source, kind in f.inputs.items()
        if kind == "text"
    }
    table = pa.table({name: table[source] for name, source in there.items()})
    table = explode(table, where, report, several)
    columns = {name: table[name] for name in table.column_names}
    for name in several.keys() & columns.keys():
        columns[name] = joined(columns[name], several[name], name, where, report)
    return pa.table(
        {name: readable(column, name, where, report) for name, column in columns.items()}
    )


def _completed(table: pa.Table, sources: dict[str, str], report: Report) -> pa.Table:
    """With features that are missing in the whole file, in the order of `sources`."""
    report.rows += table.num_rows
    columns = {}
    missing = [source for name, source in sources.items() if name not in table.column_names]
    for source in dict.fromkeys(missing):
        report.repaired[f"rows of files without the column {source}"] += table.num_rows
    for name in sources:
        if name in table.column_names:
            columns[name] = table[name]
        else:
            columns[name] = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    return pa.table(columns)


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


def input_name(feature: Feature, source: str) -> str:
    """Canonical name of a column that the operator of a feature gets; none of a feature's own."""
    return f"{feature.name}.{source}"


def _sources(recipe: Preprocess) -> dict[str, str]:
    """Canonical name to column of the log."""
    sources = {SESSION: recipe.session, ITEM: recipe.item}
    if recipe.timestamp:
        sources[TIMESTAMP] = recipe.timestamp.column
    return sources | _feature_sources(recipe)


def _feature_sources(recipe: Preprocess) -> dict[str, str]:
    """Of features that stand in the log, and what others are made of."""
    in_log = (
        f
        for f in recipe.features
        if isinstance(f, TargetEncodedFeature) or (isinstance(f, ColumnFeature) and not f.table)
    )
    sources = {f.name: f.source for f in in_log}
    sources |= {f.target_column: f.mean_of for f in recipe.target_encoded_features}
    return sources | {
        input_name(f, name): name for f in recipe.operator_features for name in f.inputs
    }


def _check_columns(file: Path, found: list[str], sources: dict[str, str]) -> None:
    for name, column in sources.items():
        if found.count(column) > 1:
            raise DataError(
                f"{file} has {found.count(column)} columns named {column!r}. Name them apart."
            )
        if column not in found:
            feature = name.split(".")[0]  # what a feature is made of stands behind a point
            role = name if name == column else f"{feature}, column {column!r}"
            raise DataError(
                f"{file} has no column for {role}. Found: {', '.join(map(repr, found))}. "
                "Correct the recipe, or `delimiter` if these are not columns."
            )


def _column_names(recipe: Preprocess, file: Path) -> list[str]:
    """Of the log; empty where an empty file does not tell."""
    if _kind(recipe, file) == "parquet":
        if not file.stat().st_size:
            return []
        with pq.ParquetFile(file) as parquet:
            return list(parquet.schema_arrow.names)
    csv = CsvFile(recipe, file, Report())
    with closing(csv.blocks()) as blocks:
        next(blocks, None)
    return csv.names


def _check_needed(file: Path, found: list[str], sources: dict[str, str]) -> None:
    """As `_check_columns`; a feature may be missing."""
    features = set(sources) - {SESSION, ITEM, TIMESTAMP}
    absent = {name for name in features if sources[name] not in found}
    _check_columns(file, found, {n: source for n, source in sources.items() if n not in absent})


def _scan_parquet(recipe: Preprocess, file: Path, report: Report, rows: int) -> Iterator[pa.Table]:
    if not file.stat().st_size:
        return
    sources = _sources(recipe)
    with pq.ParquetFile(file) as parquet:
        found = parquet.schema_arrow.names
        if not parquet.metadata.num_rows:
            return
        _check_needed(file, found, sources)
        wanted = sorted(set(sources.values()) & set(found))
        for batch in parquet.iter_batches(batch_size=rows, columns=wanted):
            table = pa.Table.from_batches([batch])
            table = _canonical(recipe, table, sources, str(file), report)
            yield _completed(table, sources, report)


def _scan_csv(recipe: Preprocess, file: Path, report: Report, rows: int) -> Iterator[pa.Table]:
    sources = _sources(recipe)
    csv = CsvFile(recipe, file, report)
    with closing(csv.blocks()) as blocks:
        first = next(blocks, None)
        if first is None:
            return
        _check_needed(file, csv.names, sources)
        wanted = sorted(set(sources.values()) & set(csv.names))
        there = {name: source for name, source in sources.items() if source in wanted}
        for table in _gathered(csv.tables(chain([first], blocks), wanted), rows):
            renamed = pa.table({name: table[source] for name, source in there.items()})
            yield _completed(renamed, sources, report)


def _gathered(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Small tables to such of at least so many rows, but for the last."""
    waiting: list[pa.Table] = []
    size, first = 0, True
    for table in tables:
        waiting.append(table)
        size += table.num_rows
        if size >= rows:
            yield pa.concat_tables(waiting)
            waiting, size, first = [], 0, False
    if size or (first and waiting):
        yield pa.concat_tables(waiting)


def _scan_sequences(
    recipe: Preprocess, file: Path, report: Report, rows: int
) -> Iterator[pa.Table]:
    sessions: list[str] = []
    items: list[str] = []

    def table() -> pa.Table:
        found = {SESSION: pa.array(sessions, pa.string()), ITEM: pa.array(items, pa.string())}
        report.rows += len(items)
        sessions.clear()
        items.clear()
        return pa.table(found)

    read, given = 0, False
    text = TextFile(file, report, _LONGEST_SEQUENCE)
    for block in text.blocks():
        for line in block.splitlines():
            words = _words(line, report)
            if not words:
                continue
            report.lines += 1
            read += 1
            # counted through all files: two of them may have the same name
            session = words.pop(0) if recipe.session_first else str(report.lines)
            if not words:
                report.counted["lines without an item"] += 1
            sessions += [session] * len(words)
            items += words
            if len(items) >= rows:
                yield table()
                given = True
    lost = len(_words(text.cut_line, report)[recipe.session_first :])
    report.rows += lost
    report.dropped["interactions of a line cut off with its file"] += lost
    report.counted[f"lines longer than {_LONGEST_SEQUENCE >> 20} MiB"] += text.long_lines
    if items or (read and not given):
        yield table()


def _words(line: bytes, report: Report) -> list[str]:
    """Apart at ASCII's white space alone: other marks are part of an id."""
    words = []
    for word in line.split():
        try:
            words.append(word.decode())
        except UnicodeDecodeError:
            words.append(windows_1252(word))
            report.repaired[NO_UTF8] += 1
    return words
