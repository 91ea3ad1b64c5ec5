"""Interactions over time: by hour, day, week, month or year, by hour of day and by weekday."""

from typing import Any

import numpy as np

from pipeline.preprocessing.report.counting import Totals, Window

DAY, WEEK = 24, 7
_EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; weeks begin on Monday."""
_UNITS = ((3, "hour"), (120, "day"), (900, "week"), (6_000, "month"))
"""By how many days the window has, at most; years beyond."""


def periods(totals: dict[str, Totals]) -> dict[str, Any] | None:
    """{"unit", "starts", "parts"}: interactions of each part in each period of the window.

    None where there is no time.
    """
    window = next(iter(totals.values())).window
    if window is None:
        return None
    days = (window.last - window.first) / DAY
    unit = next((name for limit, name in _UNITS if days <= limit), "year")
    hours = np.arange(window.first, window.last + 1)
    number = _numbers(hours, unit)
    begins = np.flatnonzero(np.diff(number, prepend=number[0] - 1))
    return {
        "unit": unit,
        "starts": [_start(int(number[place]), unit) for place in begins],
        "parts": {
            name: np.add.reduceat(found.hours, begins).tolist() for name, found in totals.items()
        },
    }


def _numbers(hours: np.ndarray, unit: str) -> np.ndarray:
    """(H,) number of the period of each hour."""
    match unit:
        case "hour":
            return hours
        case "day":
            return hours // DAY
        case "week":
            return (hours // DAY + _EPOCH_WEEKDAY) // WEEK
    letter = {"month": "M", "year": "Y"}[unit]
    return hours.astype("datetime64[h]").astype(f"datetime64[{letter}]").astype(np.int64)


def _start(number: int, unit: str) -> str:
    match unit:
        case "hour":
            return f"{np.datetime64(number, 'h')}:00"
        case "week":
            return str(np.datetime64(number * WEEK - _EPOCH_WEEKDAY, "D"))
    return str(np.datetime64(number, {"day": "D", "month": "M", "year": "Y"}[unit]))


def by_hour(found: Totals, window: Window) -> np.ndarray:
    """(24,) interactions in each hour of the day, UTC."""
    hours = np.arange(window.first, window.last + 1)
    return np.bincount(hours % DAY, found.hours, minlength=DAY)


def by_weekday(found: Totals, window: Window) -> np.ndarray:
    """(7,) interactions on each day of the week, UTC; Monday is the first."""
    hours = np.arange(window.first, window.last + 1)
    return np.bincount((hours // DAY + _EPOCH_WEEKDAY) % WEEK, found.hours, minlength=WEEK)


def exposures(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """(24,) and (7,): how often each hour of the day, and each weekday, comes up in a span.

    `first` and `last` are microseconds; of an hour that is there in part, the part counts.
    """
    ends = first / 3.6e9, last / 3.6e9
    hours = np.arange(int(ends[0] // 1), int(ends[1] // 1) + 1)
    share = np.minimum(hours + 1, ends[1]) - np.maximum(hours, ends[0])
    weekday = (hours // DAY + _EPOCH_WEEKDAY) % WEEK
    return (
        np.bincount(hours % DAY, share, minlength=DAY),
        np.bincount(weekday, share, minlength=WEEK) / DAY,
    )


def weekly_and_daily(found: Totals) -> dict[str, Any]:
    """{"hours", "weekdays"}, as the report holds them; None where there is no time."""
    if found.window is None:
        return {"hours": None, "weekdays": None}
    return {
        "hours": by_hour(found, found.window).astype(int).tolist(),
        "weekdays": by_weekday(found, found.window).astype(int).tolist(),
    }
