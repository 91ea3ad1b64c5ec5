"""What the report of data is made from: counted part by part where sessions are encoded.

Counts are of a fixed size for a vocabulary, and integers, so that they add up to the same however
the log is divided and whoever counts.
"""

from typing import Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import FIRST_ITEM, ITEM, OUT_OF_VOCABULARY, PADDING, TIMESTAMP
from pipeline.data import values
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.report.numbers import NumberCounts, Numbers, counted_numbers
from pipeline.preprocessing.sorting.lookup import places
from pipeline.recipe.preprocess import Preprocess

ELAPSED = "elapsed"
_HOUR_MICROSECONDS = 3_600 * 10**6
_HALF_WINDOW_HOURS = 50 * 365 * 24
_MANY = 2
"""In place of any number of sessions above one."""
_SPARSE = 4
"""Times as many values as there are rows: then they are sorted, not counted in a table."""


class Column(NamedTuple):
    """One column of the report."""

    name: str
    kind: Literal["categorical", "continuous"]
    of: Literal["item", "interaction", "session"]


def columns_of(recipe: Preprocess) -> list[Column]:
    """The item, the features, and the time between interactions where there is a time."""
    features = [Column(f.name, f.kind, f.of) for f in recipe.features]
    elapsed = [Column(ELAPSED, "continuous", "interaction")] if recipe.timestamp else []
    return [Column(ITEM, "categorical", "item"), *features, *elapsed]


class Window(NamedTuple):
    """Hours since 1970 in which interactions are counted, the last one included."""

    first: int
    last: int

    def cut(self, first: int, last: int) -> tuple[int, int]:
        """What of a span, in microseconds, is inside."""
        return (
            max(first, self.first * _HOUR_MICROSECONDS),
            min(last, (self.last + 1) * _HOUR_MICROSECONDS),
        )


