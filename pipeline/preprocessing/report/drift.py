"""Drift of each column between training and a later part.

The population stability index (PSI; N. Siddiqi, Credit Risk Scorecards, 2006) and the
Jensen-Shannon distance (square root of J. Lin's divergence to base 2, IEEE Transactions on
Information Theory 37, 1991; from 0 to 1), over the bins of a column.

Both grow with small samples even if nothing has changed: without drift PSI is about (B - 1)(1/n +
1/m) for B bins and samples of n and m, distributed like chi-squared with B - 1 degrees of freedom
(B. Yurdakul, 2018). n and m count sessions (`PartCounts.effective_sessions`), because the
interactions of a session resemble each other. The thresholds apply to the excess of PSI over its
expected value.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM, NULL, OUT_OF_VOCABULARY
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.report.counts import (
    CategoryTotals,
    PartCounts,
    columns_of,
    counts_targets,
)
from pipeline.preprocessing.report.histogram import Histogram, round_digits
from pipeline.preprocessing.report.periods import by_hour, by_weekday, exposures
from pipeline.preprocessing.report.values import labels_of, most_frequent

LITTLE, SOME, MUCH = "little", "some", "much"
THRESHOLDS = ((0.1, LITTLE), (0.25, SOME), (math.inf, MUCH))
"""Siddiqi's thresholds of PSI: below .1 no action is needed, from .25 on the population differs."""
LENGTH, HOUR, WEEKDAY = "session length", "hour of the day", "day of the week"
"""Rows beside the columns; names of features have no spaces."""
_MIN_SESSIONS = 20
"""Minimum sessions of both parts for a drift level."""
_MIN_BIN_SESSIONS = 5
"""Minimum expected sessions of a bin in the smaller part (Cochran's rule)."""
_TOP_VALUES = 50
_NUMBER_BINS = 10
_MOVERS = 5
_Z = 3.09
"""99.9 % quantile of the standard normal distribution."""

