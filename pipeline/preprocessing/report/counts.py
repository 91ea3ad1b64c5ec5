"""Counts of the data report, computed per shard with the encoding, then summed.

Counts are integers of a size that depends on the vocabularies alone, so that their sums do not
depend on how the log is divided.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import ELAPSED, FIRST_ITEM, ITEM, OUT_OF_VOCABULARY, PADDING, TIMESTAMP
from pipeline.data import values
from pipeline.data.fitted import Fitted
from pipeline.data.times import are_dates
from pipeline.preprocessing.lookup import positions
from pipeline.preprocessing.report.histogram import Histogram
from pipeline.recipe.preprocess import Preprocess

_HOUR_MICROSECONDS = 3_600 * 10**6
_HALF_WINDOW_HOURS = 50 * 365 * 24
_SEVERAL = 2
"""Value for any number of sessions above one."""
_SPARSE = 4
"""Ratio of vocabulary size to rows from which on rows are sorted instead of counted."""


class Column(NamedTuple):
    """One column of the report."""

    name: str
    kind: Literal["categorical", "continuous"]
    of: Literal["item", "interaction", "session"]


def columns_of(recipe: Preprocess) -> list[Column]:
    """The item, the features and, with a timestamp, the time between interactions."""
    features = [Column(f.name, f.kind, f.of) for f in recipe.features]
    elapsed = [Column(ELAPSED, "continuous", "interaction")] if recipe.timestamp else []
    return [Column(ITEM, "categorical", "item"), *features, *elapsed]


class Window(NamedTuple):
    """Hours since 1970 in which interactions are counted, both ends included."""

    first: int
    last: int

    @property
    def is_calendar(self) -> bool:
        """Whether the hours are those of dates, not of times that count steps."""
        return are_dates((self.last + 1) * _HOUR_MICROSECONDS)

    def clip(self, first: int, last: int) -> tuple[int, int]:
        """Intersection with a range of microseconds."""
        return (
            max(first, self.first * _HOUR_MICROSECONDS),
            min(last, (self.last + 1) * _HOUR_MICROSECONDS),
        )


def window_of(first: int, median: int, last: int) -> Window:
    """Window from the first to the last microsecond, at most 50 years from the median."""
    first, median, last = (moment // _HOUR_MICROSECONDS for moment in (first, median, last))
    return Window(max(first, median - _HALF_WINDOW_HOURS), min(last, median + _HALF_WINDOW_HOURS))


@dataclass(frozen=True)
class CategoryCounts:
    """Counts of the U indices of a column that occur in a shard."""

    indices: NDArray[Any]
    """(U,) int64."""
    counts: NDArray[Any]
    """(U,) int64."""
    sessions: NDArray[Any]
    """(U,) uint8, number of sessions with the index: 1, or 2 for more."""


@dataclass(frozen=True)
class Counts:
    """Counts of the sessions of one part in a shard."""

    sessions: int
    interactions: int
    long_sessions: int
    """Sessions of more than `max_sequence_length` interactions."""
    unknown_item_sessions: int
    """Sessions with an out-of-vocabulary item among the counted interactions."""
    lengths: Histogram
    categories: dict[str, CategoryCounts]
    numbers: dict[str, Histogram]
    hours: NDArray[Any]
    """(H,) int64, hours of the window that have interactions."""
    hour_counts: NDArray[Any]
    """(H,) int64, interactions of these hours."""
    first: int
    """Microseconds of the first counted interaction; 0 without a timestamp."""
    last: int


def counts_targets(recipe: Preprocess, part: str) -> bool:
    """Whether only the last interaction of each session is counted.

    If the last interactions are held out, the interactions before the target belong to training.
    """
    return bool(recipe.split.held_out) and part != "train"


@dataclass(frozen=True)
class _Selection:
    """Interactions of the sessions that the report counts."""

    starts: NDArray[Any]
    """(S,) row of the first interaction of each session."""
    targets: NDArray[Any] | None
    """(S,) rows that are counted; None counts all."""
    session: NDArray[Any]
    """(N,) session of each counted interaction."""

    def of(self, column: NDArray[Any]) -> NDArray[Any]:
        """(N,) values of the counted interactions."""
        return column if self.targets is None else column[self.targets]


def count_sessions(
    fitted: Fitted, rows: pa.Table, sessions: pa.Table, part: str, window: Window | None
) -> Counts:
    """Count whole sessions.

    `rows` are their raw interactions by session and time, `sessions` the encoded sessions, with
    all interactions.
    """
    recipe = fitted.recipe
    lengths = pc.list_value_length(sessions[ITEM].combine_chunks()).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    every_session = np.arange(len(lengths))
    targets = ends - 1 if counts_targets(recipe, part) else None
    session = np.repeat(every_session, lengths) if targets is None else every_session
    selection = _Selection(ends - lengths, targets, session)
    features = {feature.name: feature.columns for feature in recipe.features}
    categories, numbers = {}, {}
    unknown_item_sessions = 0
    for name, kind, of in columns_of(recipe):
        if kind == "categorical":
            arrays = [_flat(sessions[column]) for column in features.get(name, (name,))]
            if of != "session":
                arrays = [selection.of(array) for array in arrays]
            owner = every_session if of == "session" else session
            indices, owner = _merge_values(arrays, owner)
            size = fitted.vocabularies[name].num_rows
            categories[name] = count_categories(indices, owner, size)
            if name == ITEM:
                unknown_item_sessions = len(np.unique(owner[indices == OUT_OF_VOCABULARY]))
        elif name != ELAPSED:
            raw = _raw_numbers(fitted, rows, name)
            raw = raw[selection.starts] if of == "session" else selection.of(raw)
            numbers[name] = Histogram.of(raw, centre_of(fitted, name))
    first = last = 0
    hours = hour_counts = np.empty(0, np.int64)
    if window is not None:
        times = rows[TIMESTAMP].to_numpy()
        numbers[ELAPSED] = Histogram.of(_elapsed_seconds(times, selection))
        times = selection.of(times)
        first, last = int(times.min()), int(times.max())
        hours, hour_counts = _count_hours(times, window)
    return Counts(
        sessions=len(lengths),
        interactions=len(session),
        long_sessions=int((lengths > recipe.max_sequence_length).sum()),
        unknown_item_sessions=unknown_item_sessions,
        lengths=Histogram.of(lengths.astype(np.float64)),
        categories=categories,
        numbers=numbers,
        hours=hours,
        hour_counts=hour_counts,
        first=first,
        last=last,
    )


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.combine_chunks()
    return (array.flatten() if pa.types.is_list(array.type) else array).to_numpy()


def _merge_values(
    arrays: list[NDArray[Any]], owner: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Flat indices of a feature and the session of each index.

    A multi-valued feature has several columns; its values of an interaction come side by side,
    without padding.
    """
    if len(arrays) == 1:
        return arrays[0], owner
    indices = np.stack(arrays, 1)
    has_value = indices != PADDING
    return indices[has_value], np.repeat(owner, has_value.sum(1))


