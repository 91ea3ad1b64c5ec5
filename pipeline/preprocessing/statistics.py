"""Counts of values and moments of numbers: of parts of a log, and how they come together."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.types import is_integer_dtype


def counts_of(part: Any, names: list[str]) -> dict[str, pa.Table]:
    """How often each value of these columns was seen, missing ones left out: `value`, `count`."""
    if not isinstance(part, pd.DataFrame):
        part = part[names].to_pandas()
    found = {}
    for name in names:
        counts = _value_counts(pa.array(part[name], from_pandas=True))
        if pa.types.is_null(counts["value"].type):  # no value, and so no type
            kind = pa.int64() if is_integer_dtype(part[name].dtype) else pa.string()
            counts = pa.table({"value": pa.array([], kind), "count": pa.array([], pa.int64())})
        found[name] = counts
    return found


def _value_counts(column: pa.Array) -> pa.Table:
    if pa.types.is_dictionary(column.type):
        seen = column.indices.drop_null().to_numpy()
        counts = np.bincount(seen, minlength=len(column.dictionary))
        found = pa.table({"value": column.dictionary, "count": counts})
        return found.filter(pc.greater(found["count"], 0))
    counted = pc.value_counts(column.drop_null())
    return pa.table({"value": counted.field(0), "count": counted.field(1)})


def summed(counts: list[pa.Table]) -> pa.Table:
    """Counts of several parts as one."""
    together = pa.concat_tables(counts).group_by("value").aggregate([("count", "sum")])
    return together.rename_columns(["value", "count"])


def merge_counts(parts: list[dict[str, pa.Table]]) -> dict[str, pa.Table]:
    """Counts of several parts, by column."""
    return {name: summed([part[name] for part in parts]) for name in parts[0]}


def vocabulary_of(counts: pa.Table, limit: int) -> pa.Array:
    """Values seen `limit` times or more, the most frequent first, equal ones by value."""
    kept = counts.filter(pc.greater_equal(counts["count"], limit))
    order = pc.sort_indices(kept, [("count", "descending"), ("value", "ascending")])
    return kept["value"].take(order).combine_chunks()


@dataclass(frozen=True)
class Moments:
    """Of the numbers of a column, missing ones left out."""

    count: int = 0
    total: float = 0.0
    """Their mean, or 0."""
    squares: float = 0.0
    """Sum of the squared differences from the mean."""
    low: float = math.inf
    high: float = -math.inf

    @property
    def mean(self) -> float:
        """0 where there is no number; of a constant, exactly that."""
        return self.low if self.low == self.high else self.total

    @property
    def deviation(self) -> float:
        """Of a sample; 0 of a constant, and where there are fewer than two."""
        if self.count < 2 or self.low == self.high:
            return 0.0
        return math.sqrt(self.squares / (self.count - 1))


def moments_of(part: Any, names: list[str]) -> dict[str, Moments]:
    """Of the numbers in these columns of a frame, pandas or cuDF."""
    return {name: _moments(_numbers(part[name])) for name in names}


def together(one: Moments, other: Moments) -> Moments:
    """Of both, without a difference of large sums (Chan, Golub, LeVeque 1979, equation 2.1)."""
    if not one.count or not other.count:
        return one if one.count else other
    count = one.count + other.count
    difference = other.total - one.total
    return Moments(
        count,
        one.total + difference * other.count / count,
        one.squares + other.squares + difference**2 * one.count * other.count / count,
        min(one.low, other.low),
        max(one.high, other.high),
    )


def merge_moments(parts: list[dict[str, Moments]]) -> dict[str, Moments]:
    """Moments of several parts, by column."""
    merged = dict.fromkeys(parts[0], Moments())
    for part in parts:
        merged = {name: together(found, part[name]) for name, found in merged.items()}
    return merged


def _moments(numbers: np.ndarray) -> Moments:
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return Moments()
    mean = float(known.mean())
    squares = float(np.square(known - mean).sum())
    return Moments(len(known), mean, squares, float(known.min()), float(known.max()))


def _numbers(column: Any) -> np.ndarray:
    """float64, missing as NaN."""
    column = column.to_pandas() if hasattr(column, "to_pandas") else column
    return column.to_numpy(np.float64, na_value=np.nan)
