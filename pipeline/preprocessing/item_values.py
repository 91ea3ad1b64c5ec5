"""What is known of each item, for a server to fill in where a request lacks it.

Of features of the log that is what training has last seen; of an item table beside it, what stands
there, also for items that training has never seen.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.data import values
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.sorting.lookup import places, places_of
from pipeline.preprocessing.source import typed_block

_ROWS = 4_000_000
"""Values that wait to be reduced to the newest of each item."""
_PLACE = "place"
_ORDER = "order"
_SPARSE = 4
"""Times as many places as there are rows: then they are sorted, not counted in a table."""


class ItemValues:
    """Values of the features that describe items, newest last."""

    def __init__(self, fitted: Fitted) -> None:
        """Begins with those that `fitted` has of an earlier log."""
        self._fitted = fitted
        self._items = fitted.item.values
        self._waiting: dict[str, list[pa.Table]] = {}
        if fitted.items is not None:
            known = fitted.items
            place = pc.index_in(known[ITEM].combine_chunks(), value_set=self._items).cast("int64")
            before = pa.array(np.full(len(known), -(2**63)))
            for name, columns in _columns(fitted).items():
                if columns[0] in known.column_names:
                    earlier = pa.table({_PLACE: place, _ORDER: before})
                    for column in columns:
                        earlier = earlier.append_column(column, known[column])
                    there = pc.and_(pc.is_valid(place), pc.is_valid(known[columns[0]]))
                    self._waiting[name] = [earlier.filter(there)]

    def add(self, found: dict[str, pa.Table]) -> None:
        """Those of a part, by feature (`newest_of`)."""
        for name, table in found.items():
            waiting = self._waiting.setdefault(name, [])
            waiting.append(table)
            if len(waiting) > 1 and sum(len(part) for part in waiting[1:]) > _ROWS:
                self._waiting[name] = [_newest(pa.concat_tables(waiting))]

    def table(self, of_items: pa.Table | None = None) -> pa.Table | None:
        """`item_id` of all items that are known, and a column a feature.

        The catalogue comes first; behind it the further items of the table `of_items`
        (`tables.Joined.of_items`).
        """
        beside = None if of_items is None else _values_of(self._fitted, of_items)
        if not self._waiting and beside is None:
            return None
        items = self._items
        if beside is not None:
            known = places(beside[ITEM].combine_chunks(), items) >= 0
            further = beside[ITEM].combine_chunks().filter(pa.array(~known))
            items = pa.concat_arrays([items, further])
        columns = {ITEM: items}
        for name in list(self._waiting):
            newest = _newest(pa.concat_tables(self._waiting.pop(name)))
            row = np.full(len(items), -1)
            row[newest[_PLACE].to_numpy()] = np.arange(len(newest))
            taken = pa.array(row, mask=row < 0)
            for column in newest.column_names[2:]:
                columns[column] = newest[column].combine_chunks().take(taken)
        if beside is not None:
            row = places(items, beside[ITEM].combine_chunks())
            taken = pa.array(row, mask=row < 0)
            for column in beside.column_names[1:]:
                columns[column] = beside[column].combine_chunks().take(taken)
        return pa.table(columns)


def newest_of(fitted: Fitted, table: pa.Table) -> dict[str, pa.Table]:
    """The newest value of each item, by feature.

    The item's place in the catalogue, its time as `order`, and the feature's columns. Of equal
    times the last row counts.
    """
    features = _columns(fitted)
    if not features:
        return {}
    place = places_of(table[ITEM].combine_chunks(), fitted.item.values)
    times = table[TIMESTAMP].to_numpy()
    in_catalogue = place >= 0
    found = {}
    whole: np.ndarray | None = None  # the same for all features that are nowhere missing
    for name, columns in features.items():
        column = table[columns[0]].combine_chunks()  # missing only if all values are
        known = column.is_valid().to_numpy(zero_copy_only=False)
        if _kind(fitted, name) == pa.float64():
            known = known & pc.fill_null(pc.is_finite(column), False).to_numpy(zero_copy_only=False)
        if not known.all():
            rows = _last_of(place, times, known & in_catalogue)
        else:
            rows = whole = _last_of(place, times, in_catalogue) if whole is None else whole
        newest = {_PLACE: place[rows], _ORDER: times[rows]}
        for column_name in columns:
            taken = table[column_name].combine_chunks().take(pa.array(rows))
            newest[column_name] = values.plain_text(taken).cast(_kind(fitted, name))
        found[name] = pa.table(newest)
    return found


def _last_of(place: np.ndarray, order: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """The row of the greatest `order` at each place, by place; of equal ones the last.

    Of the `chosen` rows alone, (N,) bool.
    """
    rows = None if chosen is None or chosen.all() else np.flatnonzero(chosen)
    if rows is not None:
        place, order = place[rows], order[rows]
    size = int(place.max(initial=-1)) + 1
    seen = None
    if size > _SPARSE * len(place):
        seen, place = np.unique(place, return_inverse=True)
        size = len(seen)
    greatest = np.full(size, np.iinfo(np.int64).min)
    np.maximum.at(greatest, place, order)
    newest = np.flatnonzero(order == greatest[place])
    last = np.full(size, -1)
    last[place[newest]] = newest  # the last that is assigned stays
    found = last[last >= 0]
    return found if rows is None else rows[found]


def _values_of(fitted: Fitted, of_items: pa.Table) -> pa.Table:
    """Of an item table, `item_id` and columns of features as the log would have them.

    Without the ids that are no integer where the catalogue has integers.
    """
    features = tuple(f for f in fitted.recipe.features if f.of == "item" and f.table)
    reader = fitted.recipe.model_copy(update={"features": features, "timestamp": None})
    types = {name: vocabulary.type for name, vocabulary in fitted.of_columns.items()}
    block = of_items.append_column(SESSION, of_items[ITEM])
    typed = typed_block(reader, block, 0, types).table
    columns = {ITEM: values.plain_text(typed[ITEM].combine_chunks())}
    for feature in features:
        for name in feature.columns:
            column = values.plain_text(typed[name].combine_chunks())
            columns[name] = _finite(column).cast(_kind(fitted, feature.name))
    found = pa.table(columns)
    if fitted.item.type == "int64":
        found = found.filter(pc.not_equal(found[ITEM], values.UNKNOWN_INTEGER))
    return found


def _finite(column: pa.Array) -> pa.Array:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, None)


def _columns(fitted: Fitted) -> dict[str, tuple[str, ...]]:
    """Of the features of the log that describe items."""
    return {f.name: f.columns for f in fitted.recipe.features if f.of == "item" and not f.table}


def _kind(fitted: Fitted, name: str) -> pa.DataType:
    learned = fitted.vocabularies.get(name) or fitted.target_encodings.get(name)
    if learned is None:
        return pa.float64()
    return pa.int64() if learned.type == "int64" else pa.string()


def _newest(table: pa.Table) -> pa.Table:
    """One row an item, the last of those with the greatest `order`, in the order of places."""
    rows = _last_of(table[_PLACE].to_numpy(), table[_ORDER].to_numpy())
    return table.take(pa.array(rows))
