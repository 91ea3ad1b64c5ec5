"""Times of a log as microseconds since 1970 UTC."""

import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.data.fitted import TimestampType
from pipeline.data.values import (
    UNKNOWN_INTEGER,
    as_integers,
    as_text,
    integers_or_unknown,
    is_text,
    numbers,
)
from pipeline.recipe.timestamp import Timestamp
from pipeline.serve.runtime.times import parse_time

NO_TIME = -(2**63)
"""Placeholder of a time that is missing or unreadable."""
LATEST_MICROSECONDS = 2**62
"""About the year 148,000; later times are unreadable, and their differences would overflow."""
ISO_TIME = (
    r"^(1[7-9]|2[01])\d\d-\d\d-\d\d"
    r"([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?( ?(UTC|Z|[+-]\d\d:?\d\d))?)?$"
)
"""Form of times that is parsed column by column."""
_MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_SAMPLE_ROWS = 1_000
_YEAR_1990 = 631_152_000e6
_NOTATIONS = (
    (r"^(\d{4})/(\d\d)/(\d\d)", r"\1-\2-\3"),
    (r"^(\d{4})(\d\d)(\d\d)([ T]|$)", r"\1-\2-\3\4"),
    (r"^(.{10})[ T](\d\d)(\d\d)(\d\d)", r"\1T\2:\3:\4"),
    (r"(:\d\d),(\d)", r"\1.\2"),
    (r"(:[\d.]+[+-]\d\d)$", r"\1:00"),
)
"""Frequent notations of ISO 8601 and their replacement in the form above."""


def microseconds(chunks: list[pa.Array], config: Timestamp) -> tuple[NDArray[Any], TimestampType]:
    """int64 microseconds since 1970 UTC or NO_TIME, and the raw type."""
    parts, kinds = [], []
    for chunk in chunks:
        part, kind = _microseconds(chunk, config)
        parts.append(part)
        kinds.append(kind)
    order: tuple[TimestampType, ...] = ("string", "float64", "int64")
    return np.concatenate(parts), next(kind for kind in order if kind in kinds)


def _microseconds(array: pa.Array, config: Timestamp) -> tuple[NDArray[Any], TimestampType]:
    if pa.types.is_duration(array.type) or pa.types.is_time(array.type):
        raise DataError(f"The timestamp column holds {array.type}, expected times, not durations.")
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("ms" if pa.types.is_date64(array.type) else "s"))
    if pa.types.is_timestamp(array.type):
        return _from_integers(array.cast(pa.int64()), array.type.unit), "string"
    if config.unit == "iso":
        return _from_text(as_text(array), config.format), "string"
    if is_text(array.type):
        integers = as_integers(array)
        if integers is None:
            # value by value, so that a time does not depend on its block
            integers = integers_or_unknown(array)
            integers = pc.if_else(pc.equal(integers, UNKNOWN_INTEGER), None, integers)
            exact = _from_integers(integers, config.unit)
            rounded = _from_floats(numbers([array], positive=False)[0], config.unit)[0]
            return np.where(exact != NO_TIME, exact, rounded), "float64"
        array = integers
    if pa.types.is_integer(array.type):
        return _from_integers(array, config.unit), "int64"
    return _from_floats(array.cast(pa.float64()).to_numpy(zero_copy_only=False), config.unit)


def _from_integers(array: pa.Array, unit: str) -> NDArray[Any]:
    if len(array) and not array.null_count:  # the usual column, without copies
        low, high = (float(value.as_py()) for value in pc.min_max(array).values())
        multiplier, divisor, latest = _scale(unit)
        if max(-low, high) < latest:
            times: NDArray[Any] = array.cast(pa.int64()).to_numpy()
            return times * multiplier if divisor == 1 else times // divisor
    is_valid = array.is_valid().to_numpy(zero_copy_only=False)
    return scale_times(pc.fill_null(array, 0).to_numpy(zero_copy_only=False), is_valid, unit)


