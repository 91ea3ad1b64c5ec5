"""Durations in a recipe: a number with a unit, such as `2d`, `6h` or `30m`."""

import re
from datetime import date
from typing import Any

from pipeline.core.errors import ConfigError

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def date_text(value: Any) -> Any:
    """Return a date, which YAML parses, as text, and any other value unchanged."""
    return value.isoformat() if isinstance(value, date) else value


def split_seconds(value: str | float) -> tuple[float | None, float | None]:
    """Size of a split as (seconds, None) or (None, fraction). ValueError for anything else."""
    if isinstance(value, str):
        seconds = _seconds(value, "hd")
        if seconds is not None:
            return seconds, None
    elif 0 < value < 1:
        return None, float(value)
    raise ValueError("expected days (`2d`), hours (`6h`) or a fraction between 0 and 1")


def duration_microseconds(value: str) -> int:
    """Microseconds of `90s`, `30m`, `1h` or `2d`. ValueError for anything else."""
    microseconds = round((_seconds(value, "smhd") or 0) * 1e6)
    if not 0 < microseconds < 2**62:
        raise ValueError("expected minutes (`30m`), hours (`2h`), seconds or days, above 0")
    return microseconds


def duration_seconds(value: str, name: str = "--windows") -> float:
    """Seconds of `1d` or `6h`. ConfigError, which calls the setting `name`, for anything else."""
    seconds = _seconds(value, "hd")
    if seconds is None:
        raise ConfigError(f"{name} is {value!r}, expected days (`1d`) or hours (`6h`).")
    return seconds


def _seconds(value: str, units: str) -> float | None:
    """Seconds above 0; None for text of another form."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)([{units}])", value.strip())
    return float(match[1]) * _UNIT_SECONDS[match[2]] or None if match else None
