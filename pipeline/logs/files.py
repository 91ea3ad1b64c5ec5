"""Log files: the files of a path, and their rows as tables of canonical columns."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pipeline.core.errors import DataError
from pipeline.core.manifest import MANIFEST
from pipeline.data import values
from pipeline.logs.columns import feature_columns, replace_missing
from pipeline.logs.formats import (
    check_columns,
    file_columns,
    format_of,
    scan_csv,
    scan_jsonl,
    scan_parquet,
    scan_sequences,
)
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.preprocess import Preprocess

BLOCK_ROWS = 500_000
"""Maximum interactions of a block, about."""
_SCANS = {
    "csv": scan_csv,
    "jsonl": scan_jsonl,
    "parquet": scan_parquet,
    "sequences": scan_sequences,
}


_NVTABULAR_FILES = ("schema.pbtxt", "_file_list.txt")
"""Files beside the Parquet files that mark a folder as NVTabular's output."""


def find_logs(recipe: Preprocess, paths: Iterable[Path]) -> list[Path]:
    """Log files of `paths`, those of a folder and its subfolders sorted by name.

    No file is read. Files whose name begins with `.` or `_` (Spark's markers) and NVTabular's
    metadata are skipped. DataError for a missing file, an unknown format, and a folder that is
    empty or cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        logs = list(_files_below(path, set())) if path.is_dir() else [path]
        if not logs:
            raise DataError(
                f"{path} holds no file. Expected logs in CSV, TSV, JSON lines or Parquet."
            )
        files += logs
    for file in files:
        format_of(recipe, file)
    return files


def check_tables(recipe: Preprocess) -> None:
    """DataError for the first side table that is missing or of an unknown format."""
    for table in recipe.tables:
        format_of(recipe.model_copy(update={"format": "auto"}), Path(table.file))


def _files_below(folder: Path, visited: set[Path]) -> Iterator[Path]:
    """Files by name; links are followed, and each folder is visited once."""
    if folder.resolve() in visited:
        return
    visited.add(folder.resolve())
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
    is_nvtabular = any(entry.name in _NVTABULAR_FILES for entry in entries)
    for entry in entries:
        if entry.name[0] in "._":
            continue
        if is_nvtabular and entry.is_file() and entry.suffix != ".parquet":
            continue
        if not entry.is_dir():
            yield entry
        elif not (entry / MANIFEST).is_file():  # an artifact is no log
            yield from _files_below(entry, visited)


def read_logs(recipe: Preprocess, files: Iterable[Path], row_counts: RowCounts) -> list[pa.Table]:
    """Canonical columns of files, one table per file with rows.

    DataError if a file cannot be read or lacks a column, or a feature's column is in none of them.
    """
    files = list(files)
    check_features(recipe, files)
    tables = []
    for file in files:
        blocks = list(scan_log(recipe, file, row_counts))
        tables += [_concatenate(blocks)] if blocks else []
    return tables


def _concatenate(blocks: list[pa.Table]) -> pa.Table:
    """One table of all blocks; a column whose types differ between them is text."""
    columns = {}
    for name in blocks[0].column_names:
        chunks = [values.to_array(block[name]) for block in blocks]
        if len({chunk.type for chunk in chunks}) > 1:
            texts = [values.category_chunk(chunk, "string")[0] for chunk in chunks]
            chunks = [values.decode_dictionary(text) for text in texts]
        columns[name] = pa.chunked_array(chunks)
    return pa.table(columns)


def check_features(recipe: Preprocess, files: Iterable[Path]) -> None:
    """DataError if a feature's column is in none of the files, unless all files are empty."""
    missing = feature_columns(recipe)
    last: tuple[Path, list[str]] | None = None
    for file in files:
        if not missing:
            return
        names = _file_columns(recipe, file)
        if names:
            missing = {name: column for name, column in missing.items() if column not in names}
            last = file, names
    if missing and last is not None:
        check_columns(recipe, *last, missing)


def column_names(recipe: Preprocess, files: Iterable[Path]) -> set[str]:
    """Columns that any of the files has."""
    return {name for file in files for name in _file_columns(recipe, file)}


def scan_log(
    recipe: Preprocess, file: Path, row_counts: RowCounts, num_rows: int = BLOCK_ROWS
) -> Iterator[pa.Table]:
    """Yield the canonical columns of a file in blocks of about `num_rows` rows.

    An empty file has no block. A feature whose column the file lacks is null. Errors are those of
    `read_logs`.
    """
    kind = format_of(recipe, file)
    rows_before = row_counts.rows
    is_empty = True
    with _reading(file, kind):
        for block in _SCANS[kind](recipe, file, row_counts, num_rows):
            yield replace_missing(recipe, block, row_counts)
            is_empty = False
    if is_empty and row_counts.rows == rows_before:
        row_counts.warnings["empty files"] += 1


def _file_columns(recipe: Preprocess, file: Path) -> list[str]:
    with _reading(file, format_of(recipe, file)):
        return file_columns(recipe, file)


@contextmanager
def _reading(file: Path, kind: str) -> Iterator[None]:
    """Convert errors of reading the file to DataError."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, EOFError, OSError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read as {kind}: {line}") from None
