"""The table of item values, from which a server fills in features that a request lacks.

Features of the log have their newest value in training; features of an item table have the values
of the table, also for items that are not in the training log.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.data import values
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.blocks import typed_block
from pipeline.preprocessing.lookup import column_positions, positions
from pipeline.preprocessing.statistics import MergeBuffer

_INDEX, _TIME = "#index", "#time"
"""Columns of the buffered tables: position in the catalogue, and time in microseconds."""
_SPARSE = 4
"""Ratio of positions to rows from which on positions are sorted instead of counted."""


class ItemValues:
    """Newest values of the features that describe items, collected part by part.

    Starts from the values of an earlier log in `fitted`.
    """

    def __init__(self, fitted: Fitted) -> None:
        self._fitted = fitted
        self._items = fitted.item.values
        self._newest = MergeBuffer(lambda _, tables: _newest(pa.concat_tables(tables)))
        if fitted.items is not None:
            earlier = fitted.items
            index = pc.index_in(earlier[ITEM].combine_chunks(), value_set=self._items).cast("int64")
            before_all = pa.array(np.full(len(earlier), -(2**63)))
            for name, columns in _item_columns(fitted).items():
                if columns[0] in earlier.column_names:
                    table = pa.table({_INDEX: index, _TIME: before_all})
                    for column in columns:
                        table = table.append_column(column, earlier[column])
                    has_value = pc.and_(pc.is_valid(index), pc.is_valid(earlier[columns[0]]))
                    self._newest.add(name, table.filter(has_value))

    def add(self, newest: dict[str, pa.Table]) -> None:
        """Add the `newest_values` of a part."""
        for name, table in newest.items():
            self._newest.add(name, table)

    def table(self, item_table: pa.Table | None = None) -> pa.Table | None:
        """`item_id` and a column for each feature column; None without such a feature.

        The catalogue comes first, then further items of `item_table` (`SideTables.items`).
        """
        side_table = None if item_table is None else _typed_items(self._fitted, item_table)
        newest = dict(self._newest.merged())
        if not newest and side_table is None:
            return None
        items = self._items
        if side_table is not None:
            keys = side_table[ITEM].combine_chunks()
            is_new = pa.array(positions(keys, items) < 0)
            items = pa.concat_arrays([items, keys.filter(is_new)])
        columns = {ITEM: items}
        for of_feature in newest.values():
            row = np.full(len(items), -1)
            row[of_feature[_INDEX].to_numpy()] = np.arange(len(of_feature))
            columns |= _take(of_feature.drop_columns([_INDEX, _TIME]), row)
        if side_table is not None:
            row = positions(items, side_table[ITEM].combine_chunks())
            columns |= _take(side_table.drop_columns([ITEM]), row)
        return pa.table(columns)


def _take(table: pa.Table, row: NDArray[Any]) -> dict[str, pa.Array]:
    """Values of each column at the (N,) rows, null at -1."""
    indices = pa.array(row, mask=row < 0)
    return {name: table[name].combine_chunks().take(indices) for name in table.column_names}


def newest_values(fitted: Fitted, table: pa.Table) -> dict[str, pa.Table]:
    """Newest value of each item in these interactions, by feature.

    Each table holds the position in the catalogue, the time, and the columns of the feature. For
    equal times the last row counts.
    """
    features = _item_columns(fitted)
    if not features:
        return {}
    index = column_positions(table[ITEM].combine_chunks(), fitted.item.values)
    times = table[TIMESTAMP].to_numpy()
    in_catalogue = index >= 0
    newest = {}
    rows_of_all: NDArray[Any] | None = None  # shared by all features without a missing value
    for name, columns in features.items():
        column = table[columns[0]].combine_chunks()  # null only if all columns are
        is_valid = column.is_valid().to_numpy(zero_copy_only=False)
        kind = _value_type(fitted, name)
        if kind == pa.float64():
            is_finite = pc.fill_null(pc.is_finite(column), False)
            is_valid = is_valid & is_finite.to_numpy(zero_copy_only=False)
        if not is_valid.all():
            rows = _newest_rows(index, times, is_valid & in_catalogue)
        else:
            if rows_of_all is None:
                rows_of_all = _newest_rows(index, times, in_catalogue)
            rows = rows_of_all
        arrays = {_INDEX: index[rows], _TIME: times[rows]}
        for column_name in columns:
            column = table[column_name].combine_chunks().take(pa.array(rows))
            arrays[column_name] = values.decode_dictionary(column).cast(kind)
        newest[name] = pa.table(arrays)
    return newest


def _newest_rows(
    index: NDArray[Any], time: NDArray[Any], mask: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Row of the greatest `time` for each `index`, ascending by index; the last row of ties.

    `mask` (N,) bool selects the rows that count.
    """
    selected = None if mask is None or mask.all() else np.flatnonzero(mask)
    if selected is not None:
        index, time = index[selected], time[selected]
    size = int(index.max(initial=-1)) + 1
    if size > _SPARSE * len(index):
        unique, index = np.unique(index, return_inverse=True)
        size = len(unique)
    greatest = np.full(size, np.iinfo(np.int64).min)
    np.maximum.at(greatest, index, time)
    newest = np.flatnonzero(time == greatest[index])
    last = np.full(size, -1)
    last[index[newest]] = newest  # the last of several assignments stays
    rows = last[last >= 0]
    return rows if selected is None else selected[rows]


def _newest(table: pa.Table) -> pa.Table:
    """The newest row of each item, ascending by position."""
    rows = _newest_rows(table[_INDEX].to_numpy(), table[_TIME].to_numpy())
    return table.take(pa.array(rows))


def _typed_items(fitted: Fitted, item_table: pa.Table) -> pa.Table:
    """`item_id` and feature columns of an item table in the types of the log.

    Rows whose id is not an integer are left out if the catalogue has integers.
    """
    features = fitted.recipe.table_features("item")
    reader = fitted.recipe.model_copy(update={"features": features, "timestamp": None})
    types = {name: vocabulary.type for name, vocabulary in fitted.of_columns.items()}
    block = item_table.append_column(SESSION, item_table[ITEM])
    typed = typed_block(reader, block, 0, types).table
    columns = {ITEM: values.decode_dictionary(typed[ITEM].combine_chunks())}
    for feature in features:
        for name in feature.columns:
            column = values.decode_dictionary(typed[name].combine_chunks())
            if pa.types.is_floating(column.type):
                column = pc.if_else(pc.is_finite(column), column, None)
            columns[name] = column.cast(_value_type(fitted, feature.name))
    table = pa.table(columns)
    if fitted.item.type == "int64":
        table = table.filter(pc.not_equal(table[ITEM], values.UNKNOWN_INTEGER))
    return table


def _item_columns(fitted: Fitted) -> dict[str, tuple[str, ...]]:
    """Columns of the features of the log that describe items, by feature."""
    in_table = fitted.recipe.table_features("item")
    features = (f for f in fitted.recipe.features if f.of == "item" and f not in in_table)
    return {f.name: f.columns for f in features}


def _value_type(fitted: Fitted, name: str) -> pa.DataType:
    """Type of a feature's raw values."""
    learned = fitted.vocabularies.get(name) or fitted.target_encodings.get(name)
    if learned is None:
        return pa.float64()
    return pa.int64() if learned.type == "int64" else pa.string()
