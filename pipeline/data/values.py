"""Raw columns converted to the types of the workflow: ids and categories, numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.fitted import ValueType
from pipeline.serve.runtime.lookups import SEPARATOR_IN_TAG

UNKNOWN_INTEGER = -(2**63) + 1
"""Placeholder of a value that is not an integer in an integer column; never in a vocabulary."""
FEW = 16
"""Minimum ratio of rows to distinct values at which text is dictionary-encoded."""
_FIRST_ROWS = 1_000
_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
_CURRENCY = (
    r"^\s*(?:\p{Sc}|[A-Z]{3})?[\s\x{a0}]*([+-]?[0-9.,].*?)[\s\x{a0}]*(?:\p{Sc}|[A-Z]{3}|%)?\s*$"
)
"""Number with a currency symbol or code before or after it."""


def to_array(column: pa.ChunkedArray) -> pa.Array:
    """One array, without chunks and dictionary."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def example(array: pa.Array, at: int) -> Any:
    """Value at a position for a message; times as text, as Python's types do not hold all of
    them."""
    value = array.slice(at, 1)
    return (value.cast(pa.string()) if pa.types.is_temporal(array.type) else value)[0].as_py()


def categories(chunks: list[pa.Array], kind: ValueType | None) -> tuple[pd.Series, ValueType]:
    """Ids or categories as int64 (nullable if some are missing) or as text, and their type.

    Without `kind`, the type is integer if each value is an integer in canonical form, so that its
    text does not change; otherwise text. Empty text is missing.
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

    Text with few distinct values is dictionary-encoded. `kind` fixes the type; a value that is not
    an integer then becomes `UNKNOWN_INTEGER`.
    """
    if kind != "string" and (integers := as_integers(chunk)) is not None:
        return integers, "int64"
    if is_text(chunk.type):
        encoded = chunk.dictionary_encode()
        if len(encoded.dictionary) * FEW < len(chunk):
            values, value_kind = category_chunk(encoded.dictionary, kind)
            if value_kind == "int64" or values.null_count:
                return decode_dictionary(values.take(encoded.indices)), value_kind
            return pa.DictionaryArray.from_arrays(encoded.indices, values), value_kind
    if kind == "int64":
        return integers_or_unknown(chunk), "int64"
    return as_text(chunk), "string"


def split_values(
    array: pa.Array, separator: str, max_values: int, kind: ValueType | None
) -> tuple[list[pa.Array], ValueType]:
    """Split texts of several categories into `max_values` columns, missing after the last.

    Spaces around a category are removed, empty categories left out. Types are those of
    `category_chunk`.
    """
    encoded = as_text(array).dictionary_encode()
    lists = pc.split_pattern(encoded.dictionary, separator)
    words = pc.utf8_trim(pc.list_flatten(lists), " \t")
    words = pc.replace_substring(words, SEPARATOR_IN_TAG, separator)
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
    """Type of a column from the types of its parts: integer if all parts are."""
    return "int64" if all(kind == "int64" for kind in kinds) else "string"


def as_type(array: pa.Array, kind: ValueType) -> pa.Array:
    """Convert the integers of a chunk of `category_chunk` to text if `kind` is string."""
    if kind == "string" and pa.types.is_integer(array.type):
        return array.cast(pa.string())
    return array


def decode_dictionary(array: pa.Array) -> pa.Array:
    """Array without a dictionary."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def numbers(
    chunks: list[pa.Array], *, positive: bool, decimal: str | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(N,) float64, NaN for missing and unusable values, and (N,) bool, True for unusable values.

    Unusable are text that is not a number, numbers out of the range of float32 and, if `positive`,
    numbers without log(1 + x) in float32. True is 1 and False 0, also as text. With a `decimal`
    mark, text may have thousands separators and a currency.
    """
    parts, bad = [], []
    for chunk in chunks:
        if pa.types.is_boolean(chunk.type):
            chunk = chunk.cast(pa.int8())
        numeric = pa.types.is_floating(chunk.type) or pa.types.is_integer(chunk.type)
        if numeric or pa.types.is_null(chunk.type):
            part = chunk.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            bad.append(np.zeros(len(part), np.bool_))
        else:
            part, is_bad = _numbers_of_text(chunk.cast(pa.string()), decimal)
            bad.append(is_bad)
        parts.append(part)
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    with np.errstate(over="ignore"):
        narrow = whole.astype(np.float32)
    unusable = np.isinf(narrow)
    if positive:
        unusable |= narrow <= -1
    return np.where(unusable, np.nan, whole), np.concatenate(bad) | unusable


