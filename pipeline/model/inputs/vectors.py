"""Vectors from a file, keyed by raw id, in the order of a feature's indices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.parquet_bounds import check_expansion
from pipeline.data.values import to_array

LAYOUT = "Expected a column of ids and beside it one column of lists, or columns of numbers"


def read_vectors(
    path: str | Path, ids: "Sequence[str] | Sequence[int] | pa.Array", id_column: str | None = None
) -> tuple[Tensor, int]:
    """Read the vectors of `ids`, raw ids in the order of their indices, from a file.

    The file is Parquet or CSV (with a header): a column of ids, `id_column` or the first, and one
    column of lists or columns of numbers. Returns the matrix (3 + ids, P) and the number of ids
    that the file lacks. Reserved rows are 0; a missing id gets the mean of the other vectors.
    DataError for a missing file and for ids without exactly one vector of finite numbers.
    """
    path = Path(path)
    values = _as_array(ids)
    table = _read(path)
    name = id_column or table.column_names[0]
    if name not in table.column_names:
        raise DataError(
            f"{path} has no column {name!r}. Found: {', '.join(map(repr, table.column_names))}."
        )
    file_ids = _ids(path, to_array(table[name]), name, values.type)
    vectors = _numbers(path, table.drop_columns([name]), file_ids)  # (R, P)
    positions = pc.index_in(values, value_set=file_ids)
    present = positions.is_valid().to_numpy(zero_copy_only=False)
    if len(values) and not present.any():
        raise DataError(
            f"{path} has none of the {len(values)} ids: it begins with {file_ids[0].as_py()!r}, "
            f"they with {values[0].as_py()!r}. Write the same ids as the log has."
        )
    matrix = np.zeros((FIRST_ITEM + len(values), vectors.shape[1]), np.float32)
    rows = FIRST_ITEM + np.arange(len(values))
    own = vectors[positions.drop_null().to_numpy()]
    matrix[rows[present]] = own
    if len(own) < len(values):
        matrix[rows[~present]] = own.mean(0, dtype=np.float64)
    return torch.from_numpy(matrix), len(values) - len(own)


def _as_array(ids: "Sequence[str] | Sequence[int] | pa.Array") -> pa.Array:
    """Ids as an array of int64 or text. ConfigError for other ids."""
    try:
        array = pa.array(ids)
        if pa.types.is_integer(array.type):
            return array.cast(pa.int64())
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or not len(array):
            return array.cast(pa.string())
    except pa.ArrowException as error:
        raise ConfigError(f"ids are neither text nor integers: {_line(error)}") from None
    raise ConfigError(f"ids are {array.type}, expected text or integers.")


def _read(path: Path) -> pa.Table:
    """DataError if the file is missing, empty or neither Parquet nor CSV."""
    name = path.name.lower()
    if not path.is_file():
        reason = "is no file" if path.exists() else "does not exist"
        raise DataError(f"{path} {reason}. {LAYOUT}, in Parquet or CSV.")
    try:
        if name.endswith((".parquet", ".pq")):
            check_expansion(path)
            table = pq.ParquetFile(path).read()
            index = [n for n in table.column_names if n.startswith("__index_level_")]  # of pandas
            table = table.drop_columns(index)
        elif name.removesuffix(".gz").endswith((".csv", ".tsv")):
            table = _read_csv(path)
        else:
            raise DataError(f"{path}: expected a name that ends in .parquet, .csv or .tsv.")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {_line(error)}") from None
    names = table.column_names
    if len(set(names)) < len(names) or len(names) < 2:
        raise DataError(
            f"{path} has the columns {', '.join(map(repr, names)) or 'none'}. {LAYOUT}."
        )
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows. {LAYOUT}.")
    return table


def _read_csv(path: Path) -> pa.Table:
    """Read all columns as text, which keeps an id such as 00123."""
    tab = path.name.lower().removesuffix(".gz").endswith(".tsv")
    parse = pa.csv.ParseOptions(delimiter="\t" if tab else ",")
    with pa.input_stream(str(path), compression="detect") as stream:
        names = pa.csv.open_csv(stream, parse_options=parse).schema.names
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    with pa.input_stream(str(path), compression="detect") as stream:
        return pa.csv.read_csv(stream, parse_options=parse, convert_options=convert)


def _ids(path: Path, column: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
    """Ids of the file as `kind`, text or int64. DataError for other ids and for repeated ids."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    from_csv = not path.name.lower().endswith((".parquet", ".pq"))
    expected = "text" if kind == pa.string() else "integers"
    if column.null_count:
        raise DataError(f"{path}: {column.null_count} rows have no id in {name!r}. Leave them out.")
    try:
        if is_text if kind == pa.string() else pa.types.is_integer(column.type) or from_csv:
            column = column.cast(kind)
        else:
            raise DataError(
                f"{path}: the ids in {name!r} are {column.type}, those of the log are {expected}. "
                f"Write them as {expected}."
            )
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: the ids in {name!r} are not all {expected}, as those of the log are: "
            f"{_line(error)}"
        ) from None
    counts = pc.value_counts(column)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise DataError(
            f"{path}: {len(twice)} ids occur more than once, {twice[0]['values'].as_py()!r} "
            "is the first. Keep one vector each."
        )
    return column


def _numbers(path: Path, table: pa.Table, ids: pa.Array) -> NDArray[Any]:
    """(R, P) float32, finite."""
    columns = [to_array(column) for column in table.columns]
    if len(columns) == 1 and pa.types.is_string(columns[0].type):
        columns[0] = _split(columns[0])
    if len(columns) == 1 and _is_list(columns[0].type):
        lists = columns[0]
        lengths = pc.fill_null(pc.list_value_length(lists), 0)
        sizes = sorted(pc.unique(lengths).to_pylist())
        if len(sizes) > 1 or sizes == [0]:
            raise DataError(
                f"{path}: {table.column_names[0]!r} holds vectors of {sizes[0]} to {sizes[-1]} "
                "numbers, expected one length above 0 for all."
            )
        flat = _floats(path, pc.list_flatten(lists), table.column_names[0])
        vectors = flat.reshape(len(lists), -1)
    else:
        named = zip(table.column_names, columns, strict=True)
        vectors = np.stack([_floats(path, column, name) for name, column in named], 1)
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        first = ids[int(np.argmin(finite))].as_py()
        raise DataError(
            f"{path}: {int((~finite).sum())} vectors have numbers that are missing or not finite, "
            f"that of {first!r} is the first. Leave those ids out."
        )
    return vectors


def _split(texts: pa.Array) -> pa.Array:
    """Split vectors in one column of a CSV, `[0.1, 0.2]` or `0.1 0.2`, to lists."""
    trimmed = pc.utf8_trim(texts, characters="[]() ")
    return pc.split_pattern_regex(trimmed, pattern=r"[,;\s]+")


def _floats(path: Path, column: pa.Array, name: str) -> NDArray[Any]:
    """(N,) float32, NaN for a missing value."""
    kind = column.type
    try:
        if _is_list(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
            raise pa.ArrowInvalid(f"it holds {kind}")
        floats = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"{path}: {name!r} holds no numbers: {_line(error)}. {LAYOUT}.") from None
    with np.errstate(over="ignore"):
        return floats.astype(np.float32)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
