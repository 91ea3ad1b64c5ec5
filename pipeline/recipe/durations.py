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


def gap_microseconds(value: str) -> int:
    """`30m`, `1h`, `90s` -> microseconds. ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value.strip())
    gap = (
        round(float(match[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[match[2]] * 1e6)
        if match
        else 0
    )
    if not 0 < gap < 2**62:
        raise ValueError("expected minutes (`30m`), hours (`2h`), seconds or days, above 0")
    return gap


def span_seconds(value: str, name: str = "--windows") -> float:
    """`1d`, `6h` -> seconds. ConfigError for anything else, which calls it `name`."""
    try:
        seconds, _ = split_seconds(value)
    except ValueError:
        seconds = None
    if seconds is None:
        raise ConfigError(f"{name} is {value!r}, expected days (`1d`) or hours (`6h`).")
    return seconds
