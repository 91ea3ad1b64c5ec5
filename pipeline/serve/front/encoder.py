"""Raw sessions of requests to the tensors of the model.

Its results equal those of the NVTabular workflow that preprocessing fitted; the tests compare the
two on random input.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .lookups import MISSING_INTEGER, IntegerLookup, TextLookup, lookup_of, read_values
from .times import time_feature


class Rows(NamedTuple):
    """Sessions of one request, flattened."""

    columns: dict[str, np.ndarray]
    """Per feature of an interaction (interactions,), per feature of a session (sessions,)."""
    lengths: np.ndarray
    """(sessions,) interactions of each, at least 1."""
    times: np.ndarray | None
    """(interactions,) microseconds, or None where the order of the request is that of time."""


class Encoder:
    """Fitted tables and statistics, and what is done with them."""

    def __init__(self, directory: Path) -> None:
        """Read `encoder.json` and the tables beside it."""
        self.spec: dict[str, Any] = json.loads((directory / "encoder.json").read_text("utf-8"))
        self.length: int = self.spec["max_sequence_length"]
        self.columns: list[dict[str, Any]] = self.spec["columns"]
        self.timestamp: dict[str, Any] | None = self.spec["timestamp"]
        self.lookups: dict[str, IntegerLookup | TextLookup] = {}
        for column in self.columns:
            if column["kind"] == "categorical":
                values = read_values(directory, column["name"], column["type"])
                self.lookups[column["name"]] = lookup_of(values)
                if column["name"] == "item_id":
                    self.items = item_array(values)

    def encode(self, rows: Rows, width: int | None = None) -> dict[str, np.ndarray]:
        """Rows of S sessions -> per feature (S, W) of its newest W interactions, or (S, 1).

        W is `max_sequence_length`, or `width` if that is less.
        """
        width = self.length if width is None else min(width, self.length)
        order, lengths = _by_time(rows.times, rows.lengths)
        kept, row, column = newest(lengths, width)

        def padded(flat: np.ndarray) -> np.ndarray:
            whole = np.zeros((len(lengths), width), flat.dtype)
            whole[row, column] = flat
            return whole

        encoded = {}
        for spec in self.columns:
            values = rows.columns[spec["name"]]
            if spec["scope"] == "session":
                encoded[spec["name"]] = self._encode_column(spec, values)[:, np.newaxis]
            else:
                encoded[spec["name"]] = padded(self._encode_column(spec, values[order[kept]]))
        for feature in self.spec["time_features"]:
            for name, values in self._time_feature(feature, rows.times, order, lengths).items():
                encoded[name] = padded(values[kept])
        return encoded

    def _encode_column(self, spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
        if spec["kind"] == "categorical":
            return self.lookups[spec["name"]](values)
        return standardise(values.astype(np.float64), spec)

    def _time_feature(
        self, feature: str, times: np.ndarray | None, order: np.ndarray, lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """(interactions,) by name; 0, as of a missing number, where a request has no times."""
        if times is None:
            names = ("elapsed",) if feature == "elapsed" else (f"{feature}_sin", f"{feature}_cos")
            return {name: np.zeros(len(order), np.float32) for name in names}
        found = time_feature(feature, times[order], lengths)
        if feature == "elapsed":
            assert self.timestamp is not None  # noqa: S101
            found["elapsed"] = standardise(found["elapsed"], self.timestamp["elapsed"])
        return found


def item_array(values: np.ndarray | list[bytes]) -> np.ndarray:
    """Raw item ids in the order of their indices, as an answer holds them."""
    if isinstance(values, np.ndarray):
        return values
    items = np.empty(len(values), object)
    items[:] = values
    return items


def merge(parts: list[Rows]) -> Rows:
    """Sessions of several requests, all with times or all without."""
    if len(parts) == 1:
        return parts[0]
    times = None
    if parts[0].times is not None:
        times = np.concatenate([part.times for part in parts if part.times is not None])
    return Rows(
        {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        np.concatenate([part.lengths for part in parts]),
        times,
    )


def standardise(values: np.ndarray, spec: dict[str, Any]) -> np.ndarray:
    """float64 to float32 of mean 0 and deviation 1, missing ones to 0.

    The steps and their precision are those of NVTabular's LogOp and Normalize.
    """
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
        values = np.where(np.isinf(narrow), np.nan, values)
        if spec["log"]:
            values = np.log(np.where(np.isinf(narrow) | (narrow <= -1), np.nan, narrow) + 1)
        values = values - spec["mean"]
        if spec["deviation"] > 0:
            values = values / spec["deviation"]
        return np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _by_time(times: np.ndarray | None, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of interactions by session and time; equal times keep the order of the request."""
    if times is None:
        return np.arange(int(lengths.sum())), lengths
    return np.lexsort((times, np.repeat(np.arange(len(lengths)), lengths))), lengths


def newest(lengths: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which sorted interactions are among the newest, and their row and column when padded."""
    ends = np.cumsum(lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)
    from_end = ends[row] - np.arange(len(row))  # 1 is the newest
    kept = from_end <= longest
    column = np.minimum(lengths, longest)[row] - from_end
    return kept.nonzero()[0], row[kept], column[kept]


MISSING: dict[str, Any] = {"int64": MISSING_INTEGER, "float64": np.nan, "string": b""}
"""What stands for a value that is not there, by type of a column."""
