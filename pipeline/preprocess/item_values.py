"""What training has last seen of each item, for a server to fill in where a request lacks it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import values
from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.fitted import Fitted
from pipeline.preprocess.lookup import places_of

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

    def table(self) -> pa.Table | None:
        """`item_id` of all items that are known, and a column a feature."""
        if not self._waiting:
            return None
        columns = {ITEM: self._items}
        for name in list(self._waiting):
            newest = _newest(pa.concat_tables(self._waiting.pop(name)))
            row = np.full(len(self._items), -1)
            row[newest[_PLACE].to_numpy()] = np.arange(len(newest))
            taken = pa.array(row, mask=row < 0)
            for column in newest.column_names[2:]:
                columns[column] = newest[column].combine_chunks().take(taken)
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


def _columns(fitted: Fitted) -> dict[str, tuple[str, ...]]:
    """Of the features that describe items."""
    return {f.name: f.columns for f in fitted.recipe.features if f.of == "item"}


def _kind(fitted: Fitted, name: str) -> pa.DataType:
    learned = fitted.vocabularies.get(name) or fitted.target_encodings.get(name)
    if learned is None:
        return pa.float64()
    return pa.int64() if learned.type == "int64" else pa.string()


def _newest(table: pa.Table) -> pa.Table:
    """One row an item, the last of those with the greatest `order`, in the order of places."""
    rows = _last_of(table[_PLACE].to_numpy(), table[_ORDER].to_numpy())
    return table.take(pa.array(rows))
