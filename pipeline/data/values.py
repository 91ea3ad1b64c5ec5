"""Raw columns converted to the types of the workflow: ids and categories, numbers, times."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.data.fitted import TimestampType, ValueType
from pipeline.recipe.preprocess import Timestamp

UNKNOWN_INTEGER = -(2**63) + 1
"""Placeholder of a value that is no integer in a column of integers; in no vocabulary."""
NO_TIME = -(2**63)
"""Placeholder of a time that is missing or unreadable."""
LATEST_MICROSECONDS = 2**62
"""About the year 148,000; later times are unreadable, and their differences would overflow."""
FEW = 16
"""Ratio of rows to distinct values from which on text is kept as a dictionary."""
_FIRST_ROWS = 1_000
ISO_TIME = (
    r"^(1[7-9]|2[01])\d\d-\d\d-\d\d"
    r"([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?( ?(UTC|Z|[+-]\d\d:?\d\d))?)?$"
)
"""Text that is read as a time: a date, with or without the time of day and the zone."""


def to_array(column: pa.ChunkedArray) -> pa.Array:
    """One array, without chunks and dictionary."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def categories(chunks: list[pa.Array], kind: ValueType | None) -> tuple[pd.Series, ValueType]:
    """Ids or categories as int64 (nullable if some are missing) or as text, and their type.

    Without `kind`, they are integers if each one is an integer in its canonical form, so that its
    text is not changed; otherwise text. Empty text is missing.
    """
    converted = [category_chunk(chunk, kind) for chunk in chunks]
    common = common_type([chunk_kind for _, chunk_kind in converted])
    whole = pa.concat_arrays([decode_dictionary(as_type(part, common)) for part, _ in converted])
    if common == "string":
        return whole.to_pandas(), common
    if whole.null_count == 0:
        return pd.Series(whole.to_numpy()), common
    return whole.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get), common


def category_chunk(chunk: pa.Array, kind: ValueType | None) -> tuple[pa.Array, ValueType]:
    """Part of a column of ids: int64 if each value is an integer in its canonical form, else text.

    Text with few distinct values is returned as a dictionary. With `kind` it becomes that type; a
    value that is no integer is `UNKNOWN_INTEGER` then.
    """
    if _is_text(chunk.type):
        encoded = chunk.dictionary_encode()
        if len(encoded.dictionary) * FEW < len(chunk):
            values, value_kind = category_chunk(encoded.dictionary, kind)
            if value_kind == "int64" or values.null_count:
                return decode_dictionary(values.take(encoded.indices)), value_kind
            return pa.DictionaryArray.from_arrays(encoded.indices, values), value_kind
    if kind == "string":
        return _as_text(chunk), "string"
    integers = _as_integers(chunk)
    if integers is not None:
        return integers, "int64"
    if kind == "int64":
        return _integers_or_unknown(chunk), "int64"
    return _as_text(chunk), "string"


def split_values(
    array: pa.Array, separator: str, max_values: int, kind: ValueType | None
) -> tuple[list[pa.Array], ValueType]:
    """Texts of several categories as `max_values` columns of one each, missing after the last.

    Spaces around a category are removed, empty categories left out. Types as `category_chunk`.
    """
    encoded = _as_text(array).dictionary_encode()
    lists = pc.split_pattern(encoded.dictionary, separator)
    words = pc.utf8_trim(pc.list_flatten(lists), " \t")
    is_filled = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    text = pc.list_parent_indices(lists).to_numpy()[is_filled]
    counts = np.bincount(text, minlength=len(lists))
    values, kind = category_chunk(words.filter(pa.array(is_filled)), kind)
    values = decode_dictionary(values)
    codes = values.dictionary_encode() if kind == "string" else None
    starts = np.cumsum(counts) - counts
    columns = []
    for number in range(max_values):
        position = pa.array(starts + number, mask=counts <= number).take(encoded.indices)
        if codes is None or len(codes.dictionary) * FEW >= len(array):
            columns.append(values.take(position))
        else:
            indices = codes.indices.take(position)
            columns.append(pa.DictionaryArray.from_arrays(indices, codes.dictionary))
    return columns, kind


