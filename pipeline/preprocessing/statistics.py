"""Value counts and moments of columns, computed by part and merged."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.types import is_integer_dtype

from pipeline.data.values import decode_dictionary

_BUFFER_ROWS = 4_000_000
"""Maximum buffered rows of several parts before they are merged."""


def value_counts(frame: pd.DataFrame, names: list[str]) -> dict[str, pa.Table]:
    """Occurrences of each value by column, null left out: columns `value` and `count`."""
    counts = {}
    for name in names:
        counts[name] = _value_counts(pa.array(frame[name], from_pandas=True))
        if pa.types.is_null(counts[name]["value"].type):  # a column of nulls has Arrow's null type
            kind = pa.int64() if is_integer_dtype(frame[name].dtype) else pa.string()
            counts[name] = pa.table(
                {"value": pa.array([], kind), "count": pa.array([], pa.int64())}
            )
    return counts


def _value_counts(column: pa.Array) -> pa.Table:
    counts = pc.value_counts(column.drop_null())
    return pa.table({"value": decode_dictionary(counts.field(0)), "count": counts.field(1)})


def merge_value_counts(counts: list[pa.Table]) -> pa.Table:
    """Merge the counts of several parts into one table."""
    merged = pa.concat_tables(counts).group_by("value").aggregate([("count", "sum")])
    return merged.rename_columns(["value", "count"])


def vocabulary_of(counts: pa.Table, min_count: int) -> pa.Array:
    """Values that occur `min_count` times or more, most frequent first, ties by value."""
    frequent = counts.filter(pc.greater_equal(counts["count"], min_count))
    order = pc.sort_indices(frequent, [("count", "descending"), ("value", "ascending")])
    return frequent["value"].take(order).combine_chunks()


class MergeBuffer:
    """Tables of several parts by name, merged from time to time to bound their memory."""

    def __init__(self, merge: Callable[[str, list[pa.Table]], pa.Table]) -> None:
        self._merge = merge
        self._tables: dict[str, list[pa.Table]] = {}

    def add(self, name: str, table: pa.Table) -> None:
        """Add the table of a part."""
        tables = self._tables.setdefault(name, [])
        tables.append(table)
        if len(tables) > 1 and sum(t.num_rows for t in tables[1:]) > _BUFFER_ROWS:
            self._tables[name] = [self._merge(name, tables)]

    def merged(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield name and merged table, and free the tables of the parts."""
        for name in list(self._tables):
            yield name, self._merge(name, self._tables.pop(name))


@dataclass(frozen=True)
class Moments:
    """Count, mean, variance and range of a column, missing values left out."""

    count: int = 0
    average: float = 0.0
    """Running mean; see `mean`."""
    squares: float = 0.0
    """Sum of squared differences from the mean."""
    low: float = math.inf
    high: float = -math.inf

    @property
    def mean(self) -> float:
        """Mean, 0 without values; exact for a constant, unlike `average`."""
        return self.low if self.low == self.high else self.average

    @property
    def deviation(self) -> float:
        """Standard deviation of a sample; 0 for a constant and for fewer than two values."""
        if self.count < 2 or self.low == self.high:
            return 0.0
        return math.sqrt(self.squares / (self.count - 1))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both parts.

        Stable for large means, without a difference of large sums (Chan, Golub, LeVeque 1979,
        equation 2.1).
        """
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        difference = other.average - self.average
        return Moments(
            count,
            self.average + difference * other.count / count,
            self.squares + other.squares + difference**2 * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
        )


def moments_of(column: Any) -> Moments:
    """Moments of a column of a frame, or of an array with NaN for missing."""
    if not isinstance(column, np.ndarray):
        column = column.to_numpy(np.float64, na_value=np.nan)
    numbers = column[~np.isnan(column)]
    if not len(numbers):
        return Moments()
    mean = float(numbers.mean())
    squares = float(np.square(numbers - mean).sum())
    return Moments(len(numbers), mean, squares, float(numbers.min()), float(numbers.max()))
