"""Columns as a file holds them to the types that the workflow takes: indices, numbers, times."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import DataError
from pipeline.data.fitted import TimestampType, ValueType
from pipeline.recipe.preprocess import Timestamp

UNKNOWN_INTEGER = -(2**63) + 1
"""Stands for a value that is no integer where integers were learned; in no vocabulary."""
NO_TIME = -(2**63)
"""Stands for a time that is missing or not to be read."""
LATEST_MICROSECONDS = 2**62
"""About the year 148,000; beyond that a number is no time, and differences would overflow."""
FEW = 16
"""Text with fewer values than rows by this factor is kept as a dictionary."""
_GLANCE = 1_000
ISO_TIME = (
    r"^(1[7-9]|2[01])\d\d-\d\d-\d\d"
    r"([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?( ?(UTC|Z|[+-]\d\d:?\d\d))?)?$"
)
"""Text that counts as a time: a date, the time of day and the zone where they are given."""


def plain(column: pa.ChunkedArray) -> pa.Array:
    """One array with dictionaries decoded."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def categories(chunks: list[pa.Array], wanted: ValueType | None) -> tuple[pd.Series, ValueType]:
    """Ids and categories as int64 (nullable where some are missing) or as text.

    They are integers if every one of them is, in every file, and is written the one way that
    gives the same text back, so that no id is changed; otherwise text. An empty text is missing.
    """
    read = [category_chunk(chunk, wanted) for chunk in chunks]
    kind = common_type([found for _, found in read])
    whole = pa.concat_arrays([plain_text(as_type(part, kind)) for part, _ in read])
    if kind == "string":
        return whole.to_pandas(), kind
    if whole.null_count == 0:
        return pd.Series(whole.to_numpy()), kind
    return whole.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get), kind


def category_chunk(chunk: pa.Array, wanted: ValueType | None) -> tuple[pa.Array, ValueType]:
    """Part of a column of ids: int64 if each of its values is an integer in its one form, or text.

    Text of few values is a dictionary. With `wanted` it becomes that type: what is no integer then
    is `UNKNOWN_INTEGER`.
    """
    if _is_text(chunk.type):
        encoded = chunk.dictionary_encode()
        values = encoded.dictionary
        if len(values) * FEW < len(chunk):
            found, kind = category_chunk(values, wanted)
            if kind == "int64" or found.null_count:
                return plain_text(found.take(encoded.indices)), kind
            return pa.DictionaryArray.from_arrays(encoded.indices, found), kind
    if wanted == "string":
        return _as_text(chunk), "string"
    integers = _as_integers(chunk)
    if integers is not None:
        return integers, "int64"
    return (_known_integers(chunk), "int64") if wanted == "int64" else (_as_text(chunk), "string")


def several(
    array: pa.Array, separator: str, most: int, wanted: ValueType | None
) -> tuple[list[pa.Array], ValueType]:
    """Texts of several categories to `most` columns of one each, missing after the last.

    Spaces around a category are taken off, empty ones left out. As `category_chunk` otherwise.
    """
    encoded = _as_text(array).dictionary_encode()
    split = pc.split_pattern(encoded.dictionary, separator)
    words = pc.utf8_trim(pc.list_flatten(split), " \t")
    filled = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    text = pc.list_parent_indices(split).to_numpy()[filled]
    counts = np.bincount(text, minlength=len(split))
    found, kind = category_chunk(words.filter(pa.array(filled)), wanted)
    found = plain_text(found)
    codes = None
    if kind == "string":
        codes = found.dictionary_encode()
    starts = np.cumsum(counts) - counts
    columns = []
    for number in range(most):
        place = pa.array(starts + number, mask=counts <= number).take(encoded.indices)
        if codes is None or len(codes.dictionary) * FEW >= len(array):
            columns.append(found.take(place))
        else:
            taken = codes.indices.take(place)
            columns.append(pa.DictionaryArray.from_arrays(taken, codes.dictionary))
    return columns, kind


def common_type(kinds: Iterable[ValueType]) -> ValueType:
    """Of a column whose parts are of these kinds: integers if each of them is."""
    return "int64" if all(kind == "int64" for kind in kinds) else "string"


def as_type(array: pa.Array, kind: ValueType) -> pa.Array:
    """A chunk as `category_chunk` gives it; integers become the text that they were."""
    if kind == "string" and pa.types.is_integer(array.type):
        return array.cast(pa.string())
    return array


def plain_text(array: pa.Array) -> pa.Array:
    """Without a dictionary."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def numbers(chunks: list[pa.Array], *, positive: bool) -> tuple[np.ndarray, int]:
    """float64 with NaN for what is missing, and how many values were there but no use.

    True is 1 and False 0, as a text too, in which a table of them may be written.
    Not usable are text that is no number, what float32 cannot hold and, if `positive`, what has
    no log(1 + x) in float32.
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
                part = _with_truths(part, text)
            bad += int((np.isnan(part) & text.is_valid().to_numpy(zero_copy_only=False)).sum())
        parts.append(part)
    whole = np.concatenate(parts)
    with np.errstate(over="ignore"):
        narrow = whole.astype(np.float32)
    unusable = np.isinf(narrow) | (positive & (narrow <= -1))
    return np.where(unusable, np.nan, whole), bad + int(unusable.sum())


def _with_truths(numbers: np.ndarray, text: pa.Array) -> np.ndarray:
    lower = pc.utf8_lower(text)
    for word, number in (("true", 1.0), ("false", 0.0)):
        there = pc.fill_null(pc.equal(lower, word), False).to_numpy(zero_copy_only=False)
        numbers = np.where(there, number, numbers)
    return numbers