def _raw_numbers(fitted: Fitted, rows: pa.Table, name: str) -> NDArray[Any]:
    """(N,) numbers of the log; for a feature with `mean_of` the target encoding."""
    column = values.to_array(rows[name])
    encoding = fitted.target_encodings.get(name)
    if encoding is None:
        return column.to_numpy(zero_copy_only=False)
    return encoding.means()[positions(column.cast(encoding.values.type), encoding.values)]


def _elapsed_seconds(times: NDArray[Any], selection: _Selection) -> NDArray[Any]:
    """Seconds since the previous interaction, for counted interactions that are not the first."""
    seconds = np.diff(times, prepend=times[:1]) / 1e6
    has_previous = np.ones(len(times), bool)
    has_previous[selection.starts] = False
    return selection.of(seconds)[selection.of(has_previous)]


def centre_of(fitted: Fitted, name: str) -> float:
    """Centre of a column's histogram: its mean, in three digits so that it does not depend on
    rounding."""
    standardization = fitted.standardizations.get(name)
    if name == ELAPSED or standardization is None:
        return 0.0
    is_log = name in {feature.name for feature in fitted.recipe.log_features}
    return float(f"{np.expm1(standardization.mean) if is_log else standardization.mean:.3g}")


def count_categories(indices: NDArray[Any], session: NDArray[Any], size: int) -> CategoryCounts:
    """Count (N,) indices below `size`; `session` (N,) ascends."""
    unique: NDArray[Any] | None = None
    if size > _SPARSE * len(indices):
        unique, indices = np.unique(indices, return_inverse=True)
        size = len(unique)
    counts = np.bincount(indices, minlength=size)
    first, last = np.empty(size, np.int32), np.empty(size, np.int32)
    last[indices] = session  # the last of several assignments stays
    first[indices[::-1]] = session[::-1]
    occurring = np.flatnonzero(counts)
    is_several = first[occurring] != last[occurring]
    return CategoryCounts(
        occurring if unique is None else unique[occurring],
        counts[occurring],
        np.where(is_several, _SEVERAL, 1).astype(np.uint8),
    )


