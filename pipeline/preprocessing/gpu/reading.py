"""Clean logs read on the device; other logs are refused with the reason."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.columns import TIMESTAMP
from pipeline.core.parquet_bounds import check_footer
from pipeline.logs import files as log_files
from pipeline.logs.columns import log_columns
from pipeline.logs.compression import compression_of
from pipeline.logs.csv_repair import CsvFile, is_utf8
from pipeline.logs.formats import format_of
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.gpu.frames import Frames
from pipeline.recipe.preprocess import Preprocess

_EXPANSION = {"parquet": 24, "csv": 10}
"""Device memory of reading and sorting, as a multiple of the file size."""
_GZIP_EXPANSION = 6


class NotOnDeviceError(Exception):
    """The CPU engine must read the log; the message says why."""


@dataclass(frozen=True)
class RawLog:
    """A clean log on the device."""

    frame: Any
    """Columns of the log, in the order of the rows."""
    columns: dict[str, str]
    """Columns of the log by canonical name."""
    block_rows: list[int]
    """Rows of each block in which the CPU engine reads the log."""


def check_recipe(recipe: Preprocess) -> None:
    """NotOnDeviceError for settings that only the CPU engine supports."""
    timestamp = recipe.timestamp
    settings = {
        "operators of the user": recipe.operator_features,
        "expressions": recipe.expression_features,
        f"`split` by {recipe.split.by}": recipe.split.by in ("random", "user", "column"),
        "`order`": recipe.order,
        "`missing`": recipe.missing,
        "`decimal`": recipe.decimal,
        "`delimiter` of several characters": len(recipe.delimiter or "") > 1,
        "`explode`": recipe.explode,
        "`quote: none`": recipe.quote == "none",
        "`timestamp.format`": timestamp is not None and timestamp.format,
    }
    for name, is_set in settings.items():
        if is_set:
            raise NotOnDeviceError(name)


def read_clean(frames: Frames, recipe: Preprocess, files: list[Path]) -> RawLog:
    """Read Parquet and CSV files of one schema without lists and damage.

    NotOnDeviceError for any other log, and for one that may not fit into the free memory.
    """
    formats = {format_of(recipe, file) for file in files}
    if len(formats) > 1 or not formats <= _EXPANSION.keys():
        raise NotOnDeviceError(f"logs as {' and '.join(sorted(formats))}")
    (kind,) = formats
    if kind == "csv" and not {compression_of(file) for file in files} <= {None, "gzip"}:
        raise NotOnDeviceError("compression other than gzip")
    _check_size(frames, files, _EXPANSION[kind])
    columns = log_columns(recipe)
    sources = sorted(set(columns.values()))
    if kind == "parquet":
        parts, pieces = _read_parquet(frames, files, sources, columns.get(TIMESTAMP))
    else:
        parts, pieces = _read_csv(frames, recipe, files, sources)
    frame = frames.concatenate(parts) if len(parts) > 1 else parts[0]
    return RawLog(frame, columns, _block_rows(pieces))


def _check_size(frames: Frames, files: list[Path], expansion: int) -> None:
    free = frames.free_bytes()
    if free is None:
        return
    sizes = (
        file.stat().st_size * (1 if compression_of(file) is None else _GZIP_EXPANSION)
        for file in files
    )
    if sum(sizes) * expansion > free:
        raise NotOnDeviceError("it may not fit into the memory of the GPU")


def _read_parquet(
    frames: Frames, files: list[Path], columns: list[str], timestamp: str | None
) -> tuple[list[Any], list[list[int]]]:
    parts, pieces, schemas = [], [], []
    for file in files:
        check_footer(file)
        with _refusing(file):
            metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
        schemas.append([_type_of(schema, name, name == timestamp) for name in columns])
        if schemas[-1] != schemas[0] or not metadata.num_rows:
            raise NotOnDeviceError("files of several schemas, or without rows")
        with _refusing(file):
            parts.append(frames.read_parquet(file, columns))
        whole, rest = divmod(metadata.num_rows, log_files.BLOCK_ROWS)
        pieces.append([log_files.BLOCK_ROWS] * whole + [rest] * bool(rest))
    return parts, pieces


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """NotOnDeviceError for a file that cannot be read; the CPU engine reports the reason."""
    try:
        yield
    except (pa.ArrowException, EOFError, OSError, RuntimeError):  # the last one is libcudf's
        raise NotOnDeviceError(f"{file.name} cannot be read") from None


def _type_of(schema: pa.Schema, name: str, is_time: bool) -> pa.DataType:
    """Type of a column. NotOnDeviceError unless it holds numbers, text, or the times of the log."""
    if schema.names.count(name) != 1:
        raise NotOnDeviceError(f"a file without one column {name!r}")
    kind = schema.field(name).type
    is_number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    if not (
        is_number
        or pa.types.is_string(kind)
        or (is_time and pa.types.is_timestamp(kind) and kind.tz is None)
    ):
        raise NotOnDeviceError(f"column {name!r} of type {kind}")
    return kind


def _read_csv(
    frames: Frames, recipe: Preprocess, files: list[Path], columns: list[str]
) -> tuple[list[Any], list[list[int]]]:
    parts: list[Any] = []
    pieces: list[list[int]] = []
    for file in files:
        pieces.append([])
        for frame in _csv_frames(frames, recipe, file, columns):
            parts.append(frame)
            pieces[-1].append(len(frame))
        if not pieces[-1]:
            raise NotOnDeviceError(f"{file.name} is empty")
    return parts, pieces


def _csv_frames(
    frames: Frames, recipe: Preprocess, file: Path, columns: list[str]
) -> Iterator[Any]:
    """Blocks of a CSV file as frames. NotOnDeviceError from the first block that needs repair."""
    counts = RowCounts()
    text = CsvFile(recipe, file, counts)
    with _refusing(file), closing(text.blocks()) as blocks:
        for block in blocks:
            if len(set(text.names)) != len(text.names) or not set(columns) <= set(text.names):
                raise NotOnDeviceError(f"a header of {file.name} that lacks or repeats a column")
            lines = block.lstrip(b"\n")
            if not lines:
                continue
            lines += b"" if lines.endswith(b"\n") else b"\n"
            if not _is_plain(frames, lines, text):
                raise NotOnDeviceError(f"quotes or lines to repair in {file.name}")
            yield frames.read_csv(lines, text.names, columns, text.delimiter)[columns]
    if counts.counts:
        raise NotOnDeviceError(f"{file.name} is damaged")


def _is_plain(frames: Frames, block: bytes, text: CsvFile) -> bool:
    """Whether each line is one row without repair: UTF-8, no quotes, a value for each column.

    Spaces beside a delimiter are for the CPU reader: cuDF may read such text as missing.
    """
    delimiter, width = text.delimiter.encode(), len(text.names)
    blanks = [b" "] if delimiter == b"\t" else [b" ", b"\t"]
    if (
        width == 1
        or b'"' in block
        or b"\r" in block
        or (text.header and (block.startswith(text.header) or b"\n" + text.header in block))
        or any(
            blank + end in block or end + blank in block
            for blank in blanks
            for end in (delimiter, b"\n")
        )
        or block.startswith(tuple(blanks))
        or not is_utf8(block)
    ):
        return False
    arrays = frames.arrays
    codes = arrays.asarray(np.frombuffer(block, np.uint8))
    is_end = codes == ord("\n")
    separators = is_end[is_end | (codes == delimiter[0])]  # True at the end of a line
    if len(separators) % width:
        return False
    lines = separators.reshape(-1, width)
    return bool(lines[:, -1].all()) and not bool(lines[:, :-1].any())


def _block_rows(pieces: list[list[int]]) -> list[int]:
    """Rows of each block of `blocks.raw_blocks`, from the rows of each piece of each file."""
    return _merged(rows for of_file in pieces for rows in _merged(of_file))


def _merged(pieces: Iterable[int]) -> list[int]:
    """Sums of as many pieces as make a block; the last may be smaller."""
    sizes, size = [], 0
    for rows in pieces:
        size += rows
        if size >= log_files.BLOCK_ROWS:
            sizes.append(size)
            size = 0
    return [*sizes, size] if size else sizes
