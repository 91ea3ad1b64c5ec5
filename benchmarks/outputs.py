"""Comparison of the sessions of two programs, value by value, in bounded memory.

Raw values are compared, because the vocabularies may order values of equal counts differently.
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
"""Number of sessions that are compared at a time."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Sessions of a program: one row per session, a list column for each column of the log."""

    files: tuple[Path, ...]
    vocabularies: dict[str, Path]
    """Parquet file of values by column; the first value has the index FIRST_ITEM."""
    suffix: str = ""
    """Suffix of the names of list columns."""
    ticks_per_ms: int = 1
    """Ticks of a timestamp: 1 for milliseconds, 1,000 for microseconds."""
    in_order: bool = True
    """Compare sessions in the order of the files; otherwise sort them by id first."""

    def values(self, name: str) -> pa.Array:
        """Return the vocabulary of a categorical column, int64 or text, in the order of indices."""
        column = pq.read_table(self.vocabularies[name], columns=[name])[name]
        type_ = pa.int64() if pa.types.is_integer(column.type) else pa.string()
        return column.cast(type_).combine_chunks()


def compare_outputs(one: Output, other: Output) -> dict[str, Any]:
    """Return the first difference of two outputs as JSON facts.

    These are `same`, `sessions` (the number of compared ones) and `difference`: None, or column,
    session and the values of both sides, times in microseconds. Vocabularies must hold equal values
    in any order.
    """
    vocabularies = [{name: output.values(name) for name in CATEGORICAL} for output in (one, other)]
    for name in CATEGORICAL:
        difference = _vocabulary_difference(name, *(values[name] for values in vocabularies))
        if difference is not None:
            return {"same": False, "sessions": 0, "difference": difference}
    sessions = 0
    for first, second in zip(_parts(one), _parts(other), strict=True):
        difference = _part_difference(
            _Part(first, one, vocabularies[0]), _Part(second, other, vocabularies[1])
        )
        if difference is not None:
            return {"same": False, "sessions": sessions, "difference": difference}
        sessions += first.num_rows
        if first.num_rows < _SESSIONS:
            break
    return {"same": True, "sessions": sessions, "difference": None}


def _vocabulary_difference(name: str, one: pa.Array, other: pa.Array) -> dict[str, Any] | None:
    """Return sizes of vocabularies and a few values that only one holds; None if they agree."""
    missing = [a.filter(pc.invert(pc.is_in(a, b))) for a, b in ((one, other), (other, one))]
    if len(one) == len(other) and not any(map(len, missing)):
        return None
    first, second = (
        {"values": len(values), "alone": alone.slice(0, 5).to_pylist()}
        for values, alone in zip((one, other), missing, strict=True)
    )
    return _difference(name, None, first, second)


class _Part:
    """Decoded sessions of an output."""

    def __init__(self, table: pa.Table, output: Output, vocabularies: dict[str, pa.Array]) -> None:
        self._table = table
        self._output = output
        self._vocabularies = vocabularies
        self.sessions = table["session_id"].to_numpy()

    def lists(self, name: str) -> Any:
        """Return a column as one array of lists."""
        return self._table[name + self._output.suffix].combine_chunks()

    def lengths(self, name: str) -> np.ndarray:
        """Return the (sessions,) lengths of the lists, -1 for null."""
        return pc.fill_null(pc.list_value_length(self.lists(name)), -1).to_numpy()

    def raw(self, name: str) -> pa.Array:
        """Return the values of all lists, null where the index is not in the vocabulary."""
        values = pc.list_flatten(self.lists(name))
        if name == "timestamp":
            return pc.multiply(values, 1_000 // self._output.ticks_per_ms)
        if name == "price":
            return values.cast(pa.float64())
        vocabulary = self._vocabularies[name]
        rows = pc.subtract(values.cast(pa.int64()), FIRST_ITEM)
        inside = pc.and_(pc.greater_equal(rows, 0), pc.less(rows, len(vocabulary)))
        return vocabulary.take(pc.if_else(inside, rows, None))


def _part_difference(one: _Part, other: _Part) -> dict[str, Any] | None:
    count = min(len(one.sessions), len(other.sessions))
    unequal = np.flatnonzero(one.sessions[:count] != other.sessions[:count])
    if len(unequal) or len(one.sessions) != len(other.sessions):
        row = int(unequal[0]) if len(unequal) else count
        first, second = (
            int(side.sessions[row]) if row < len(side.sessions) else None for side in (one, other)
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
    """Return (interactions,) bool, whether values are equal; null equals nothing."""
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
    # JSON has no NaN
    return [None if value != value else value for value in values]


def _difference(column: str, session: int | None, one: Any, other: Any) -> dict[str, Any]:
    return {"column": column, "session_id": session, "one": one, "other": other}


def _parts(output: Output) -> Iterator[pa.Table]:
    """Yield `_SESSIONS` sessions at a time, at the end fewer or none.

    An output that must be sorted is held in memory.
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
    pending = pq.read_schema(output.files[0]).empty_table().select(names)
    for table in tables:
        pending = pa.concat_tables([pending, table])
        while pending.num_rows >= _SESSIONS:
            yield pending.slice(0, _SESSIONS)
            pending = pending.slice(_SESSIONS)
    yield pending


def _is_sorted(output: Output) -> bool:
    parts = [pq.read_table(file, columns=["session_id"])["session_id"] for file in output.files]
    return bool((np.diff(np.concatenate([part.to_numpy() for part in parts])) > 0).all())
