"""Interactions over time: by period, by hour of the day and by weekday, in UTC."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.preprocessing.report.counts import PartCounts, Window

DAY_HOURS, WEEK_DAYS = 24, 7
_EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; weeks begin on Monday."""
_UNITS = ((3, "hour"), (120, "day"), (900, "week"), (6_000, "month"))
"""Maximum length of the window in days, and the period; years for longer windows."""
_DATETIME_UNITS = {"hour": "h", "day": "D", "week": "W", "month": "M", "year": "Y"}


def by_period(parts: dict[str, PartCounts]) -> dict[str, Any] | None:
    """{"unit", "starts", "parts"}: interactions of each part in each period of the window.

    None without a timestamp.
    """
    window = next(iter(parts.values())).window
    if window is None:
        return None
    days = (window.last - window.first) / DAY_HOURS
    unit = next((name for limit, name in _UNITS if days <= limit), "year")
    # NumPy's weeks begin on the weekday of the epoch
    shift = np.timedelta64(_EPOCH_WEEKDAY if unit == "week" else 0, "D")
    hours = _hours(window).astype("datetime64[h]") + shift
    periods, starts = np.unique(
        hours.astype(f"datetime64[{_DATETIME_UNITS[unit]}]"), return_index=True
    )
    labels = (periods - shift if unit == "week" else periods).astype(str).tolist()
    return {
        "unit": unit,
        "starts": [f"{label}:00" for label in labels] if unit == "hour" else labels,
        "parts": {
            name: np.add.reduceat(counts.hours, starts).tolist() for name, counts in parts.items()
        },
    }


def _hours(window: Window) -> NDArray[Any]:
    """(H,) hours since 1970 of a window."""
    return np.arange(window.first, window.last + 1)


def _weekday(hours: NDArray[Any]) -> NDArray[Any]:
    return (hours // DAY_HOURS + _EPOCH_WEEKDAY) % WEEK_DAYS


def by_hour(counts: NDArray[Any], window: Window) -> NDArray[Any]:
    """(24,) interactions by hour of the day, of the (H,) counts of a window."""
    return np.bincount(_hours(window) % DAY_HOURS, counts, minlength=DAY_HOURS)


def by_weekday(counts: NDArray[Any], window: Window) -> NDArray[Any]:
    """(7,) interactions by weekday, Monday first, of the (H,) counts of a window."""
    return np.bincount(_weekday(_hours(window)), counts, minlength=WEEK_DAYS)


def exposures(first: int, last: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(24,) and (7,): how often each hour of the day and each weekday occurs between two moments.

    `first` and `last` are microseconds; an hour that is covered in part counts in part.
    """
    begin, end = first / 3.6e9, last / 3.6e9
    hours = np.arange(int(begin // 1), int(end // 1) + 1)
    share = np.minimum(hours + 1, end) - np.maximum(hours, begin)
    return (
        np.bincount(hours % DAY_HOURS, share, minlength=DAY_HOURS),
        np.bincount(_weekday(hours), share, minlength=WEEK_DAYS) / DAY_HOURS,
    )