def _count_hours(times: NDArray[Any], window: Window) -> tuple[NDArray[Any], NDArray[Any]]:
    hour = times // _HOUR_MICROSECONDS - window.first
    is_inside = (hour >= 0) & (hour <= window.last - window.first)
    counts = np.bincount(hour if is_inside.all() else hour[is_inside])
    hours = np.flatnonzero(counts)
    return hours, counts[hours]


class CategoryTotals:
    """Counts of a column over all shards of a part; V is the size of the vocabulary."""

    def __init__(self, size: int) -> None:
        self.counts = np.zeros(size, np.int64)
        """(V,) by index, the reserved ones included."""
        self.sessions = np.zeros(size, np.uint8)
        """(V,) number of sessions with the index: 0, 1, or 2 for more."""

    def add(self, counts: CategoryCounts) -> None:
        """Add the counts of a shard; a session is in one shard."""
        self.counts[counts.indices] += counts.counts
        self.sessions[counts.indices] = np.minimum(
            self.sessions[counts.indices] + counts.sessions, _SEVERAL
        )

    @property
    def values(self) -> NDArray[Any]:
        """(V - 3,) counts of the indices that are not reserved."""
        return self.counts[FIRST_ITEM:]


class PartCounts:
    """Counts of all sessions of a part."""

    def __init__(self, fitted: Fitted, window: Window | None) -> None:
        self.sessions = self.interactions = self.long_sessions = self.unknown_item_sessions = 0
        self.lengths = Histogram.of(np.empty(0))
        self.categories: dict[str, CategoryTotals] = {}
        self.numbers: dict[str, Histogram] = {}
        for column in columns_of(fitted.recipe):
            if column.kind == "categorical":
                size = fitted.vocabularies[column.name].num_rows
                self.categories[column.name] = CategoryTotals(size)
            else:
                centre = centre_of(fitted, column.name)
                self.numbers[column.name] = Histogram.of(np.empty(0), centre)
        self.first, self.last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self.window = window
        num_hours = 0 if window is None else window.last - window.first + 1
        self.hours = np.zeros(num_hours, np.int64)
        """Interactions in each hour of the window."""

    def add(self, counts: Counts) -> None:
        """Add the counts of a shard."""
        self.sessions += counts.sessions
        self.interactions += counts.interactions
        self.long_sessions += counts.long_sessions
        self.unknown_item_sessions += counts.unknown_item_sessions
        self.first, self.last = min(self.first, counts.first), max(self.last, counts.last)
        self.lengths = self.lengths.merge(counts.lengths)
        for name, categories in counts.categories.items():
            self.categories[name].add(categories)
        for name, numbers in counts.numbers.items():
            self.numbers[name] = self.numbers[name].merge(numbers)
        self.hours[counts.hours] += counts.hour_counts

    @property
    def effective_sessions(self) -> int:
        """Number of sessions of equal length that carry as much information (Kish's effective
        sample size): interactions of one session resemble each other, and a long one weighs more.
        """
        if self.interactions == self.sessions:
            return self.sessions
        lengths = self.lengths.summary(())
        mean, deviation = lengths["mean"] or 1.0, lengths["deviation"] or 0.0
        return int(self.sessions / (1 + (deviation / mean) ** 2))