def bucket(numbers: np.ndarray, bounds: tuple[float, ...]) -> pa.Array:
    """(N,) int64, how many of the rising `bounds` are at most the number; null for NaN."""
    found = np.searchsorted(np.array(bounds), numbers, side="right").astype(np.int64)
    return pa.array(found, mask=np.isnan(numbers))


def microseconds(chunks: list[pa.Array], config: Timestamp) -> tuple[np.ndarray, TimestampType]:
    """int64 microseconds since 1970 UTC, NO_TIME where there is none, and the raw type."""
    parts, kinds = [], []
    for chunk in chunks:
        part, kind = _microseconds(chunk, config)
        parts.append(part)
        kinds.append(kind)
    order: tuple[TimestampType, ...] = ("string", "float64", "int64")
    return np.concatenate(parts), next(kind for kind in order if kind in kinds)


def _microseconds(array: pa.Array, config: Timestamp) -> tuple[np.ndarray, TimestampType]:
    if pa.types.is_duration(array.type) or pa.types.is_time(array.type):
        raise DataError(f"The timestamp column holds {array.type}, expected moments, not spans.")
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("ms" if pa.types.is_date64(array.type) else "s"))
    if pa.types.is_timestamp(array.type):
        return _from_integers(array.cast(pa.int64()), array.type.unit), "string"
    if config.unit == "iso":
        return _from_text(array.cast(pa.string())), "string"
    if _is_text(array.type):
        integers = _as_integers(array)
        if integers is None:
            # each value by itself, so that none depends on those it is read with
            known = _known_integers(array)
            exact = _from_integers(_without_unknown(known), config.unit)
            rounded = _from_floats(numbers([array], positive=False)[0], config.unit)[0]
            return np.where(exact != NO_TIME, exact, rounded), "float64"
        array = integers
    if pa.types.is_integer(array.type):
        return _from_integers(array, config.unit), "int64"
    return _from_floats(array.cast(pa.float64()).to_numpy(zero_copy_only=False), config.unit)


def _from_integers(array: pa.Array, unit: str) -> np.ndarray:
    known = array.is_valid().to_numpy(zero_copy_only=False)
    times = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
    multiplier, divisor = {"s": (10**6, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[unit]
    latest = min(LATEST_MICROSECONDS / multiplier * divisor, 2.0**63)
    usable = known & (np.abs(times.astype(np.float64)) < latest)
    whole = np.where(usable, times, 0).astype(np.int64)
    return np.where(usable, whole * multiplier // divisor, NO_TIME)


def _from_floats(times: np.ndarray, unit: str) -> tuple[np.ndarray, TimestampType]:
    with np.errstate(over="ignore"):
        scaled = times * {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[unit]
    usable = np.abs(scaled) < LATEST_MICROSECONDS  # False for NaN
    whole = np.where(usable, np.rint(np.where(usable, scaled, 0)), NO_TIME)
    return whole.astype(np.int64), "float64"


def _from_text(text: pa.Array) -> np.ndarray:
    readable = pc.fill_null(pc.match_substring_regex(text, ISO_TIME), False)
    text = pc.replace_substring_regex(pc.if_else(readable, text, None), r" ?(UTC|Z)$", "+00:00")
    # every text gets a zone: pandas gives one without that of the text before it (issue 61389)
    text = pc.replace_substring_regex(text, r"^(.{10})$", r"\1T00:00")
    text = pc.replace_substring_regex(text, r"([ T][0-9:.]+)$", r"\1+00:00")
    times = pd.to_datetime(text.to_pandas(), format="ISO8601", utc=True, errors="coerce")
    return times.to_numpy("datetime64[us]").astype(np.int64)  # NaT is the smallest integer


def _as_integers(array: pa.Array) -> pa.Array | None:
    """int64 if nothing is lost by it, else None. A column without any value can be either."""
    kind = array.type
    try:
        if pa.types.is_null(kind) or pa.types.is_integer(kind) or _is_decimal(kind):
            return array.cast(pa.int64())
        if pa.types.is_floating(kind):  # what pandas makes of integers with a gap
            return pc.if_else(pc.is_nan(array), None, array).cast(pa.int64())
        if _is_text(kind):
            text = _as_text(array)
            # at the first that is none the whole cast fails, but only after it has read all
            text.slice(0, _GLANCE).cast(pa.int64())
            whole = text.cast(pa.int64())
            return whole if whole.cast(pa.string()).equals(text) else None
    except pa.ArrowInvalid:
        return None
    return None


def _known_integers(array: pa.Array) -> pa.Array:
    """int64 of values some of which are no integers; those become UNKNOWN_INTEGER."""
    text = _as_text(array)
    canonical = pc.match_substring_regex(text, r"^(0|-?[1-9][0-9]{0,18})$")
    # as text of one length, numbers compare as they do themselves
    digits = pc.replace_substring_regex(text, "^-", "")
    fits = pc.less_equal(pc.utf8_lpad(digits, 19, "0"), str(2**63 - 1))
    known = pc.and_(canonical, fits)
    whole = pc.if_else(known, text, None).cast(pa.int64())
    unknown = pc.and_(pc.is_valid(text), pc.invert(pc.fill_null(known, False)))
    return pc.if_else(unknown, UNKNOWN_INTEGER, whole)


def _without_unknown(array: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(array, UNKNOWN_INTEGER), None, array)


def _as_text(array: pa.Array) -> pa.Array:
    """Text with the empty one as missing; whole numbers without a decimal point.

    Each value by itself, so that an id is the same in whichever part of a log it stands.
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
    """As Parquet has them; Arrow itself knows others, of multiples of ten."""
    return bool(pa.types.is_decimal(kind)) and kind.scale >= 0


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
