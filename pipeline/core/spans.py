"""Spans of time as people write them: `2d`, `6h`."""

import re

from pipeline.core.errors import ConfigError


def split_seconds(value: str | float) -> tuple[float | None, float | None]:
    """(seconds, fraction) of a split, one of them None. ValueError if it is neither."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)([dh])", value.strip())):
        seconds = float(match[1]) * (86_400 if match[2] == "d" else 3_600)
        if seconds > 0:
            return seconds, None
    elif isinstance(value, int | float) and 0 < value < 1:
        return None, float(value)
    raise ValueError("expected days (`2d`), hours (`6h`) or a fraction between 0 and 1")


def span_seconds(value: str, name: str = "--windows") -> float:
    """`1d`, `6h` -> seconds. ConfigError for anything else, which calls it `name`."""
    try:
        seconds, _ = split_seconds(value)
    except ValueError:
        seconds = None
    if seconds is None:
        raise ConfigError(f"{name} is {value!r}, expected days (`1d`) or hours (`6h`).")
    return seconds
