"""Columns of Parquet files and frames: canonical names, lists exploded, text decoded.

Canonical columns are `session_id`, `item_id`, `timestamp` and the names of the features; their
values are those of the file.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, ORDER, SESSION, SPLIT, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.data.values import category_chunk, decode_dictionary, to_array
from pipeline.logs.row_counts import NO_UTF8, RowCounts
from pipeline.logs.text import decode
from pipeline.recipe.features import CategoryFeature, ColumnFeature, Feature, TargetEncodedFeature
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.lookups import SEPARATOR_IN_TAG

_STRINGS = {pa.string(), pa.large_string(), pa.string_view()}
_TEXTS = {*_STRINGS, pa.binary(), pa.large_binary(), pa.binary_view()}
_RECBOLE_TYPE = re.compile(r":(?:token|float)(?:_seq)?\Z")
_UUID_BYTES = 16
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_NO_FOLDER_VALUE = "__HIVE_DEFAULT_PARTITION__"


def log_columns(recipe: Preprocess) -> dict[str, str]:
    """Columns of the log by canonical name."""
    columns = {SESSION: recipe.session, ITEM: recipe.item}
    if recipe.timestamp:
        columns[TIMESTAMP] = recipe.timestamp.column
    columns |= {f"{ORDER}{number}": column for number, column in enumerate(recipe.order)}
    if recipe.split_column is not None:
        columns[SPLIT] = recipe.split_column
    return columns | feature_columns(recipe)


def feature_columns(recipe: Preprocess) -> dict[str, str]:
    """Columns of the log that features are read or made from, by canonical name."""
    columns = {
        f.name: f.source
        for f in recipe.read_features
        if isinstance(f, TargetEncodedFeature) or (isinstance(f, ColumnFeature) and not f.table)
    }
    columns |= {f.target_column: f.mean_of for f in recipe.target_encoded_features}
    return columns | {
        input_name(f, name): name for f in recipe.operator_features for name in f.inputs
    }


def recipe_names(recipe: Preprocess, names: list[str]) -> list[str]:
    """Column names as the recipe writes them.

    `item` is short for `events.item` with `explode: events`, and for RecBole's `item:token`.
    """
    absent = set(log_columns(recipe).values()) - set(names)
    short = [_RECBOLE_TYPE.sub("", name).removeprefix(f"{recipe.explode}.") for name in names]
    return [new if new in absent else name for name, new in zip(names, short, strict=True)]


def folder_values(recipe: Preprocess, file: Path) -> dict[str, str | None]:
    """Values of recipe columns in the folders of a path, such as `day=2020-01-01`."""
    pairs = [part.split("=", 1) for part in file.absolute().parts[:-1] if "=" in part]
    columns = set(log_columns(recipe).values())
    return {
        unquote(key): None if value == _NO_FOLDER_VALUE else unquote(value)
        for key, value in pairs
        if unquote(key) in columns
    }


def input_name(feature: Feature, column: str) -> str:
    """Canonical name of an input of an operator feature; no feature has a name with a dot."""
    return f"{feature.name}.{column}"


def read_frame(recipe: Preprocess, frame: pd.DataFrame) -> pa.Table:
    """Canonical columns of a frame that has the columns of the log.

    DataError if the column of the session or the item is missing; other columns are optional.
    """
    columns = {name: c for name, c in log_columns(recipe).items() if c in frame.columns}
    for name, column in ((SESSION, recipe.session), (ITEM, recipe.item)):
        if name not in columns:
            raise DataError(f"The frame has no column {column!r}. It has: {list(frame.columns)}.")
    try:
        table = pa.Table.from_pandas(frame[list(dict.fromkeys(columns.values()))])
    except (pa.ArrowException, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"The frame cannot be read: {line}") from None
    return canonical_table(recipe, table, "The frame", RowCounts())


def canonical_table(
    recipe: Preprocess, table: pa.Table, source: str, row_counts: RowCounts
) -> pa.Table:
    """Canonical columns of a table with one interaction or one session per row.

    Columns that the table lacks are left out. `source` names the table in errors.
    """
    separators = {f.name: f.separator for f in recipe.multi_valued_features}
    for f in recipe.operator_features:
        separator = f.separator if isinstance(f, CategoryFeature) else "|"
        texts = (input_name(f, column) for column, kind in f.inputs.items() if kind == "text")
        separators |= dict.fromkeys(texts, separator)
    names = {name: c for name, c in log_columns(recipe).items() if c in table.column_names}
    table = pa.table({name: table[column] for name, column in names.items()})
    table = explode_lists(table, source, row_counts, separators)
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name in separators:
            column = join_lists(column, separators[name], name, source, row_counts)
        columns[name] = decode_text(column, name, source, row_counts)
    return pa.table(columns)


def explode_lists(
    table: pa.Table, source: str, row_counts: RowCounts, multi_valued: Collection[str] = ()
) -> pa.Table:
    """Explode lists to one row per interaction; without lists the table is returned unchanged.

    A list in a `multi_valued` column is a session only if the item column holds lists too. Empty
    sessions are counted as warnings.
    """
    lists = [name for name in table.column_names if _is_list(table[name].type)]
    if ITEM not in lists:
        lists = [name for name in lists if name not in multi_valued]
    if not lists:
        return table
    if ITEM not in lists:
        raise DataError(f"{source}: {lists[0]} is a list column but the item is not.")
    lengths = _list_lengths(table[ITEM])
    for name in lists:
        if not np.array_equal(_list_lengths(table[name]), lengths):
            raise DataError(f"{source}: lists of {name} and of {ITEM} differ in length.")
    if empty := int((lengths == 0).sum()):
        row_counts.warnings["rows of lists without an item"] += empty
    rows = pa.array(np.repeat(np.arange(table.num_rows), lengths))
    columns = {
        name: pc.list_flatten(table[name]) if name in lists else table[name].take(rows)
        for name in table.column_names
    }
    return pa.table(columns)


def join_lists(
    column: pa.ChunkedArray, separator: str, name: str, source: str, row_counts: RowCounts
) -> pa.ChunkedArray:
    """Join each list of categories to one text; a column without lists is returned unchanged."""
    if not _is_list(column.type):
        return column
    words = decode_text(pc.list_flatten(column), name, source, row_counts)
    text, _ = category_chunk(to_array(words), "string")
    text = pc.replace_substring(decode_dictionary(text), separator, SEPARATOR_IN_TAG)
    offsets = np.concatenate([[0], np.cumsum(_list_lengths(column))])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pc.fill_null(text, ""))
    return pa.chunked_array([pc.binary_join(lists, separator)])


def decode_text(
    column: pa.ChunkedArray, name: str, source: str, row_counts: RowCounts
) -> pa.ChunkedArray:
    """Decode text to UTF-8 without NUL, other bytes to hexadecimal; keep numbers and times.

    DataError for any other type.
    """
    if isinstance(column.type, pa.BaseExtensionType):  # such as arrow.uuid
        column = column.cast(column.type.storage_type)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        pa.array([], kind).cast(pa.string())
    except pa.ArrowException:
        raise DataError(
            f"{source}: {name} holds {kind}, expected text, numbers or times."
        ) from None
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())  # half of Arrow's functions lack float16
    if kind not in _TEXTS and not pa.types.is_fixed_size_binary(kind):
        return column
    column = column.cast(kind) if pa.types.is_dictionary(column.type) else column
    has_bytes = kind not in _STRINGS and _has_control_character(column)
    column = column.cast(pa.binary())
    try:
        text = column.cast(pa.string())  # validates without copying
    except pa.ArrowInvalid:
        text = None
    if text is None or has_bytes:
        text = _decode_each(column, row_counts, is_binary=kind not in _STRINGS)
    column = text
    return _remove_nul(column, row_counts)


def _has_control_character(column: pa.ChunkedArray) -> bool:
    """Whether a binary value has a control character, so that it is not text."""
    for chunk in column.cast(pa.large_binary()).chunks:
        if (data := chunk.buffers()[2]) is not None:
            codes = np.frombuffer(data, np.uint8)
            if ((codes < ord("\t")) | ((codes > ord("\r")) & (codes < ord(" ")))).any():
                return True
    return False


def replace_missing(recipe: Preprocess, table: pa.Table, row_counts: RowCounts) -> pa.Table:
    """Replace the values listed in `missing` of the recipe by null."""
    for index, name in enumerate(table.column_names if recipe.missing else ()):
        column = table[name]
        is_text = pa.types.is_string(column.type)
        words = pa.array(recipe.missing)
        if not is_text:
            words = pa.array(pd.to_numeric(words.to_pandas(), errors="coerce")).drop_null()
        if is_text or pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            is_missing = pc.is_in(column if is_text else column.cast(pa.float64()), words)
            row_counts.repaired[f"values of {name} that `missing` names"] += (
                pc.sum(is_missing).as_py() or 0
            )
            table = table.set_column(index, name, pc.if_else(is_missing, None, column))
    return table


def _decode_each(
    column: pa.ChunkedArray, row_counts: RowCounts, *, is_binary: bool
) -> pa.ChunkedArray:
    """Decode each distinct value alone, so that it does not depend on the block.

    Text is UTF-8, else Windows-1252. In a binary column, 16 bytes that are not UTF-8 are a UUID,
    and bytes with a control character become hexadecimal digits.
    """
    chunks = []
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode()
        values = [
            _decode_binary(v) if is_binary else decode(v) for v in encoded.dictionary.to_pylist()
        ]
        texts = pa.array([text for text, _ in values], pa.string())
        chunks.append(texts.take(encoded.indices))
        is_repaired = pa.array([repaired for _, repaired in values], pa.bool_())
        repaired = is_repaired.take(encoded.indices)
        row_counts.repaired[NO_UTF8] += pc.sum(repaired).as_py() or 0
    return pa.chunked_array(chunks, pa.string())


def _decode_binary(value: bytes) -> tuple[str, bool]:
    """Text of bytes, and whether it is Windows-1252."""
    has_control = _CONTROL.search(value) is not None
    text, is_windows_1252 = decode(value)
    if len(value) == _UUID_BYTES and (has_control or is_windows_1252):
        return str(UUID(bytes=value)), False
    return (value.hex(), False) if has_control else (text, is_windows_1252)


def _remove_nul(column: pa.ChunkedArray, row_counts: RowCounts) -> pa.ChunkedArray:
    for chunk in column.chunks:
        text = chunk.buffers()[2]
        if text is not None and text.size and not np.frombuffer(text, np.uint8).min():
            count = pc.sum(pc.count_substring(column, "\0")).as_py() or 0
            row_counts.repaired["NUL bytes taken out"] += count
            return pc.replace_substring(column, "\0", "")
    return column


def _list_lengths(column: pa.ChunkedArray) -> NDArray[Any]:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy()


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
