"""Tables between raw values and indices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NULL = 1
OUT_OF_VOCABULARY = 2
FIRST_ITEM = 3
CLOSE = 4
"""Entries of a table for each of the values that it may have."""
MISSING_INTEGER = -(2**63)
"""Stands for a missing value where a request's tensor holds integers."""


class IntegerLookup:
    """Integers to indices: by a table where they lie close together, else by binary search."""

    def __init__(self, values: np.ndarray) -> None:
        self._table: np.ndarray | None = None
        if len(values):
            self._first, self._last = int(values.min()), int(values.max())
            reach = self._last - self._first + 1
            if reach <= CLOSE * len(values):
                self._table = np.full(reach, OUT_OF_VOCABULARY, np.int32)
                self._table[values - self._first] = np.arange(len(values)) + FIRST_ITEM
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
            indices[known] = self._order[places[known]] + FIRST_ITEM
        indices[values == MISSING_INTEGER] = NULL
        return indices


class TextLookup:
    """Texts, as UTF-8, to indices by hashing; the empty one is missing."""

    def __init__(self, values: list[bytes]) -> None:
        self._indices = {value: FIRST_ITEM + i for i, value in enumerate(values)}
        self._indices[b""] = NULL

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n,) bytes or str -> (n,) int64 indices."""
        get = self._indices.get
        keys = (v if isinstance(v, bytes) else str(v).encode("utf-8") for v in values)
        return np.fromiter((get(k, OUT_OF_VOCABULARY) for k in keys), np.int64, len(values))


def read_values(directory: Path, name: str, kind: str) -> np.ndarray | list[bytes]:
    """Values of a categorical column in the order of their indices."""
    if kind == "int64":
        return np.load(directory / f"{name}.npy", allow_pickle=False)
    joined = np.load(directory / f"{name}.npy", allow_pickle=False).tobytes()
    offsets = np.load(directory / f"{name}.offsets.npy", allow_pickle=False).tolist()
    return [joined[a:b] for a, b in zip(offsets, offsets[1:])]  # noqa: B905, RUF007


def lookup_of(values: np.ndarray | list[bytes]) -> IntegerLookup | TextLookup:
    """Raw values to indices."""
    return TextLookup(values) if isinstance(values, list) else IntegerLookup(values)
