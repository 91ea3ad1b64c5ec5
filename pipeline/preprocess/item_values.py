"""What training has last seen of each item, for a server to fill in where a request lacks it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import values
from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.fitted import Fitted
from pipeline.preprocess.ordering import stable_order

_ROWS = 4_000_000
"""Values that wait to be reduced to the newest of each item."""
_ORDER = "order"


class ItemValues:
    """Values of the features that describe items, newest last."""

    def __init__(self, fitted: Fitted) -> None:
        """Begins with those that `fitted` has of an earlier log."""
        self._fitted = fitted
        self._waiting: dict[str, list[pa.Table]] = {}
        if fitted.items is not None:
            known = fitted.items
            before = pa.array(np.full(len(known), -(2**63)))
            for name, columns in _columns(fitted).items():
                if columns[0] in known.column_names:
                    earlier = known.select([ITEM, *columns]).add_column(1, _ORDER, before)
                    self._waiting[name] = [earlier.filter(pc.is_valid(known[columns[0]]))]

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
        items = self._fitted.item.values
        columns = {ITEM: items}
        for waiting in self._waiting.values():
            newest = _newest(pa.concat_tables(waiting))
            place = pc.index_in(items, value_set=newest[ITEM].combine_chunks())
            for column in newest.column_names[2:]:
                columns[column] = newest[column].combine_chunks().take(place)
        return pa.table(columns)


def newest_of(fitted: Fitted, table: pa.Table) -> dict[str, pa.Table]:
    """The newest value of each item, by feature: `item_id`, its time as `order`, its columns."""
    features = _columns(fitted)
    if not features:
        return {}
    item = table[ITEM].combine_chunks()
    codes = item if pa.types.is_dictionary(item.type) else item.dictionary_encode()
    times = table[TIMESTAMP].to_numpy()
    order = stable_order(times)
    code = pc.fill_null(codes.indices, -1).to_numpy()[order]
    items = codes.dictionary.cast(fitted.item.values.type)
    found = {}
    whole: np.ndarray | None = None  # the same for all features that are nowhere missing
    for name, columns in features.items():
        column = table[columns[0]].combine_chunks()  # missing only if all values are
        known = column.is_valid().to_numpy(zero_copy_only=False)
        if _kind(fitted, name) == pa.float64():
            known = known & pc.fill_null(pc.is_finite(column), False).to_numpy(zero_copy_only=False)
        if not known.all():
            chosen = known[order]
            last = _last_of(order[chosen], code[chosen], len(items))
        else:
            last = whole = _last_of(order, code, len(items)) if whole is None else whole
        seen = np.flatnonzero(last >= 0)
        newest = {ITEM: items.take(pa.array(seen)), _ORDER: times[last[seen]]}
        for column_name in columns:
            taken = table[column_name].combine_chunks().take(pa.array(last[seen]))
            newest[column_name] = values.plain_text(taken).cast(_kind(fitted, name))
        found[name] = pa.table(newest)
    return found


def _last_of(rows: np.ndarray, code: np.ndarray, count: int) -> np.ndarray:
    """(count,) the last of the rows with each code, or -1."""
    last = np.full(count, -1)
    last[code[code >= 0]] = rows[code >= 0]  # the last that is assigned stays
    return last


def _columns(fitted: Fitted) -> dict[str, tuple[str, ...]]:
    """Of the features that describe items."""
    return {f.name: f.columns for f in fitted.recipe.features if f.of == "item"}


def _kind(fitted: Fitted, name: str) -> pa.DataType:
    learned = fitted.vocabularies.get(name) or fitted.target_encodings.get(name)
    if learned is None:
        return pa.float64()
    return pa.int64() if learned.type == "int64" else pa.string()


def _newest(table: pa.Table) -> pa.Table:
    """One row an item, the last of those with the greatest `order`, in the order of items."""
    codes = table[ITEM].combine_chunks().dictionary_encode()
    order = stable_order(table[_ORDER].to_numpy())
    last = np.zeros(len(codes.dictionary), np.int64)
    last[codes.indices.to_numpy()[order]] = order  # the last that is assigned stays
    chosen = table.take(pa.array(last))
    return chosen.take(pc.sort_indices(chosen[ITEM].combine_chunks()))
