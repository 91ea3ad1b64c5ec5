"""Raw sessions of requests to the tensors of the model, with NumPy alone.

The exporter copies this file into the model repository, so it imports nothing of this project and
runs on Python 3.10 and NumPy 1.26, which NVIDIA's stock Triton image has. Its results equal those
of the NVTabular workflow that preprocessing fitted; the tests compare the two on random input.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NULL = 1
OUT_OF_VOCABULARY = 2
FIRST_ITEM = 3
MISSING_INTEGER = -(2**63)
"""Stands for a missing value where a request's tensor holds integers."""
DAY_SECONDS = 86_400
WEEK_SECONDS = 7 * DAY_SECONDS
PERIODS = {"hour": (DAY_SECONDS, 0), "weekday": (WEEK_SECONDS, 3 * DAY_SECONDS)}
"""Length and shift in seconds: 1970-01-01 was a Thursday, a week begins on Monday."""
LATEST_MICROSECONDS = 2**62
ISO_TIME = re.compile(
    r"((?:1[7-9]|2[01])\d\d-\d\d-\d\d)"
    r"(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)(?: ?(UTC|Z|[+-]\d\d:?\d\d))?)?",
    re.ASCII,
)
SCALES = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001}


class RequestError(ValueError):
    """A request that cannot be answered, with what was found and what was expected."""


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
        self.max_k: int = self.spec["max_k"]
        self._lookups = {
            column["name"]: read_lookup(directory, column["name"], column["type"])
            for column in self.columns
            if column["kind"] == "categorical"
        }

    def read(self, tensors: dict[str, np.ndarray]) -> Rows:
        """Check the (B, n) tensors of a request. RequestError says what is wrong with it."""
        item = tensors.get("item_id")
        if item is None:
            raise RequestError("item_id is missing. Send the item ids of each session, (B, n).")
        if item.ndim != 2 or item.shape[0] == 0 or item.shape[1] == 0:
            raise RequestError(
                f"item_id has the shape {list(item.shape)}, expected [B, n] with at least one "
                "session and one interaction."
            )
        inside, lengths = _inside(item.shape, tensors.get("length"))
        columns = {}
        for column in self.columns:
            name, session = column["name"], column["scope"] == "session"
            values = tensors.get(name)
            if values is None:
                shape = "(B, 1)" if session else "(B, n)"
                raise RequestError(f"{name} is missing. The model was trained with it, {shape}.")
            expected = (item.shape[0], 1) if session else item.shape
            if values.shape != expected:
                raise RequestError(
                    f"{name} has the shape {list(values.shape)}, expected {list(expected)} to go "
                    f"with item_id's {list(item.shape)}."
                )
            _check_type(name, values, column["type"])
            columns[name] = values[:, 0] if session else values[inside]
        return Rows(columns, lengths, self._times(tensors.get("timestamp"), item.shape, inside))

    def encode(self, rows: Rows) -> dict[str, np.ndarray]:
        """Rows of S sessions -> per feature (S, L) of its newest L interactions, or (S, 1)."""
        order, lengths = _by_time(rows.times, rows.lengths)
        sorted_times = None if rows.times is None else rows.times[order]
        kept, row, column = _newest(lengths, self.length)
        encoded = {}
        for spec in self.columns:
            values = rows.columns[spec["name"]]
            if spec["scope"] == "session":
                encoded[spec["name"]] = self._encode_column(spec, values)[:, np.newaxis]
            else:
                flat = self._encode_column(spec, values[order[kept]])
                encoded[spec["name"]] = self._padded(flat, len(lengths), row, column)
        for feature in self.spec["time_features"]:
            assert sorted_times is not None and self.timestamp is not None  # noqa: S101, PT018
            for name, values in time_feature(feature, sorted_times, lengths).items():
                if name == "elapsed":
                    values = standardise(values, self.timestamp["elapsed"])
                encoded[name] = self._padded(values[kept], len(lengths), row, column)
        return encoded

    def _encode_column(self, spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
        if spec["kind"] == "categorical":
            return self._lookups[spec["name"]](values)
        return standardise(values.astype(np.float64), spec)

    def _padded(
        self, flat: np.ndarray, sessions: int, row: np.ndarray, column: np.ndarray
    ) -> np.ndarray:
        padded = np.zeros((sessions, self.length), flat.dtype)
        padded[row, column] = flat
        return padded

    def _times(
        self, values: np.ndarray | None, shape: tuple[int, ...], inside: np.ndarray
    ) -> np.ndarray | None:
        needed = bool(self.spec["time_features"])
        if self.timestamp is None:
            if values is not None:
                raise RequestError("timestamp is not known here: the model was trained without.")
            return None
        if values is None:
            if needed:
                raise RequestError("timestamp is missing. The model was trained with it, (B, n).")
            return None
        if values.shape != shape:
            raise RequestError(
                f"timestamp has the shape {list(values.shape)}, expected {list(shape)} to go with "
                "item_id."
            )
        _check_type("timestamp", values, self.timestamp["type"])
        times = microseconds(values, self.timestamp["unit"])
        known = times != MISSING_INTEGER
        if not known.all():
            # an interaction without a time keeps its place: it gets that of the one before
            times, known = np.where(inside, times, MISSING_INTEGER), known & inside
            last = np.maximum.accumulate(np.where(known, np.arange(shape[1]), 0), axis=1)
            filled = np.take_along_axis(times, last, axis=1)
            first = np.take_along_axis(times, known.argmax(1)[:, np.newaxis], axis=1)
            filled = np.where(filled == MISSING_INTEGER, first, filled)
            times = np.where(filled == MISSING_INTEGER, 0, filled)
        return times[inside]

    def num_items(self, requested: np.ndarray | None) -> int:
        """List length of a request: its `k`, one for all its sessions, or the default."""
        if requested is None:
            return int(self.spec["default_k"])
        values = np.unique(requested)
        if values.size != 1:
            raise RequestError(f"k differs within a request: {values.tolist()}. Send one for all.")
        k = int(values[0])
        if not 1 <= k <= self.max_k:
            raise RequestError(
                f"k is {k}, expected 1 to {self.max_k}. For longer lists export with a larger "
                "--max-k."
            )
        return k


def _inside(shape: tuple[int, ...], length: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(B, n) bool of cells that hold an interaction, and (B,) lengths."""
    if length is None:
        return np.ones(shape, bool), np.full(shape[0], shape[1])
    if length.size != shape[0]:
        raise RequestError(
            f"length has the shape {list(length.shape)}, expected [{shape[0]}, 1] for item_id's "
            f"{list(shape)}."
        )
    lengths = length.reshape(-1).astype(np.int64)
    wrong = (lengths < 1) | (lengths > shape[1])
    if wrong.any():
        raise RequestError(
            f"length is {int(lengths[wrong][0])}, expected 1 to {shape[1]}, the width of item_id."
        )
    return np.arange(shape[1]) < lengths[:, np.newaxis], lengths


def _check_type(name: str, values: np.ndarray, wanted: str) -> None:
    kinds = {"int64": "i", "float64": "fi", "string": "OSU"}
    if values.dtype.kind not in kinds[wanted]:
        raise RequestError(f"{name} holds {values.dtype}, expected {wanted}.")


def _by_time(times: np.ndarray | None, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of interactions by session and time; equal times keep the order of the request."""
    if times is None:
        return np.arange(int(lengths.sum())), lengths
    return np.lexsort((times, np.repeat(np.arange(len(lengths)), lengths))), lengths


def _newest(lengths: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which sorted interactions are among the newest, and their row and column when padded."""
    ends = np.cumsum(lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)
    from_end = ends[row] - np.arange(len(row))  # 1 is the newest
    kept = from_end <= longest
    column = np.minimum(lengths, longest)[row] - from_end
    return kept.nonzero()[0], row[kept], column[kept]


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


def time_feature(feature: str, times: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Microseconds sorted by session and time to one feature, under its names."""
    if feature == "elapsed":
        steps = np.diff(times, prepend=times[:1])
        steps[np.cumsum(lengths) - lengths] = 0  # the first of each session
        return {"elapsed": steps / 1e6}
    period, shift = PERIODS[feature]
    angle = ((times // 1_000_000 + shift) % period).astype(np.float64) * (2 * np.pi / period)
    return {
        f"{feature}_sin": np.sin(angle).astype(np.float32),
        f"{feature}_cos": np.cos(angle).astype(np.float32),
    }


def microseconds(values: np.ndarray, unit: str) -> np.ndarray:
    """Times as requests hold them to int64 microseconds, MISSING_INTEGER where there is none."""
    if values.dtype.kind in "OSU":
        flat = [_parse_time(value) for value in values.reshape(-1)]
        return np.array(flat, np.int64).reshape(values.shape)
    if unit == "iso":
        raise RequestError("timestamp holds numbers, expected text such as 2026-01-31 12:00:00.")
    scale = SCALES[unit]
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            scaled = values.astype(np.float64) * float(scale)
        usable = np.abs(scaled) < LATEST_MICROSECONDS  # False for NaN
        times = np.rint(np.where(usable, scaled, 0)).astype(np.int64)
    else:
        latest = min(LATEST_MICROSECONDS / scale, 2.0**63)
        usable = np.abs(values.astype(np.float64)) < latest
        whole = np.where(usable, values, 0).astype(np.int64)
        times = whole * int(scale) if unit != "ns" else whole // 1000
    return np.where(usable, times, MISSING_INTEGER)


def _parse_time(value: Any) -> int:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    match = ISO_TIME.fullmatch(text)
    if match is None:
        return MISSING_INTEGER
    date, clock, zone = match.groups()
    clock = clock or "00:00"
    whole, _, fraction = clock.partition(".")
    try:
        moment = int(np.datetime64(f"{date}T{whole}", "s").astype(np.int64)) * 1_000_000
    except ValueError:
        return MISSING_INTEGER
    moment += int(fraction[:6].ljust(6, "0")) if fraction else 0
    if zone and zone not in ("UTC", "Z"):
        digits = zone[1:].replace(":", "")
        if int(digits[:2]) > 23 or int(digits[2:]) > 59:
            return MISSING_INTEGER
        shift = (int(digits[:2]) * 3_600 + int(digits[2:]) * 60) * 1_000_000
        moment += -shift if zone[0] == "+" else shift
    return moment


class IntegerLookup:
    """Integers to indices by binary search."""

    def __init__(self, values: np.ndarray) -> None:
        self._order = np.argsort(values, kind="stable")
        self._sorted = values[self._order]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n,) -> (n,) int64 indices."""
        values = values.astype(np.int64)
        indices = np.full(values.shape, OUT_OF_VOCABULARY, np.int64)
        if len(self._sorted):
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


def read_lookup(directory: Path, name: str, kind: str) -> IntegerLookup | TextLookup:
    """The table of a categorical column."""
    values = read_values(directory, name, kind)
    return TextLookup(values) if isinstance(values, list) else IntegerLookup(values)
