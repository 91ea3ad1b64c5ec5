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
_FEWEST = 100
"""Minimum interactions at which outliers in time are left out."""
_DATETIME_UNITS = {"hour": "h", "day": "D", "week": "W", "month": "M", "year": "Y"}


def by_period(parts: dict[str, PartCounts]) -> dict[str, Any] | None:
    """{"unit", "calendar", "starts", "parts", "outside"}: interactions of each part by period.

    Outliers in time are left out, so that they do not determine the unit; "outside" counts them.
    Starts are dates, or numbers of hours or days since the first interaction where times are
    counters (`Window.is_calendar`). None without a timestamp.
    """
    window = next(iter(parts.values())).window
    if window is None:
        return None
    counts = {name: part.hours for name, part in parts.items()}
    main = _main_window(np.sum(list(counts.values()), axis=0), window)
    inside = slice(main.first - window.first, main.last - window.first + 1)
    outside = sum(part.interactions - int(part.hours[inside].sum()) for part in parts.values())
    days = (main.last - main.first) / DAY_HOURS
    unit = next((name for limit, name in _UNITS if days <= limit), "year")
    # NumPy's weeks begin on the weekday of the epoch
    shift = np.timedelta64(_EPOCH_WEEKDAY if unit == "week" else 0, "D")
    hours = _hours(main).astype("datetime64[h]") + shift
    periods, starts = np.unique(
        hours.astype(f"datetime64[{_DATETIME_UNITS[unit]}]"), return_index=True
    )
    if window.is_calendar:
        labels = (periods - shift if unit == "week" else periods).astype(str).tolist()
        labels = [f"{label}:00" for label in labels] if unit == "hour" else labels
    else:
        labels = (starts // (1 if unit == "hour" else DAY_HOURS)).astype(str).tolist()
    return {
        "unit": unit,
        "calendar": window.is_calendar,
        "starts": labels,
        "parts": {
            name: np.add.reduceat(hours[inside], starts).tolist() for name, hours in counts.items()
        },
        "outside": outside,
    }


def _main_window(counts: NDArray[Any], window: Window) -> Window:
    """The window without outliers of the (H,) counts.

    The range without the first and last thousandth, at least one interaction each, is widened by
    its own length on both sides; it is used if it is less than a quarter of the window.
    """
    cumulative = np.cumsum(counts)
    few = 0.5 + max(1, cumulative[-1] // 1000)
    if cumulative[-1] < _FEWEST:
        return window
    low, high = np.searchsorted(cumulative, [few, cumulative[-1] - few]).tolist()
    margin = high - low + 1
    main = Window(
        max(window.first, window.first + low - margin),
        min(window.last, window.first + high + margin),
    )
    is_narrow = 4 * (main.last - main.first + 1) < window.last - window.first + 1
    return main if is_narrow else window


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
    """(24,) and (7,) occurrences of each hour of the day and each weekday between two times.

    `first` and `last` are microseconds; a partial hour counts as a fraction.
    """
    begin, end = first / 3.6e9, last / 3.6e9
    hours = np.arange(int(begin // 1), int(end // 1) + 1)
    share = np.minimum(hours + 1, end) - np.maximum(hours, begin)
    return (
        np.bincount(hours % DAY_HOURS, share, minlength=DAY_HOURS),
        np.bincount(_weekday(hours), share, minlength=WEEK_DAYS) / DAY_HOURS,
    )
