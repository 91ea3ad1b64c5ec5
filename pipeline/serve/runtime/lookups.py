"""Lookup tables from raw values to indices.

In a column with `hash_buckets`, values outside the vocabulary share this number of indices from
FIRST_ITEM on; the indices of the vocabulary follow.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PADDING = 0
NULL = 1
OUT_OF_VOCABULARY = 2
FIRST_ITEM = 3
UNKNOWN_INTEGER = -(2**63) + 1
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
MISSING_INTEGER = -(2**63)
"""Missing value in an integer tensor of a request."""


def without_nul(values: NDArray[Any]) -> NDArray[Any]:
    """Remove NUL from texts, as in a log; return other values unchanged."""
    if values.dtype.kind not in "OSU":
        return values
    texts = [
        text.replace(b"\0", b"")
        if isinstance(text, bytes)
        else (text.replace("\0", "") if isinstance(text, str) else text)
        for text in values.reshape(-1).tolist()
    ]
    return object_array(texts).reshape(values.shape)


def object_array(values: list[Any]) -> NDArray[Any]:
    """Return (n,) Python objects."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


class IntegerLookup:
    """Maps integers to indices by binary search."""

    def __init__(self, values: NDArray[Any], hash_buckets: int = 0) -> None:
        self._hash_buckets = hash_buckets
        order = np.argsort(values, kind="stable")
        self._sorted = values[order]
        self._indices = order + FIRST_ITEM + hash_buckets

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """(n,) -> (n,) int64 indices."""
        values = values.astype(np.int64)
        indices = np.full(values.shape, OUT_OF_VOCABULARY, np.int64)
        if len(self._sorted):
            positions = np.minimum(np.searchsorted(self._sorted, values), len(self._sorted) - 1)
            matches = self._sorted[positions] == values
            indices[matches] = self._indices[positions[matches]]
        if self._hash_buckets:
            for position in np.flatnonzero(indices == OUT_OF_VOCABULARY):
                indices[position] = bucket_of(b"%d" % values[position], self._hash_buckets)
        indices[values == MISSING_INTEGER] = NULL
        return indices


class TextLookup:
    """Maps UTF-8 texts to indices by a hash table; empty text is missing."""

    def __init__(self, values: list[bytes], hash_buckets: int = 0) -> None:
        shift = FIRST_ITEM + hash_buckets
        self._indices = _Indices((value, shift + i) for i, value in enumerate(values))
        self._indices[b""] = NULL
        self._indices.hash_buckets = hash_buckets

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """(n,) bytes or str -> (n,) int64 indices."""
        index = self._indices
        keys = (v if isinstance(v, bytes) else str(v).encode("utf-8") for v in values)
        return np.fromiter((index[k] for k in keys), np.int64, len(values))


class _Indices(dict[bytes, int]):
    """Indices by value, with a shared index for values outside the vocabulary."""

    hash_buckets = 0

    def __missing__(self, value: bytes) -> int:
        if b"\0" in value:  # a log is read without NUL
            return self[value.replace(b"\0", b"")]
        return bucket_of(value, self.hash_buckets) if self.hash_buckets else OUT_OF_VOCABULARY


SEPARATOR_IN_TAG = "\x1f"
"""Replaces the separator inside a tag of a list, so that the tag is not split."""


_IN_TAG = SEPARATOR_IN_TAG.encode()


class MultiValuedLookup:
    """Maps texts of several tags to M indices each, with padding after the last."""

    def __init__(
        self, lookup: IntegerLookup | TextLookup, separator: str, columns: list[str]
    ) -> None:
        self._lookup = lookup
        self._separator = separator.encode("utf-8")
        self._max_values = len(columns)

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """(n,) bytes or str -> (n, M) int64 indices."""
        indices = np.full((len(values), self._max_values), PADDING, np.int64)
        indices[:, :1] = NULL
        words, cells = [], []
        for row, value in enumerate(values):
            text = value if isinstance(value, bytes) else str(value).encode("utf-8")
            text = text.replace(b"\0", b"")
            tags = [word for part in text.split(self._separator) if (word := part.strip(b" \t"))]
            tags = [tag.replace(_IN_TAG, self._separator) for tag in tags[: self._max_values]]
            words += tags
            cells += [row * self._max_values + position for position in range(len(tags))]
        if words:
            indices.reshape(-1)[cells] = self._lookup(self._typed(words))
        return indices

    def _typed(self, words: list[bytes]) -> NDArray[Any]:
        if isinstance(self._lookup, TextLookup):
            return object_array(words)
        return np.array([_integer(word) for word in words], np.int64)


def _integer(word: bytes) -> int:
    """Return the integer of canonical text; UNKNOWN_INTEGER, in no table, for other text."""
    if _INTEGER.fullmatch(word) and -(2**63) <= (number := int(word)) < 2**63:
        return number
    return UNKNOWN_INTEGER


def bucket_of(text: bytes, hash_buckets: int) -> int:
    """Return the hash bucket of a value outside the vocabulary, by its CRC-32."""
    return FIRST_ITEM + zlib.crc32(text) % hash_buckets


def read_array(path: Path) -> NDArray[Any]:
    """Read an array. ValueError, before memory is allocated, for a file shorter than its header."""
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False))


def read_values(directory: Path, name: str, kind: str) -> NDArray[Any] | list[bytes]:
    """Read the values of a categorical column in the order of their indices."""
    if kind == "int64":
        return read_array(directory / f"{name}.npy")
    joined = read_array(directory / f"{name}.npy").tobytes()
    offsets = read_array(directory / f"{name}.offsets.npy").tolist()
    return [joined[a:b] for a, b in zip(offsets, offsets[1:])]  # noqa: B905, RUF007


def lookup_of(
    values: NDArray[Any] | list[bytes], hash_buckets: int = 0
) -> IntegerLookup | TextLookup:
    """Return the lookup for the type of the values."""
    if isinstance(values, list):
        return TextLookup(values, hash_buckets)
    return IntegerLookup(values, hash_buckets)