Bins = tuple[NDArray[Any], NDArray[Any]]
"""(B,) counts of training and of the other part in the bins of a column."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Drift:
    """Drift of one column."""

    drift: Literal["little", "some", "much"] | None
    """None if a part has too few sessions."""
    psi: float
    expected: float
    """PSI without drift, from the sample sizes alone."""
    excess: float
    """PSI above the expected value, at least 0."""
    jensen_shannon: float
    bins: int


def measure_drift(bins: Bins, n: int, m: int) -> Drift | None:
    """Drift over the bins of a column between parts of `n` and `m` sessions.

    None if fewer than two bins have a count.
    """
    reference, other = bins
    has_count = (reference > 0) | (other > 0)
    reference, other = reference[has_count], other[has_count]
    if len(reference) < 2 or not reference.sum() or not other.sum():
        return None
    p, q = smoothed_shares(reference, n), smoothed_shares(other, m)
    value, spread = psi(p, q), 1 / n + 1 / m
    degrees = len(p) - 1
    expected = degrees * spread
    # Wilson and Hilferty's approximation of the chi-squared quantile
    term = 2 / (9 * degrees)
    limit = degrees * (1 - term + _Z * math.sqrt(term)) ** 3 * spread
    excess = max(0.0, value - expected)
    word = None
    if min(n, m) >= _MIN_SESSIONS:
        word = LITTLE if value <= limit else next(w for bound, w in THRESHOLDS if excess < bound)
    return Drift(word, value, expected, excess, jensen_shannon(p, q), len(p))  # type: ignore[arg-type]


def smoothed_shares(counts: NDArray[Any], sessions: int) -> NDArray[Any]:
    """(B,) shares of counts, with half a session added to each bin so that none is 0."""
    size = min(sessions, int(counts.sum()))
    return (counts * (size / counts.sum()) + 0.5) / (size + 0.5 * len(counts))


def psi(p: NDArray[Any], q: NDArray[Any]) -> float:
    """Population stability index of (B,) positive shares; symmetric in p and q."""
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(p: NDArray[Any], q: NDArray[Any]) -> float:
    """Jensen-Shannon distance of (B,) shares: 0 if equal, 1 without a common bin."""
    middle = (p + q) / 2
    terms = [x[x > 0] * np.log2(x[x > 0] / middle[x > 0]) for x in (p, q)]
    return float(np.sqrt(max(0.0, sum(term.sum() for term in terms) / 2)))


def category_bins(reference: CategoryTotals, other: CategoryTotals, sessions: int) -> Bins:
    """Counts of the most frequent values, all other values, unknown values and missing values.

    `sessions` is the number of sessions of the smaller part. Unknown values are those that training
    lacks. For training itself, values of a single session are counted as unknown: they would be
    unknown if that session came later (I. J. Good, 1953).
    """
    min_count = max(1, _MIN_BIN_SESSIONS * reference.counts.sum() / max(sessions, 1))
    in_one_session = reference.sessions[FIRST_ITEM:] == 1
    top = most_frequent(reference.values, min_count, _TOP_VALUES)
    top = top[~in_one_session[top]]
    bins = []
    for totals, is_unknown in ((reference, in_one_session), (other, reference.values == 0)):
        num_unknown = totals.values[is_unknown].sum()
        rest = totals.values.sum() - num_unknown - totals.values[top].sum()
        unknown = totals.counts[OUT_OF_VOCABULARY] + num_unknown
        bins.append(np.array([*totals.values[top], rest, unknown, totals.counts[NULL]]))
    return bins[0], bins[1]


def number_bins(
    reference: Histogram, other: Histogram, sessions: int, minimum: float | None = None
) -> Bins:
    """Counts of numbers in groups of about equal size in training, and of missing numbers.

    `sessions` is the number of sessions of the smaller part. With `minimum`, smaller numbers are
    left out.
    """
    if minimum is not None:
        reference, other = reference.at_least(minimum), other.at_least(minimum)
    num_groups = min(_NUMBER_BINS, max(2, sessions // _MIN_BIN_SESSIONS))
    edges = reference.quantile_edges(num_groups)
    return (
        np.append(reference.group_counts(edges), reference.missing),
        np.append(other.group_counts(edges), other.missing),
    )


def per_exposure(bins: Bins, exposures: tuple[NDArray[Any], NDArray[Any]]) -> Bins | None:
    """Counts of hours or weekdays, normalized to equal exposure.

    `exposures` is the number of occurrences in each of the two parts. Hours or weekdays below 0.5
    occurrences are left out; None if these are more than a quarter.
    """
    is_usable = (exposures[0] >= 0.5) & (exposures[1] >= 0.5)
    if is_usable.mean() < 0.75:
        return None
    scaled = []
    for counts, exposure in zip(bins, exposures, strict=True):
        rate = counts[is_usable] / exposure[is_usable]
        scaled.append(rate * (counts.sum() / rate.sum()) if rate.any() else rate)
    return scaled[0], scaled[1]


def drift_rows(fitted: Fitted, train: PartCounts, other: PartCounts, part: str) -> list[Row]:
    """A row for each column, the most drift first.

    {"column", "drift", "psi", "expected", "excess", "jensen_shannon", "bins"}; categorical columns
    also have "gained" and "lost", the values whose shares changed most. "drift" is little, some or
    much; None if it cannot be judged, and then "why" is the reason.
    """
    rows = []
    for name, kind, of in columns_of(fitted.recipe):
        if of == "session":
            n, m = train.sessions, other.sessions
        else:
            n, m = train.effective_sessions, other.effective_sessions
        if kind == "continuous":
            bins = number_bins(train.numbers[name], other.numbers[name], min(n, m))
            rows.append(_row(name, bins, n, m))
        else:
            totals = train.categories[name], other.categories[name]
            row = _row(name, category_bins(*totals, min(n, m)), n, m)
            rows.append(row | _movers(fitted, name, *totals))
    rows.append(_length_row(fitted, train, other, part))
    if train.window is not None and train.window.is_calendar:
        rows += _time_rows(train, other)
    return sorted(rows, key=lambda row: (row["drift"] is None, -(row.get("excess") or 0.0)))


def drifting_columns(report: dict[str, Any]) -> dict[str, list[str]]:
    """Columns of each part that drift much, the most drift first."""
    return {
        part: [row["column"] for row in rows if row["drift"] == MUCH]
        for part, rows in report["drift"].items()
    }


def _row(name: str, bins: Bins, n: int, m: int) -> Row:
    if min(n, m) < _MIN_SESSIONS:
        return _unjudged_row(name, "too few sessions")
    drift = measure_drift(bins, n, m)
    if drift is None:
        return _unjudged_row(name, "no values to compare")
    numbers = {k: round_digits(v) if isinstance(v, float) else v for k, v in asdict(drift).items()}
    return {"column": name, **numbers}


def _unjudged_row(name: str, why: str) -> Row:
    return {"column": name, "drift": None, "why": why}


def _length_row(fitted: Fitted, train: PartCounts, other: PartCounts, part: str) -> Row:
    """Drift of session lengths, of sessions long enough for training."""
    if counts_targets(fitted.recipe, part):
        return _unjudged_row(LENGTH, "the same sessions")
    minimum = float(fitted.recipe.min_session_length)
    num_long = other.lengths.at_least(minimum).count
    bins = number_bins(train.lengths, other.lengths, min(train.sessions, num_long), minimum)
    return _row(LENGTH, bins, train.sessions, num_long)


def _time_rows(train: PartCounts, other: PartCounts) -> list[Row]:
    window = train.window
    assert window is not None  # noqa: S101
    of_train, of_other = (exposures(*window.clip(p.first, p.last)) for p in (train, other))
    rows = []
    for name, index, counts_of, period in (
        (HOUR, 0, by_hour, "a day"),
        (WEEKDAY, 1, by_weekday, "a week"),
    ):
        counts = counts_of(train.hours, window), counts_of(other.hours, window)
        bins = per_exposure(counts, (of_train[index], of_other[index]))
        if bins is None:
            rows.append(_unjudged_row(name, f"less than {period} of time"))
        else:
            rows.append(_row(name, bins, train.effective_sessions, other.effective_sessions))
    return rows


def _movers(fitted: Fitted, name: str, train: CategoryTotals, other: CategoryTotals) -> Row:
    """Values that gained and lost most, with their shares in training and in the other part."""
    of_train, of_other = (totals.values / max(totals.counts.sum(), 1) for totals in (train, other))
    change = of_other - of_train
    row: Row = {}
    for key, gain in (("gained", change), ("lost", -change)):
        top = most_frequent(gain, np.nextafter(0.0, 1.0), _MOVERS)
        row[key] = [
            {
                "value": label,
                "train": round_digits(of_train[index]),
                "share": round_digits(of_other[index]),
            }
            for label, index in zip(labels_of(fitted, name, top), top, strict=True)
        ]
    return row