def _without_marks(text: pa.Array, decimal: str) -> pa.Array:
    """Numbers in Python's notation; null for text that is not a number with this decimal mark."""
    thousands = "." if decimal == "," else ","
    text = pc.replace_substring_regex(text, _CURRENCY, r"\1")
    groups = rf"[+-]?\d{{1,3}}(?:[{thousands}'’\s\x{{a0}}\x{{202f}}]\d{{3}})+"
    pattern = rf"^(?:{groups}|[+-]?\d+)?(?:[{decimal}]\d*)?(?:[eE][+-]?\d+)?$"
    text = pc.if_else(pc.match_substring_regex(text, pattern), text, None)
    text = pc.replace_substring_regex(text, rf"[^0-9eE{decimal}+-]", "")
    return pc.replace_substring(text, decimal, ".")


def _numbers_of_text(text: pa.Array, decimal: str | None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(N,) float64, NaN for text that is not a number, and (N,) bool, True where it is not
    empty."""
    try:
        if decimal is None:  # fast path: every text is a number
            part = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
            return part, np.isnan(part) & _is_filled(text)
    except pa.ArrowInvalid:
        pass
    plain = pc.ascii_trim_whitespace(text) if decimal is None else _without_marks(text, decimal)
    plain = pc.if_else(pc.match_substring_regex(plain, _NUMBER), plain, None)
    part = plain.cast(pa.float64()).to_numpy(zero_copy_only=False)
    lower = pc.utf8_lower(text)
    for word, number in (("true", 1.0), ("false", 0.0)):
        is_word = pc.fill_null(pc.equal(lower, word), False).to_numpy(zero_copy_only=False)
        part = np.where(is_word, number, part)
    return part, np.isnan(part) & _is_filled(text)


def _is_filled(text: pa.Array) -> NDArray[np.bool_]:
    """(N,) bool: whether a text is neither null nor empty."""
    is_filled: NDArray[np.bool_] = pc.fill_null(pc.not_equal(text, ""), False).to_numpy(
        zero_copy_only=False
    )
    return is_filled


def bucket(numbers: NDArray[Any], bounds: tuple[float, ...]) -> pa.Array:
    """(N,) int64 number of ascending `bounds` at or below each number; null for NaN."""
    buckets = np.searchsorted(np.array(bounds), numbers, side="right").astype(np.int64)
    return pa.array(buckets, mask=np.isnan(numbers))


def as_integers(array: pa.Array) -> pa.Array | None:
    """Convert to int64, also a column of nulls; None if the conversion would change a value."""
    kind = array.type
    try:
        if pa.types.is_null(kind) or pa.types.is_integer(kind) or _is_decimal(kind):
            return array.cast(pa.int64())
        if pa.types.is_floating(kind):  # pandas turns integers with missing values into floats
            return pc.if_else(pc.is_nan(array), None, array).cast(pa.int64())
        if is_text(kind):
            # the cast fails at the first text that is no integer, but reads the whole array first
            as_text(array.slice(0, _FIRST_ROWS)).cast(pa.int64())
            text = as_text(array)
            whole = text.cast(pa.int64())
            return whole if whole.cast(pa.string()).equals(text) else None
    except pa.ArrowInvalid:
        return None
    return None


def integers_or_unknown(array: pa.Array) -> pa.Array:
    """Convert integers to int64, and other values to UNKNOWN_INTEGER."""
    text = as_text(array)
    is_canonical = pc.match_substring_regex(text, r"^(0|-?[1-9][0-9]{0,18})$")
    # digits padded to one length compare as the numbers do
    digits = pc.replace_substring_regex(text, "^-", "")
    fits = pc.less_equal(pc.utf8_lpad(digits, 19, "0"), str(2**63 - 1))
    is_integer = pc.and_(is_canonical, fits)
    integers = pc.if_else(is_integer, text, None).cast(pa.int64())
    is_unknown = pc.and_(pc.is_valid(text), pc.invert(pc.fill_null(is_integer, False)))
    return pc.if_else(is_unknown, UNKNOWN_INTEGER, integers)


def as_text(array: pa.Array) -> pa.Array:
    """Convert to text, missing if empty; whole numbers have no decimal point.

    Conversion is value by value, so that an id does not depend on its block.
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
    is_empty = pc.equal(text, "")
    return pc.if_else(is_empty, None, text) if pc.any(is_empty).as_py() else text


def _is_decimal(kind: pa.DataType) -> bool:
    """Whether a type is a decimal of Parquet, whose scale is not negative."""
    return bool(pa.types.is_decimal(kind)) and kind.scale >= 0


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
