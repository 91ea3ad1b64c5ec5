"""Columns as Parquet and frames hold them: lists taken apart, text made readable."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import ITEM
from pipeline.core.errors import DataError
from pipeline.data.values import category_chunk, plain, plain_text
from pipeline.logs.row_counts import NO_UTF8, Report
from pipeline.logs.text import windows_1252

_TEXTS = {
    pa.string(), pa.large_string(), pa.string_view(),
    pa.binary(), pa.large_binary(), pa.binary_view(),
}  # fmt: skip


def explode(table: pa.Table, where: str, report: Report, several: Collection[str] = ()) -> pa.Table:
    """Rows that hold whole sessions in list columns to one row an interaction.

    Lists of `several` are such only where the item is one, too. Rows without an interaction are
    counted.
    """
    lists = [n for n in table.column_names if _is_list(table[n].type)]
    if ITEM not in lists:
        lists = [name for name in lists if name not in several]
    if not lists:
        return table
    if ITEM not in lists:
        raise DataError(f"{where}: {lists[0]} is a list column but the item is not.")
    lengths = _list_lengths(table[ITEM])
    for name in lists:
        if not np.array_equal(_list_lengths(table[name]), lengths):
            raise DataError(f"{where}: lists of {name} and of {ITEM} differ in length.")
    if empty := int((lengths == 0).sum()):
        report.counted["rows of lists without an item"] += empty
    rows = np.repeat(np.arange(table.num_rows), lengths)
    columns = {}
    for name in table.column_names:
        if name in lists:
            columns[name] = pc.list_flatten(table[name])
        else:
            columns[name] = table[name].take(pa.array(rows))
    return pa.table(columns)


def joined(
    column: pa.ChunkedArray, separator: str, name: str, where: str, report: Report
) -> pa.ChunkedArray:
    """Lists of several categories as one text each; what is no list as it is."""
    if not _is_list(column.type):
        return column
    words = readable(pc.list_flatten(column), name, where, report)
    text, _ = category_chunk(plain(words), "string")
    offsets = np.concatenate([[0], np.cumsum(_list_lengths(column))])
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pc.fill_null(plain_text(text), "")
    )
    return pa.chunked_array([pc.binary_join(lists, separator)])


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy()


def readable(column: pa.ChunkedArray, name: str, where: str, report: Report) -> pa.ChunkedArray:
    """Text is UTF-8 without NUL. DataError for what is neither text nor a number nor a time."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        pa.array([], kind).cast(pa.string())
    except pa.ArrowException:
        raise DataError(f"{where}: {name} holds {kind}, expected text, numbers or times.") from None
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())  # half of Arrow's functions do not know it
    if kind not in _TEXTS and not pa.types.is_fixed_size_binary(kind):
        return column
    if column.type != pa.string():
        column = column.cast(kind) if pa.types.is_dictionary(column.type) else column
        column = column.cast(pa.binary())
    try:
        column = column.cast(pa.binary()).cast(pa.string())  # checks; copies nothing
    except pa.ArrowInvalid:
        column = _repaired(column.cast(pa.binary()), report)
    return _without_nul(column, report)


def _repaired(column: pa.ChunkedArray, report: Report) -> pa.ChunkedArray:
    chunks = []
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode()
        texts, broken = [], []
        for value in encoded.dictionary.to_pylist():
            try:
                texts.append(value.decode())
                broken.append(False)
            except UnicodeDecodeError:
                texts.append(windows_1252(value))
                broken.append(True)
        chunks.append(pa.array(texts, pa.string()).take(encoded.indices))
        found = pa.array(broken, pa.bool_()).take(encoded.indices)
        report.repaired[NO_UTF8] += pc.sum(found).as_py() or 0
    return pa.chunked_array(chunks, pa.string())


def _without_nul(column: pa.ChunkedArray, report: Report) -> pa.ChunkedArray:
    for chunk in column.chunks:
        text = chunk.buffers()[2]
        if text is not None and (np.frombuffer(text, np.uint8) == 0).any():
            report.repaired["NUL bytes taken out"] += (
                pc.sum(pc.count_substring(column, "\0")).as_py() or 0
            )
            return pc.replace_substring(column, "\0", "")
    return column


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