def common_type(kinds: Iterable[ValueType]) -> ValueType:
    """Type of a column whose parts have these types: integers if all parts are."""
    return "int64" if all(kind == "int64" for kind in kinds) else "string"


def as_type(array: pa.Array, kind: ValueType) -> pa.Array:
    """Convert the integers of a chunk of `category_chunk` to text if `kind` is string."""
    if kind == "string" and pa.types.is_integer(array.type):
        return array.cast(pa.string())
    return array


def decode_dictionary(array: pa.Array) -> pa.Array:
    """Array without a dictionary."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def numbers(chunks: list[pa.Array], *, positive: bool) -> tuple[NDArray[Any], int]:
    """float64 with NaN for missing and unusable values, and the number of unusable ones.

    Unusable are text that is no number, numbers out of the range of float32 and, if `positive`,
    numbers without log(1 + x) in float32. True is 1 and False 0, as text too.
    """
    parts, bad = [], 0
    for chunk in chunks:
        if pa.types.is_boolean(chunk.type):
            chunk = chunk.cast(pa.int8())
        numeric = pa.types.is_floating(chunk.type) or pa.types.is_integer(chunk.type)
        if numeric or pa.types.is_null(chunk.type):
            part = chunk.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        else:
            text = pc.if_else(pc.equal(chunk.cast(pa.string()), ""), None, chunk.cast(pa.string()))
            part = pd.to_numeric(text.to_pandas(), errors="coerce").to_numpy(np.float64)
            if np.isnan(part).any():
                part = _replace_truths(part, text)
            bad += int((np.isnan(part) & text.is_valid().to_numpy(zero_copy_only=False)).sum())
        parts.append(part)
    whole = np.concatenate(parts)
    with np.errstate(over="ignore"):
        narrow = whole.astype(np.float32)
    unusable = np.isinf(narrow) | (positive & (narrow <= -1))
    return np.where(unusable, np.nan, whole), bad + int(unusable.sum())


def _replace_truths(numbers: NDArray[Any], text: pa.Array) -> NDArray[Any]:
    lower = pc.utf8_lower(text)
    for word, number in (("true", 1.0), ("false", 0.0)):
        is_word = pc.fill_null(pc.equal(lower, word), False).to_numpy(zero_copy_only=False)
        numbers = np.where(is_word, number, numbers)
    return numbers


def bucket(numbers: NDArray[Any], bounds: tuple[float, ...]) -> pa.Array:
    """(N,) int64, the number of rising `bounds` that are at most the number; null for NaN."""
    buckets = np.searchsorted(np.array(bounds), numbers, side="right").astype(np.int64)
    return pa.array(buckets, mask=np.isnan(numbers))


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
        return _from_text(array.cast(pa.string())), "string"
    if _is_text(array.type):
        integers = _as_integers(array)
        if integers is None:
            # value by value, so that none depends on the others of its block
            integers = _integers_or_unknown(array)
            integers = pc.if_else(pc.equal(integers, UNKNOWN_INTEGER), None, integers)
            exact = _from_integers(integers, config.unit)
            rounded = _from_floats(numbers([array], positive=False)[0], config.unit)[0]
            return np.where(exact != NO_TIME, exact, rounded), "float64"
        array = integers
    if pa.types.is_integer(array.type):
        return _from_integers(array, config.unit), "int64"
    return _from_floats(array.cast(pa.float64()).to_numpy(zero_copy_only=False), config.unit)


def _from_integers(array: pa.Array, unit: str) -> NDArray[Any]:
    is_valid = array.is_valid().to_numpy(zero_copy_only=False)
    return scale_times(pc.fill_null(array, 0).to_numpy(zero_copy_only=False), is_valid, unit)


def scale_times(
    times: NDArray[Any], is_valid: NDArray[Any], unit: str, arrays: Any = np
) -> NDArray[Any]:
    """(N,) int64 microseconds of integers, NO_TIME where these are not valid or out of range.

    `arrays` is the module of the arrays: NumPy or CuPy.
    """
    multiplier, divisor = {"s": (10**6, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[unit]
    latest = min(LATEST_MICROSECONDS / multiplier * divisor, 2.0**63)
    usable = is_valid & (abs(times.astype(np.float64)) < latest)
    whole = arrays.where(usable, times, 0).astype(np.int64)
    scaled: NDArray[Any] = arrays.where(usable, whole * multiplier // divisor, NO_TIME)
    return scaled


def _from_floats(times: NDArray[Any], unit: str) -> tuple[NDArray[Any], TimestampType]:
    with np.errstate(over="ignore"):
        scaled = times * {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[unit]
    usable = np.abs(scaled) < LATEST_MICROSECONDS  # False for NaN
    whole = np.where(usable, np.rint(np.where(usable, scaled, 0)), NO_TIME)
    return whole.astype(np.int64), "float64"


def _from_text(text: pa.Array) -> NDArray[Any]:
    is_time = pc.fill_null(pc.match_substring_regex(text, ISO_TIME), False)
    text = pc.replace_substring_regex(pc.if_else(is_time, text, None), r" ?(UTC|Z)$", "+00:00")
    # each text needs a zone: pandas would use that of the text before it (issue 61389)
    text = pc.replace_substring_regex(text, r"^(.{10})$", r"\1T00:00")
    text = pc.replace_substring_regex(text, r"([ T][0-9:.]+)$", r"\1+00:00")
    times = pd.to_datetime(text.to_pandas(), format="ISO8601", utc=True, errors="coerce")
    return times.to_numpy("datetime64[us]").astype(np.int64)  # NaT is the smallest integer


def _as_integers(array: pa.Array) -> pa.Array | None:
    """int64 if no value changes by the conversion, else None; int64 for a column of nulls."""
    kind = array.type
    try:
        if pa.types.is_null(kind) or pa.types.is_integer(kind) or _is_decimal(kind):
            return array.cast(pa.int64())
        if pa.types.is_floating(kind):  # pandas turns integers with missing values into floats
            return pc.if_else(pc.is_nan(array), None, array).cast(pa.int64())
        if _is_text(kind):
            text = _as_text(array)
            # the cast fails at the first text that is no integer, but reads the whole array first
            text.slice(0, _FIRST_ROWS).cast(pa.int64())
            whole = text.cast(pa.int64())
            return whole if whole.cast(pa.string()).equals(text) else None
    except pa.ArrowInvalid:
        return None
    return None


def _integers_or_unknown(array: pa.Array) -> pa.Array:
    """int64 of the values that are integers; UNKNOWN_INTEGER for the others."""
    text = _as_text(array)
    is_canonical = pc.match_substring_regex(text, r"^(0|-?[1-9][0-9]{0,18})$")
    # digits padded to one length compare as the numbers do
    digits = pc.replace_substring_regex(text, "^-", "")
    fits = pc.less_equal(pc.utf8_lpad(digits, 19, "0"), str(2**63 - 1))
    is_integer = pc.and_(is_canonical, fits)
    integers = pc.if_else(is_integer, text, None).cast(pa.int64())
    is_unknown = pc.and_(pc.is_valid(text), pc.invert(pc.fill_null(is_integer, False)))
    return pc.if_else(is_unknown, UNKNOWN_INTEGER, integers)


def _as_text(array: pa.Array) -> pa.Array:
    """Text, missing if empty; whole numbers have no decimal point.

    Converted value by value, so that an id does not depend on the others of its block.
    """
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
        whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**63))
        integers = pc.if_else(whole, array, None).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(integers, array.cast(pa.string()))
    if _is_decimal(array.type):
        text = pc.replace_substring_regex(array.cast(pa.string()), r"\.0+$", "")
        return pc.replace_substring_regex(text, r"^0E-\d+$", "0")  # as Arrow writes 0.0000000
    text = array.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def _is_decimal(kind: pa.DataType) -> bool:
    """Decimals of Parquet; Arrow also has some of a negative scale."""
    return bool(pa.types.is_decimal(kind)) and kind.scale >= 0


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
