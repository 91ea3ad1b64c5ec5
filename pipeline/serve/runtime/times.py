"""Times of requests and their features."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from . import RequestError
from .lookups import MISSING_INTEGER

DAY_SECONDS = 86_400
WEEK_SECONDS = 7 * DAY_SECONDS
PERIODS = {"hour": (DAY_SECONDS, 0), "weekday": (WEEK_SECONDS, 3 * DAY_SECONDS)}
"""Length and shift in seconds: 1970-01-01 was a Thursday, a week begins on Monday."""
LATEST_MICROSECONDS = 2**62
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
US_ZONES = {"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}
"""Hours east of UTC of the names in RFC 2822; other names are those of the IANA database."""
_YEAR = r"(?P<year>(?:1[7-9]|2[01])\d\d)"
_CLOCK = r"(?P<hour>\d\d)(?::?(?P<minute>\d\d)(?::?(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?)?)?"
_ZONE = r"(?P<zone>[+-]\d\d(?::?\d\d)?|[A-Za-z][A-Za-z0-9_+/-]*)"
_CLOCK_AND_ZONE = rf"{_CLOCK}(?: ?{_ZONE})?"
_MONTH_NAME = r"(?P<name>[A-Za-z]{3})"
TIMES = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        # ISO 8601: calendar dates, also with slashes, and dates by week
        rf"{_YEAR}(?P<dash>[-/]?)(?P<month>\d\d)(?P=dash)(?P<day>\d\d)(?:\D{_CLOCK_AND_ZONE})?",
        rf"{_YEAR}(?P<dash>-?)W(?P<week>\d\d)(?:(?P=dash)(?P<day>\d))?(?:\D{_CLOCK_AND_ZONE})?",
        # RFC 2822, and logs of web servers: 03/Apr/2012:18:00:09 +0000
        rf"(?:[A-Za-z]{{3,9}}, ?)?(?P<day>\d\d?)[ /-]{_MONTH_NAME}[ /-]{_YEAR}[ :]"
        rf"{_CLOCK_AND_ZONE}",
        # C and Unix: Tue Apr 03 18:00:09 +0000 2012
        rf"[A-Za-z]{{3}} {_MONTH_NAME} +(?P<day>\d\d?) {_CLOCK}(?: {_ZONE})? {_YEAR}",
    )
)
"""Forms of text that are read as a time."""
_UTC = timezone.utc  # noqa: UP017 - Python 3.10 has no datetime.UTC
_EPOCH = datetime(1970, 1, 1, tzinfo=_UTC)
_MICROSECOND = timedelta(microseconds=1)
SCALES = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001}
"""Microseconds of each unit."""


def time_columns(feature: str) -> tuple[str, ...]:
    """Return the names of the columns of a time feature."""
    return ("elapsed",) if feature == "elapsed" else (f"{feature}_sin", f"{feature}_cos")


def time_feature(
    feature: str, times: NDArray[Any], lengths: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Return the columns of a feature from (interactions,) microseconds by session and time."""
    if feature == "elapsed":
        steps = np.zeros(len(times), np.int64)
        np.subtract(times[1:], times[:-1], out=steps[1:])
        steps[np.cumsum(lengths) - lengths] = 0  # the first of each session
        return {"elapsed": steps / 1e6}
    period, shift = PERIODS[feature]
    angle = (times // 1_000_000 + shift) % period * (2 * np.pi / period)
    sine, cosine = time_columns(feature)
    return {sine: np.sin(angle).astype(np.float32), cosine: np.cos(angle).astype(np.float32)}


def microseconds(values: NDArray[Any], unit: str, time_format: str | None = None) -> NDArray[Any]:
    """Return int64 microseconds of the times of a request, MISSING_INTEGER for a missing one.

    RequestError for text that is not a time; empty text is missing.
    """
    if values.dtype.kind in "OSU":
        flat = [_time_of(value, time_format) for value in values.reshape(-1)]
        return np.array(flat, np.int64).reshape(values.shape)
    if unit == "iso":
        raise RequestError("timestamp holds numbers, expected text such as 2026-01-31 12:00:00.")
    scale = SCALES[unit]
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            scaled = values.astype(np.float64) * float(scale)
        usable = np.abs(scaled) < LATEST_MICROSECONDS  # False for NaN
        times = np.rint(np.where(usable, scaled, 0)).astype(np.int64)
    else:
        latest = min(LATEST_MICROSECONDS / scale, 2.0**63)
        usable = np.abs(values.astype(np.float64)) < latest
        whole = np.where(usable, values, 0).astype(np.int64)
        times = whole * int(scale) if unit != "ns" else whole // 1000
    return np.where(usable, times, MISSING_INTEGER)


def _time_of(value: Any, time_format: str | None) -> int:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if not text:
        return MISSING_INTEGER
    time = parse_time(text, time_format)
    if time is None:
        example = "2026-01-31 12:00:00 UTC" if time_format is None else time_format
        raise RequestError(f"timestamp is {text[:60]!r}, expected a time such as {example}.")
    return time


def parse_time(text: str, time_format: str | None = None) -> int | None:
    """Return microseconds since 1970 UTC of a time between 1700 and 2199, None for other text.

    A time without a zone is UTC. `time_format` is that of `datetime.strptime`; without it the
    forms of `TIMES` are read.
    """
    try:
        moment = (
            _parse(text.strip()) if time_format is None else datetime.strptime(text, time_format)
        )
    except (ValueError, OverflowError, OSError, KeyError):  # no such day, no such zone
        return None
    if moment is None or not 1700 <= moment.year < 2200:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=_UTC)
    return (moment - _EPOCH) // _MICROSECOND


def _parse(text: str) -> datetime | None:
    match = next(filter(None, (pattern.fullmatch(text) for pattern in TIMES)), None)
    if match is None:
        return None
    parts = match.groupdict()
    year = int(parts["year"])
    if parts.get("week"):
        day = date.fromisocalendar(year, int(parts["week"]), int(parts["day"] or 1))
    else:
        month = int(parts.get("month") or MONTHS.index(parts["name"].lower()) + 1)
        day = date(year, month, int(parts["day"]))
    clock = time(
        int(parts["hour"] or 0),
        int(parts["minute"] or 0),
        int(parts["second"] or 0),
        int((parts["fraction"] or "")[:6].ljust(6, "0")),
        tzinfo=_zone(parts["zone"]),
    )
    return datetime.combine(day, clock)


def _zone(text: str | None) -> tzinfo | None:
    """Return the zone of an offset or a name. KeyError or ValueError for an unknown one."""
    if text is None or text.upper() in ("Z", "UTC", "GMT", "UT"):
        return _UTC
    if text in US_ZONES:
        return timezone(timedelta(hours=US_ZONES[text]))
    if text[0] not in "+-":
        if "/" not in text and not text.isupper():  # such as `localtime` of the machine
            raise ValueError("a zone is an offset or a name such as Europe/Berlin")
        return ZoneInfo(text)
    digits = text[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if minutes > 59:
        raise ValueError("an hour has 60 minutes")
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)