def scale_times(
    times: NDArray[Any], is_valid: NDArray[Any], unit: str, arrays: Any = np
) -> NDArray[Any]:
    """(N,) int64 microseconds of integers, NO_TIME where these are not valid or out of range.

    `arrays` is the module of the arrays: NumPy or CuPy.
    """
    multiplier, divisor, latest = _scale(unit)
    usable = is_valid & (abs(times.astype(np.float64)) < latest)
    whole = arrays.where(usable, times, 0).astype(np.int64)
    scaled: NDArray[Any] = arrays.where(usable, whole * multiplier // divisor, NO_TIME)
    return scaled


def _scale(unit: str) -> tuple[int, int, float]:
    """Multiplier and divisor to microseconds, and the bound of usable times in the unit."""
    multiplier, divisor = {"s": (10**6, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[unit]
    return multiplier, divisor, min(LATEST_MICROSECONDS / multiplier * divisor, 2.0**63)


def _from_floats(times: NDArray[Any], unit: str) -> tuple[NDArray[Any], TimestampType]:
    with np.errstate(over="ignore"):
        scaled = times * _MICROSECONDS[unit]
    usable = np.abs(scaled) < LATEST_MICROSECONDS  # False for NaN
    whole = np.where(usable, np.rint(np.where(usable, scaled, 0)), NO_TIME)
    return whole.astype(np.int64), "float64"


def _from_text(text: pa.Array, time_format: str | None) -> NDArray[Any]:
    """Microseconds of times as text, as the server reads them."""
    if time_format is not None:
        return _from_format(text, time_format)
    times = _from_iso(text)
    other = pc.if_else(pa.array(times == NO_TIME), text, None)
    if other.null_count == len(other):
        return times
    other = pc.ascii_trim_whitespace(other)
    for pattern, replacement in _NOTATIONS:
        other = pc.replace_substring_regex(other, pattern, replacement)
    times = np.where(times == NO_TIME, _from_iso(other), times)
    # other forms are read one by one
    encoded = pc.if_else(pa.array(times == NO_TIME), text, None).dictionary_encode()
    moments = [parse_time(value) for value in encoded.dictionary.to_pylist()]
    moment = pa.array(moments, pa.int64()).take(encoded.indices).fill_null(NO_TIME)
    return np.where(times == NO_TIME, moment.to_numpy(zero_copy_only=False), times)


def _from_iso(text: pa.Array) -> NDArray[Any]:
    """Microseconds of text in the form `ISO_TIME`, NO_TIME for other text."""
    is_time = pc.fill_null(pc.match_substring_regex(text, ISO_TIME), False)
    text = pc.replace_substring_regex(pc.if_else(is_time, text, None), r" ?(UTC|Z)$", "+00:00")
    # each text needs a zone: pandas would use that of the text before it (issue 61389)
    text = pc.replace_substring_regex(text, r"^(.{10})$", r"\1T00:00")
    text = pc.replace_substring_regex(text, r"([ T][0-9:.]+)$", r"\1+00:00")
    times = pd.to_datetime(text.to_pandas(), format="ISO8601", utc=True, errors="coerce")
    return times.to_numpy("datetime64[us]").astype(np.int64)  # NaT is the smallest integer


def _from_format(text: pa.Array, time_format: str) -> NDArray[Any]:
    encoded = text.dictionary_encode()
    values = encoded.dictionary.to_pandas()
    times = pd.to_datetime(values, format=time_format, utc=True, errors="coerce")
    usable = (times.dt.year >= 1700) & (times.dt.year < 2200)
    moments = np.where(usable, times.to_numpy("datetime64[us]").astype(np.int64), NO_TIME)
    moment = pa.array(moments).take(encoded.indices).fill_null(NO_TIME)
    return moment.to_numpy(zero_copy_only=False)


def check_unit(array: pa.Array, config: Timestamp) -> None:
    """DataError if the times are implausible in the unit of the recipe but plausible in another.

    Plausible is a median between 1990 and tomorrow. A recipe with `earliest`, `latest` or `format`
    is not checked.
    """
    if config.bounds != (None, None) or config.format is not None or not len(array):
        return
    if not (
        is_text(array.type) or pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    ):
        return
    sample = array.take(pa.array(np.arange(0, len(array), sample_step(len(array)))))
    raw = numbers([sample], positive=False)[0]
    raw = np.sort(raw[~np.isnan(raw)])
    if 2 * len(raw) <= len(sample) - sample.null_count:
        _check_text(sample, config)
        return
    value = raw[len(raw) // 2]
    if config.unit == "iso" and _is_date(value):
        return
    scale = _MICROSECONDS.get(config.unit)
    if scale is not None and is_plausible(value * scale):
        return
    units = [unit for unit, scale in _MICROSECONDS.items() if is_plausible(value * scale)]
    units += ["iso"] * _is_date(value)
    if not units:
        return
    place = "are no text"
    if scale is not None:
        year = 1970 + value * scale / (365.2425 * 86_400e6)
        place = f"would be in the year {year:.0f}" if abs(year) < 10**6 else "would be in no year"
    raise DataError(_wrong_unit(f"{value:.0f}", config.unit, place, units[0]))


def sample_step(num_rows: int) -> int:
    """Step between the sampled rows whose unit is checked."""
    return max(1, num_rows // _SAMPLE_ROWS)


def _check_text(sample: pa.Array, config: Timestamp) -> None:
    """DataError for text times if the recipe expects numbers."""
    texts = as_text(sample).drop_null()
    if config.unit != "iso" and len(texts):
        text = texts[len(texts) // 2].as_py()
        if parse_time(text) is not None:
            raise DataError(_wrong_unit(text, config.unit, "are no numbers", "iso"))


def _wrong_unit(value: str, unit: str, place: str, better: str) -> str:
    return (
        f"Times such as {value} {place} with `timestamp.unit` {unit}. They look like {better}: set "
        f"it in the recipe, or by `--set preprocess.timestamp.unit={better}`. If they are right, "
        "set `timestamp.earliest`."
    )


def are_dates(latest_microseconds: float) -> bool:
    """Whether times are dates, by the latest one; step counters are before 1990."""
    return latest_microseconds >= _YEAR_1990


def is_plausible(microseconds: float) -> bool:
    """Whether a time is between 1990 and tomorrow."""
    return _YEAR_1990 <= microseconds <= (time.time() + 86_400) * 1e6


def _is_date(value: float) -> bool:
    """Whether a number has the digits of a date, such as 20200101."""
    moment = parse_time(f"{value:.0f}") if 19_900_101 <= value <= 99_991_231 else None
    return moment is not None and is_plausible(moment)
