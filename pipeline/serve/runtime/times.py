"""Times of requests and the features made of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import RequestError
from .lookups import MISSING_INTEGER

DAY_SECONDS = 86_400
WEEK_SECONDS = 7 * DAY_SECONDS
PERIODS = {"hour": (DAY_SECONDS, 0), "weekday": (WEEK_SECONDS, 3 * DAY_SECONDS)}
"""Length and shift in seconds: 1970-01-01 was a Thursday, a week begins on Monday."""
LATEST_MICROSECONDS = 2**62
ISO_TIME = re.compile(
    r"((?:1[7-9]|2[01])\d\d-\d\d-\d\d)"
    r"(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)(?: ?(UTC|Z|[+-]\d\d:?\d\d))?)?",
    re.ASCII,
)
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


def microseconds(values: NDArray[Any], unit: str) -> NDArray[Any]:
    """Return int64 microseconds of the times of a request, MISSING_INTEGER for a missing one."""
    if values.dtype.kind in "OSU":
        flat = [_parse_time(value) for value in values.reshape(-1)]
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


def _parse_time(value: Any) -> int:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    match = ISO_TIME.fullmatch(text)
    if match is None:
        return MISSING_INTEGER
    date, clock, zone = match.groups()
    clock = clock or "00:00"
    whole, _, fraction = clock.partition(".")
    try:
        moment = int(np.datetime64(f"{date}T{whole}", "s").astype(np.int64)) * 1_000_000
    except ValueError:
        return MISSING_INTEGER
    moment += int(fraction[:6].ljust(6, "0")) if fraction else 0
    if zone and zone not in ("UTC", "Z"):
        digits = zone[1:].replace(":", "")
        if int(digits[:2]) > 23 or int(digits[2:]) > 59:
            return MISSING_INTEGER
        shift = (int(digits[:2]) * 3_600 + int(digits[2:]) * 60) * 1_000_000
        moment += -shift if zone[0] == "+" else shift
    return moment
