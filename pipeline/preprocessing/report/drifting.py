"""The drift of every column of a part, as the report holds it: the most drift first."""

from typing import Any

import numpy as np

from pipeline.data.fitted import Fitted
from pipeline.preprocessing.report.counting import Categories, Column, Totals, is_targets
from pipeline.preprocessing.report.drift import (
    FEWEST_SESSIONS,
    MUCH,
    category_bins,
    drift,
    number_bins,
    per_exposure,
)
from pipeline.preprocessing.report.periods import by_hour, by_weekday, exposures
from pipeline.preprocessing.report.values import texts

LENGTH, HOUR, WEEKDAY = "session length", "hour of the day", "day of the week"
"""No feature has a name of several words."""
_MOVERS = 5

Row = dict[str, Any]


def drifts(
    fitted: Fitted,
    columns: list[Column],
    train: Totals,
    found: Totals,
    part: str,
) -> list[Row]:
    """A row a column: {"column", "drift", "psi", "expected", "excess", "jensen_shannon", "bins"}.

    Categorical ones have "gained" and "lost", too: the values whose shares moved the most. "drift"
    is little, some or much; None where there is too little to tell, and "why" says what.
    """
    rows = []
    for column in columns:
        name = column.name
        n, m = _sizes(train, found, column.of)
        fewest = min(n, m)
        if column.kind == "continuous":
            bins = number_bins(train.numbers[name], found.numbers[name], fewest)
            rows.append(_row(name, bins, n, m))
            continue
        one, other = train.categories[name], found.categories[name]
        bins = category_bins(one, other, fewest)
        row = _row(name, bins, n, m)
        rows.append(row | _movers(fitted, name, one, other))
    rows.append(_of_lengths(fitted, train, found, part))
    if train.window is not None:
        rows += _of_time(train, found)
    return sorted(rows, key=lambda row: (row["drift"] is None, -(row.get("excess") or 0.0)))


def drifting(report: dict[str, Any]) -> dict[str, list[str]]:
    """Columns of each part that drift much, the most first."""
    return {
        part: [row["column"] for row in rows if row["drift"] == MUCH]
        for part, rows in report["drift"].items()
    }


def _row(name: str, bins: tuple[np.ndarray, np.ndarray], n: int, m: int) -> Row:
    if min(n, m) < FEWEST_SESSIONS:
        return _unknown(name, "too few sessions")
    found = drift(*bins, n, m)
    if found is None:
        return _unknown(name, "no values to compare")
    return {
        "column": name,
        "drift": found.word,
        **{key: _short(getattr(found, key)) for key in ("psi", "expected", "excess")},
        "jensen_shannon": _short(found.jensen_shannon),
        "bins": found.bins,
    }


def _sizes(train: Totals, found: Totals, of: str) -> tuple[int, int]:
    if of == "session":
        return train.sessions, found.sessions
    return train.size, found.size


def _unknown(name: str, why: str) -> Row:
    return {"column": name, "drift": None, "why": why}


def _of_lengths(fitted: Fitted, train: Totals, found: Totals, part: str) -> Row:
    """Of sessions that are long enough for training: it has no others."""
    if is_targets(fitted.recipe, part):
        return _unknown(LENGTH, "the same sessions")
    least = float(fitted.recipe.min_session_length)
    long = found.lengths.from_least(least)
    bins = number_bins(train.lengths, long, min(train.sessions, long.count), least)
    return _row(LENGTH, bins, train.sessions, long.count)


def _of_time(train: Totals, found: Totals) -> list[Row]:
    window = train.window
    assert window is not None  # noqa: S101
    seen = [exposures(*window.cut(one.first, one.last)) for one in (train, found)]
    rows = []
    for place, (name, of, period) in enumerate(
        ((HOUR, by_hour, "a day"), (WEEKDAY, by_weekday, "a week"))
    ):
        bins = per_exposure(of(train, window), of(found, window), (seen[0][place], seen[1][place]))
        if bins is None:
            rows.append(_unknown(name, f"less than {period} of time"))
        else:
            rows.append(_row(name, bins, train.size, found.size))
    return rows


def _movers(fitted: Fitted, name: str, train: Categories, found: Categories) -> Row:
    """Values that gained and lost the most, with their shares in training and in the part."""
    shares = [
        one.known / total if (total := one.counts.sum()) else np.zeros(len(one.known))
        for one in (train, found)
    ]
    change = shares[1] - shares[0]
    row: Row = {}
    for key, moved in (("gained", change), ("lost", -change)):
        few = min(_MOVERS, len(moved))
        least = np.partition(moved, -few)[-few] if few else 0.0
        candidates = np.flatnonzero((moved >= least) & (moved > 0))
        top = candidates[np.argsort(-moved[candidates], kind="stable")][:_MOVERS]
        row[key] = [
            {"value": text, "train": _short(shares[0][at]), "share": _short(shares[1][at])}
            for text, at in zip(texts(fitted, name, top), top, strict=True)
        ]
    return row


def _short(value: float) -> float:
    return float(f"{value:.6g}")
