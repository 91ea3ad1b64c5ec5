"""Tables between raw values and indices.

Of a column with `hash_buckets` so many indices from FIRST_ITEM on are shared by what has none of
its own; those of the values follow.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np

PADDING = 0
NULL = 1
OUT_OF_VOCABULARY = 2
FIRST_ITEM = 3
CLOSE = 4
"""Entries of a table for each of the values that it may have."""
UNKNOWN_INTEGER = -(2**63) + 1
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
MISSING_INTEGER = -(2**63)
"""Stands for a missing value where a request's tensor holds integers."""


def without_nul(values: np.ndarray) -> np.ndarray:
    """Texts as they are in a log, where no NUL stays; all else as it is."""
    if values.dtype.kind not in "OSU":
        return values
    found = np.empty(values.size, object)
    found[:] = [
        text.replace(b"\0", b"")
        if isinstance(text, bytes)
        else (text.replace("\0", "") if isinstance(text, str) else text)
        for text in values.reshape(-1).tolist()
    ]
    return found.reshape(values.shape)


class IntegerLookup:
    """Integers to indices: by a table where they lie close together, else by binary search."""

    def __init__(self, values: np.ndarray, hash_buckets: int = 0) -> None:
        self._hash_buckets = hash_buckets
        self._shift = FIRST_ITEM + hash_buckets
        self._table: np.ndarray | None = None
        if len(values):
            self._first, self._last = int(values.min()), int(values.max())
            reach = self._last - self._first + 1
            if reach <= CLOSE * len(values):
                self._table = np.full(reach, OUT_OF_VOCABULARY, np.int32)
                self._table[values - self._first] = np.arange(len(values)) + self._shift
                return
        self._order = np.argsort(values, kind="stable")
        self._sorted = values[self._order]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n,) -> (n,) int64 indices."""
        values = values.astype(np.int64)
        indices = np.full(values.shape, OUT_OF_VOCABULARY, np.int64)
        if self._table is not None:
            known = (values >= self._first) & (values <= self._last)
            indices[known] = self._table[values[known] - self._first]
        elif len(self._sorted):
            places = np.minimum(np.searchsorted(self._sorted, values), len(self._sorted) - 1)
            known = self._sorted[places] == values
            indices[known] = self._order[places[known]] + self._shift
        if self._hash_buckets:
            for place in np.flatnonzero(indices == OUT_OF_VOCABULARY):
                indices[place] = bucket_of(b"%d" % values[place], self._hash_buckets)
        indices[values == MISSING_INTEGER] = NULL
        return indices


class TextLookup:
    """Texts, as UTF-8, to indices by hashing; the empty one is missing."""

    def __init__(self, values: list[bytes], hash_buckets: int = 0) -> None:
        shift = FIRST_ITEM + hash_buckets
        self._indices = _Indices((value, shift + i) for i, value in enumerate(values))
        self._indices[b""] = NULL
        self._indices.hash_buckets = hash_buckets

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n,) bytes or str -> (n,) int64 indices."""
        index = self._indices
        keys = (v if isinstance(v, bytes) else str(v).encode("utf-8") for v in values)
        return np.fromiter((index[k] for k in keys), np.int64, len(values))


class _Indices(dict[bytes, int]):
    """What has no index of its own gets one that it shares."""

    hash_buckets = 0

    def __missing__(self, value: bytes) -> int:
        if b"\0" in value:  # as in a log, where no NUL stays
            return self[value.replace(b"\0", b"")]
        return bucket_of(value, self.hash_buckets) if self.hash_buckets else OUT_OF_VOCABULARY


class SeveralLookup:
    """Texts of several values to M indices each, padding behind the last."""

    def __init__(
        self, lookup: IntegerLookup | TextLookup, separator: str, columns: list[str]
    ) -> None:
        self._lookup = lookup
        self._separator = separator.encode("utf-8")
        self._most = len(columns)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n,) bytes or str -> (n, M) int64 indices."""
        found = np.full((len(values), self._most), PADDING, np.int64)
        found[:, :1] = NULL
        words, places = [], []
        for row, value in enumerate(values):
            text = value if isinstance(value, bytes) else str(value).encode("utf-8")
            text = text.replace(b"\0", b"")
            given = [word for part in text.split(self._separator) if (word := part.strip(b" \t"))]
            words += given[: self._most]
            places += [row * self._most + place for place in range(min(len(given), self._most))]
        if words:
            found.reshape(-1)[places] = self._lookup(self._typed(words))
        return found

    def _typed(self, words: list[bytes]) -> np.ndarray:
        if isinstance(self._lookup, TextLookup):
            texts = np.empty(len(words), object)
            texts[:] = words
            return texts
        return np.array([_integer(word) for word in words], np.int64)


def _integer(word: bytes) -> int:
    """An integer in its one form; a value in no table for what is none."""
    if _INTEGER.fullmatch(word) and -(2**63) <= (number := int(word)) < 2**63:
        return number
    return UNKNOWN_INTEGER


def bucket_of(text: bytes, hash_buckets: int) -> int:
    """Index that a value shares with others, by its CRC-32."""
    return FIRST_ITEM + zlib.crc32(text) % hash_buckets


def read_values(directory: Path, name: str, kind: str) -> np.ndarray | list[bytes]:
    """Values of a categorical column in the order of their indices."""
    if kind == "int64":
        return np.load(directory / f"{name}.npy", allow_pickle=False)
    joined = np.load(directory / f"{name}.npy", allow_pickle=False).tobytes()
    offsets = np.load(directory / f"{name}.offsets.npy", allow_pickle=False).tolist()
    return [joined[a:b] for a, b in zip(offsets, offsets[1:])]  # noqa: B905, RUF007


def lookup_of(
    values: np.ndarray | list[bytes], hash_buckets: int = 0
) -> IntegerLookup | TextLookup:
    """Raw values to indices."""
    if isinstance(values, list):
        return TextLookup(values, hash_buckets)
    return IntegerLookup(values, hash_buckets)