def window_of(first: int, middle: int, last: int) -> Window:
    """From the first to the last moment (microseconds), no more than 50 years from the middle."""
    hours = [moment // _HOUR_MICROSECONDS for moment in (first, middle, last)]
    return Window(
        max(hours[0], hours[1] - _HALF_WINDOW_HOURS), min(hours[2], hours[1] + _HALF_WINDOW_HOURS)
    )


class CategoryCounts(NamedTuple):
    """Of some indices; U of them are there."""

    indices: np.ndarray
    """(U,) int64"""
    counts: np.ndarray
    """(U,) int64"""
    sessions: np.ndarray
    """(U,) uint8, 1 where all stand in one session, 2 otherwise."""


class Counts(NamedTuple):
    """Of some sessions of one part."""

    sessions: int
    interactions: int
    longer: int
    """Sessions of more than `max_sequence_length` interactions."""
    with_unknown: int
    """Sessions with an item that is out of vocabulary, among what is counted of them."""
    lengths: NumberCounts
    categories: dict[str, CategoryCounts]
    numbers: dict[str, NumberCounts]
    hours: np.ndarray
    """(H,) int64, hours of the window that have interactions."""
    of_hours: np.ndarray
    """(H,) int64, how many they have."""
    first: int
    """Microseconds, of what is counted; 0 where there is no time."""
    last: int


def is_targets(recipe: Preprocess, part: str) -> bool:
    """Whether of each session only the last interaction is counted: those before it are training's
    where the last ones are held out."""
    return bool(recipe.split.held_out) and part != "train"


def count(
    fitted: Fitted, rows: pa.Table, sessions: pa.Table, part: str, window: Window | None
) -> Counts:
    """Count whole sessions, as raw `rows` by session and time and as they are encoded."""
    recipe = fitted.recipe
    lengths = pc.list_value_length(sessions[ITEM].combine_chunks()).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    chosen = ends - 1 if is_targets(recipe, part) else None
    each = np.arange(len(lengths))
    owner = np.repeat(each, lengths) if chosen is None else each
    categories, numbers = {}, {}
    columns_by_name = {feature.name: feature.columns for feature in recipe.features}
    with_unknown = 0
    for name, kind, of in columns_of(recipe):
        if kind == "categorical":
            of_each = each if of == "session" else owner
            indices, of_each = _indices(
                [sessions[c].combine_chunks() for c in columns_by_name.get(name, (name,))],
                chosen if of != "session" else None,
                of_each,
            )
            size = fitted.vocabularies[name].num_rows
            categories[name] = counted_categories(indices, of_each, size)
            if name == ITEM:
                unknown = of_each[indices == OUT_OF_VOCABULARY]
                with_unknown = int((np.diff(unknown, prepend=-1) > 0).sum())
        elif name != ELAPSED:
            raw = _raw_numbers(fitted, rows, name)
            picked = starts if of == "session" else chosen
            raw = raw if picked is None else raw[picked]
            numbers[name] = counted_numbers(raw, centre_of(fitted, name))
    first = last = 0
    hours = of_hours = np.empty(0, np.int64)
    if window is not None:
        times = rows[TIMESTAMP].to_numpy()
        steps = np.diff(times, prepend=times[:1]) / 1e6
        later = np.ones(len(times), bool)
        later[starts] = False
        if chosen is not None:
            steps, later, times = steps[chosen], later[chosen], times[chosen]
        numbers[ELAPSED] = counted_numbers(steps[later])
        first, last = int(times.min()), int(times.max())
        hours, of_hours = _counted_hours(times, window)
    return Counts(
        len(lengths),
        len(owner),
        int((lengths > recipe.max_sequence_length).sum()),
        with_unknown,
        counted_numbers(lengths.astype(np.float64)),
        categories,
        numbers,
        hours,
        of_hours,
        first,
        last,
    )


def _indices(
    columns: list[pa.Array], chosen: np.ndarray | None, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a column, of interactions the `chosen` ones, and the session of each.

    Of several values all that are there, those of an interaction side by side.
    """
    flat = [(c.flatten() if pa.types.is_list(c.type) else c).to_numpy() for c in columns]
    flat = [values if chosen is None else values[chosen] for values in flat]
    if len(flat) == 1:
        return flat[0], owner
    together = np.stack(flat, 1)
    there = together != PADDING
    return together[there], np.repeat(owner, there.sum(1))


def _raw_numbers(fitted: Fitted, rows: pa.Table, name: str) -> np.ndarray:
    """(N,) as the log has them; of a feature with `mean_of` what a later session reads."""
    column = values.plain(rows[name])
    encoding = fitted.target_encodings.get(name)
    if encoding is None:
        return column.to_numpy(zero_copy_only=False)
    return encoding.means()[places(column.cast(encoding.values.type), encoding.values)]


def centre_of(fitted: Fitted, name: str) -> float:
    """From where the numbers of a column are counted; of few digits, to depend on no rounding."""
    known = fitted.standardizations.get(name)
    if name == ELAPSED or known is None:
        return 0.0
    logs = {feature.name for feature in fitted.recipe.features if feature.log}
    return float(f"{np.expm1(known.mean) if name in logs else known.mean:.3g}")


def counted_categories(indices: np.ndarray, owner: np.ndarray, size: int) -> CategoryCounts:
    """Count (N,) indices below `size`; `owner` is the session of each, rising."""
    values: np.ndarray | None = None
    if size > _SPARSE * len(indices):
        values, indices = np.unique(indices, return_inverse=True)
        size = len(values)
    counts = np.bincount(indices, minlength=size)
    first, last = np.empty(size, np.int32), np.empty(size, np.int32)
    last[indices] = owner  # of several the last one stays
    first[indices[::-1]] = owner[::-1]
    seen = np.flatnonzero(counts)
    sessions = np.where(first[seen] == last[seen], 1, _MANY).astype(np.uint8)
    return CategoryCounts(seen if values is None else values[seen], counts[seen], sessions)


def _counted_hours(times: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    place = times // _HOUR_MICROSECONDS - window.first
    inside = (place >= 0) & (place <= window.last - window.first)
    found = np.bincount(place if inside.all() else place[inside])
    hours = np.flatnonzero(found)
    return hours, found[hours]


class Categories:
    """Counts of several parts, added up."""

    def __init__(self, size: int) -> None:
        """Of a vocabulary with `size` indices, the reserved ones included."""
        self.counts = np.zeros(size, np.int64)
        """(V,)"""
        self.sessions = np.zeros(size, np.uint8)
        """(V,) in how many sessions it stands: 0, 1, or 2 for more."""

    def add(self, found: CategoryCounts) -> Self:
        """Those of a part; a session is in one part."""
        self.counts[found.indices] += found.counts
        self.sessions[found.indices] = np.minimum(
            self.sessions[found.indices] + found.sessions, _MANY
        )
        return self

    @property
    def known(self) -> np.ndarray:
        """(V - 3,) counts of the values that have an index of their own."""
        return self.counts[FIRST_ITEM:]


class Totals:
    """All that was counted of one part."""

    def __init__(self, fitted: Fitted, window: Window | None) -> None:
        """Of nothing yet."""
        self.sessions = self.interactions = self.longer = self.with_unknown = 0
        self.lengths = Numbers()
        self.categories: dict[str, Categories] = {}
        self.numbers: dict[str, Numbers] = {}
        for column in columns_of(fitted.recipe):
            if column.kind == "categorical":
                size = fitted.vocabularies[column.name].num_rows
                self.categories[column.name] = Categories(size)
            else:
                self.numbers[column.name] = Numbers(centre_of(fitted, column.name))
        self.first, self.last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self.window = window
        hours = 0 if window is None else window.last - window.first + 1
        self.hours = np.zeros(hours, np.int64)
        """Interactions in each hour of the window."""

    def add(self, found: Counts) -> Self:
        """Those of some more sessions."""
        self.sessions += found.sessions
        self.interactions += found.interactions
        self.longer += found.longer
        self.with_unknown += found.with_unknown
        self.first, self.last = min(self.first, found.first), max(self.last, found.last)
        self.lengths.add(found.lengths)
        for name, categories in found.categories.items():
            self.categories[name].add(categories)
        for name, numbers in found.numbers.items():
            self.numbers[name].add(numbers)
        self.hours[found.hours] += found.of_hours
        return self

    @property
    def size(self) -> int:
        """Sessions of equal length that tell as much as these (Kish's effective sample size).

        Interactions of one session resemble each other, and a long one weighs more.
        """
        if self.interactions == self.sessions:
            return self.sessions
        lengths = self.lengths.summary(())
        mean, deviation = lengths["mean"] or 1.0, lengths["deviation"] or 0.0
        return int(self.sessions / (1 + (deviation / mean) ** 2))
