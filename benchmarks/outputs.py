"""Whether two programs wrote the same sessions, value by value, in bounded memory.

Each encodes by a vocabulary of its own, in which values of equal counts may come in another order:
raw values are what is compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.columns import FIRST_ITEM

CATEGORICAL = ("item_id", "category", "event")
COLUMNS = (*CATEGORICAL, "price", "timestamp")
PRICE_TOLERANCE = 1e-4
_SESSIONS = 65_536
"""At a time."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a program wrote: a row a session, a list an interaction's column."""

    files: tuple[Path, ...]
    vocabularies: dict[str, Path]
    """A file of the values by column, the first of them with the index FIRST_ITEM."""
    suffix: str = ""
    """Of the names of list columns."""
    ticks_per_ms: int = 1
    """Unit of the timestamps: 1, or 1,000 for microseconds."""
    in_order: bool = True
    """Sessions are compared as they lie; otherwise they are sorted by their ids first."""

    def values(self, name: str) -> pa.Array:
        """The values of a categorical column, integers or texts, in the order of indices."""
        column = pq.read_table(self.vocabularies[name], columns=[name])[name]
        wanted = pa.int64() if pa.types.is_integer(column.type) else pa.string()
        return pa.concat_arrays(column.cast(wanted).chunks or [pa.array([], wanted)])


def compare_outputs(one: Output, other: Output) -> dict[str, Any]:
    """The first difference of `other` from `one`.

    Gives `same`, `sessions` (those that were compared) and `difference`: None, or the column, the
    session and what stands there on both sides, times in microseconds. Of vocabularies the values
    must be the same.
    """
    vocabularies = [{name: output.values(name) for name in CATEGORICAL} for output in (one, other)]
    for name in CATEGORICAL:
        found = _difference_of_values(name, *(known[name] for known in vocabularies))
        if found is not None:
            return {"same": False, "sessions": 0, "difference": found}
    sessions = 0
    for first, second in zip(_parts(one), _parts(other), strict=True):
        found = _difference_of_parts(
            _Part(first, one, vocabularies[0]), _Part(second, other, vocabularies[1])
        )
        if found is not None:
            return {"same": False, "sessions": sessions, "difference": found}
        sessions += first.num_rows
        if first.num_rows < _SESSIONS:
            break
    return {"same": True, "sessions": sessions, "difference": None}


def _difference_of_values(name: str, one: pa.Array, other: pa.Array) -> dict[str, Any] | None:
    """Values of a vocabulary that the other has not, whatever their order; a few of them."""
    lacking = [a.filter(pc.invert(pc.is_in(a, b))) for a, b in ((one, other), (other, one))]
    if len(one) == len(other) and not any(map(len, lacking)):
        return None
    first, second = (
        {"values": len(values), "alone": alone.slice(0, 5).to_pylist()}
        for values, alone in zip((one, other), lacking, strict=True)
    )
    return _difference(name, None, first, second)


class _Part:
    """Some sessions of an output, decoded."""

    def __init__(self, table: pa.Table, output: Output, vocabularies: dict[str, pa.Array]) -> None:
        self._table = table
        self._output = output
        self._vocabularies = vocabularies
        self.sessions = table["session_id"].to_numpy()

    def lists(self, name: str) -> Any:
        """The column as one array of lists."""
        return self._table[name + self._output.suffix].combine_chunks()

    def lengths(self, name: str) -> np.ndarray:
        """(sessions,) of the lists; -1 where there is none."""
        return pc.fill_null(pc.list_value_length(self.lists(name)), -1).to_numpy()

    def raw(self, name: str) -> pa.Array:
        """The values of all lists, null where an index stands for no value."""
        values = pc.list_flatten(self.lists(name))
        if name == "timestamp":
            return pc.multiply(values, 1_000 // self._output.ticks_per_ms)
        if name == "price":
            return values.cast(pa.float64())
        known = self._vocabularies[name]
        places = pc.subtract(values.cast(pa.int64()), FIRST_ITEM)
        inside = pc.and_(pc.greater_equal(places, 0), pc.less(places, len(known)))
        return known.take(pc.if_else(inside, places, None))


def _difference_of_parts(one: _Part, other: _Part) -> dict[str, Any] | None:
    count = min(len(one.sessions), len(other.sessions))
    unequal = np.flatnonzero(one.sessions[:count] != other.sessions[:count])
    if len(unequal) or len(one.sessions) != len(other.sessions):
        place = int(unequal[0]) if len(unequal) else count
        first, second = (
            int(side.sessions[place]) if place < len(side.sessions) else None
            for side in (one, other)
        )
        return _difference("session_id", first if first is not None else second, first, second)
    for name in COLUMNS:
        lengths, theirs = one.lengths(name), other.lengths(name)
        if len(unequal := np.flatnonzero(lengths != theirs)):
            row = int(unequal[0])
        elif len(unequal := np.flatnonzero(~_equal(name, one.raw(name), other.raw(name)))):
            row = int(np.searchsorted(np.cumsum(lengths), unequal[0], side="right"))
        else:
            continue
        lists = [_list_at(side, name, row) for side in (one, other)]
        return _difference(name, int(one.sessions[row]), *lists)
    return None


def _equal(name: str, one: pa.Array, other: pa.Array) -> np.ndarray:
    """(interactions,) whether they are the same; what is missing is never."""
    if name == "price":
        differences = pc.abs(pc.subtract(one, other))
        same = pc.less_equal(differences, PRICE_TOLERANCE)
    else:
        same = pc.equal(one, other)
    return pc.fill_null(same, False).to_numpy(zero_copy_only=False)


def _list_at(part: _Part, name: str, row: int) -> list[Any]:
    lengths = np.maximum(part.lengths(name), 0)
    begin = int(lengths[:row].sum())
    values = part.raw(name).slice(begin, int(lengths[row])).to_pylist()
    # a number that is none has no place in JSON
    return [None if value != value else value for value in values]


def _difference(column: str, session: int | None, one: Any, other: Any) -> dict[str, Any]:
    return {"column": column, "session_id": session, "one": one, "other": other}


def _parts(output: Output) -> Iterator[pa.Table]:
    """Sessions, so many at a time, the last part shorter or empty.

    Those that have to be sorted are all in memory.
    """
    names = ["session_id", *(name + output.suffix for name in COLUMNS)]
    tables: Iterator[pa.Table]
    if output.in_order or _is_sorted(output):
        tables = (
            pa.Table.from_batches([batch])
            for file in output.files
            for batch in pq.ParquetFile(file).iter_batches(_SESSIONS, columns=names)
        )
    else:
        whole = pa.concat_tables(pq.read_table(file, columns=names) for file in output.files)
        tables = iter([whole.sort_by("session_id")])
    held = pq.read_schema(output.files[0]).empty_table().select(names)
    for table in tables:
        held = pa.concat_tables([held, table])
        while held.num_rows >= _SESSIONS:
            yield held.slice(0, _SESSIONS)
            held = held.slice(_SESSIONS)
    yield held


def _is_sorted(output: Output) -> bool:
    parts = [pq.read_table(file, columns=["session_id"])["session_id"] for file in output.files]
    return bool((np.diff(np.concatenate([part.to_numpy() for part in parts])) > 0).all())
