"""Raw sessions of requests to the tensors of the model.

Its results equal those of the NVTabular workflow that preprocessing fitted; the tests compare the
two on random input.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .lookups import (
    FIRST_ITEM,
    MISSING_INTEGER,
    OUT_OF_VOCABULARY,
    UNKNOWN_INTEGER,
    IntegerLookup,
    SeveralLookup,
    TextLookup,
    lookup_of,
    read_values,
    without_nul,
)
from .times import names_of, time_feature


class Rows(NamedTuple):
    """Sessions of one request, flattened."""

    columns: dict[str, np.ndarray]
    """Per feature of an interaction (interactions,), per feature of a session (sessions,); without
    those that were not sent."""
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
        self.lookups: dict[str, IntegerLookup | TextLookup | SeveralLookup] = {}
        for column in self.columns:
            if column["kind"] == "categorical":
                kind = "int64" if "buckets" in column else column.get("values", column["type"])
                values = read_values(directory, column["name"], kind)
                lookup = lookup_of(values, column.get("hash_buckets", 0))
                self.lookups[column["name"]] = (
                    SeveralLookup(lookup, column["separator"], column["columns"])
                    if "columns" in column
                    else lookup
                )
                if column["name"] == "item_id":
                    self.items = item_array(values)
        self.means = {c["name"]: _means(directory, c) for c in self.columns if "mean_of_all" in c}
        """By feature: how its categories are looked up, and the mean of each, that of all last."""
        self.unsent = {c["name"]: self._encode_column(c, missing(c, 1))[0] for c in self.columns}
        """What a missing value of each column becomes; (M,) of several values."""
        self.of_item = {
            c["name"]: self._of_items(directory, c) for c in self.columns[1:] if c["of_item"]
        }
        """By feature of items that a request need not hold: (V,) of each index of an item, then of
        the further items, (V, M) of several values."""
        self.further: IntegerLookup | TextLookup | None = None
        """Items that are in no list, but of which features are known."""
        if self.spec["further_items"]:
            kind = self.columns[0]["type"]
            self.further = lookup_of(read_values(directory, "item_id.further", kind))

    def encode(self, rows: Rows, width: int | None = None) -> dict[str, np.ndarray]:
        """Rows of S sessions -> per feature (S, W) of its newest W interactions, or (S, 1).

        W is `max_sequence_length`, or `width` if that is less.
        """
        width = self.length if width is None else min(width, self.length)
        if self.spec["session_gap"] or self.spec["drop_repeats"]:
            rows = self._reshaped(rows)
        lengths = rows.lengths
        count = len(lengths)
        # most requests: all sessions as long as they are wide, none of which is to be cut
        even = bool((lengths == width).all())
        order = None if rows.times is None else _by_time(rows.times, lengths)
        kept, row, column = (None, None, None) if even else newest(lengths, width)

        def padded(flat: np.ndarray) -> np.ndarray:
            """Of kept interactions."""
            if even:
                return flat.reshape(count, width, *flat.shape[1:])
            whole = np.zeros((count, width, *flat.shape[1:]), flat.dtype)
            whole[row, column] = flat
            return whole

        chosen = kept if order is None else order if kept is None else order[kept]
        encoded = {}
        places: np.ndarray | None = None  # in `of_item`
        for spec in self.columns:
            name = spec["name"]
            values = rows.columns.get(name)
            if spec["scope"] == "session":
                if values is None:
                    encoded[name] = _repeated(self.unsent[name], (count, 1))
                else:
                    encoded[name] = self._encode_column(spec, values)[:, np.newaxis]
            elif values is None and name in self.of_item:
                encoded[name] = self.of_item[name][places]
            elif values is None:
                size = count * width if row is None else len(row)
                encoded[name] = padded(_repeated(self.unsent[name], (size,)))
            else:
                values = values if chosen is None else values[chosen]
                flat = self._encode_column(spec, values)
                encoded[name] = padded(flat)
                if name == "item_id":
                    places = encoded[name]
                    if self.further is not None and self.of_item:
                        places = padded(self._with_further(flat, values))
        for spec in self.columns:
            if "columns" in spec:
                several = encoded.pop(spec["name"])
                for number, name in enumerate(spec["columns"]):
                    encoded[name] = np.ascontiguousarray(several[..., number])
        for feature in self.spec["time_features"]:
            if rows.times is None:
                for name in names_of(feature):
                    encoded[name] = np.zeros((count, width), np.float32)
                continue
            times = rows.times if order is None else rows.times[order]
            found = self._time_feature(feature, times, lengths)
            for name, values in found.items():
                encoded[name] = padded(values if kept is None else values[kept])
        return encoded

    def _with_further(self, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(n,) indices of items, with those of the further items behind the catalogue."""
        unknown = np.flatnonzero(indices == OUT_OF_VOCABULARY)
        if not len(unknown) or self.further is None:
            return indices
        found = self.further(values[unknown])
        indices = indices.copy()
        indices[unknown] = np.where(found >= FIRST_ITEM, found + len(self.items), OUT_OF_VOCABULARY)
        return indices

    def _of_items(self, directory: Path, spec: dict[str, Any]) -> np.ndarray:
        """Encoded values of the reserved indices, then of the items."""
        known = np.load(directory / f"{spec['name']}.of_item.npy", allow_pickle=False)
        if spec["kind"] == "continuous":
            known = standardise(known, spec)
        unsent = self.unsent[spec["name"]]
        reserved = np.stack([np.zeros_like(unsent), unsent, unsent])
        return np.concatenate([reserved, known.astype(unsent.dtype)])

    def _reshaped(self, rows: Rows) -> Rows:
        """Of each row the session that is going on, without repeats, as training has seen them."""
        order = None if rows.times is None else _by_time(rows.times, rows.lengths)
        if order is not None:
            rows = self._taken(rows, order, rows.lengths)
        if self.spec["session_gap"] and rows.times is not None:
            starts = np.cumsum(rows.lengths) - rows.lengths
            newest_start = newest_starts(rows.times, starts, self.spec["session_gap"])
            kept = np.arange(len(rows.times)) >= np.repeat(newest_start, rows.lengths)
            rows = self._taken(rows, kept, starts + rows.lengths - newest_start)
        if self.spec["drop_repeats"]:
            item = without_nul(rows.columns["item_id"])
            starts = np.cumsum(rows.lengths) - rows.lengths
            kept = np.ones(len(item), bool)
            kept[1:] = (item[1:] != item[:-1]) | (item[1:] == MISSING[self.columns[0]["type"]])
            if item.dtype.kind == "i":  # for any text, which no table holds
                kept[1:] |= item[1:] == UNKNOWN_INTEGER
            kept[starts] = True
            rows = self._taken(rows, kept, np.add.reduceat(kept, starts))
        return rows

    def _taken(self, rows: Rows, chosen: np.ndarray, lengths: np.ndarray) -> Rows:
        """Some interactions, by position or by truth; what is of a session stays."""
        of_session = {spec["name"] for spec in self.columns if spec["scope"] == "session"}
        columns = {
            name: values if name in of_session else values[chosen]
            for name, values in rows.columns.items()
        }
        return Rows(columns, lengths, None if rows.times is None else rows.times[chosen])

    def _encode_column(self, spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
        if "buckets" in spec:
            with np.errstate(over="ignore"):  # what float32 cannot hold is missing, as in training
                known = np.isfinite(values.astype(np.float32))
            found = np.searchsorted(np.array(spec["buckets"]), values, side="right")
            values = np.where(known, found, MISSING_INTEGER)
        if spec["kind"] == "categorical":
            return self.lookups[spec["name"]](values)
        if spec["name"] in self.means:
            lookup, means = self.means[spec["name"]]
            # reserved indices are those of no category
            values = means[np.maximum(lookup(values) - FIRST_ITEM, -1)]
        return standardise(values.astype(np.float64), spec)

    def _time_feature(
        self, feature: str, times: np.ndarray, lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """(interactions,) by name."""
        found = time_feature(feature, times, lengths)
        if feature == "elapsed":
            assert self.timestamp is not None  # noqa: S101
            found["elapsed"] = standardise(found["elapsed"], self.timestamp["elapsed"])
        return found


def _means(directory: Path, spec: dict[str, Any]) -> tuple[IntegerLookup | TextLookup, np.ndarray]:
    means = np.load(directory / f"{spec['name']}.means.npy", allow_pickle=False)
    values = read_values(directory, spec["name"], spec["type"])
    return lookup_of(values), np.append(means, spec["mean_of_all"])


def _repeated(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(...) -> (*shape, ...)"""
    return np.broadcast_to(value, (*shape, *np.shape(value))).copy()


def item_array(values: np.ndarray | list[bytes]) -> np.ndarray:
    """Raw item ids in the order of their indices, as an answer holds them."""
    if isinstance(values, np.ndarray):
        return values
    items = np.empty(len(values), object)
    items[:] = values
    return items


def merge(parts: list[Rows], specs: list[dict[str, Any]]) -> Rows:
    """Sessions of several requests, all with times or all without; `specs` of the columns."""
    if len(parts) == 1:
        return parts[0]
    times = None
    if parts[0].times is not None:
        times = np.concatenate([part.times for part in parts if part.times is not None])
    lengths = np.concatenate([part.lengths for part in parts])
    columns = {}
    for spec in specs:
        name = spec["name"]
        if any(name in part.columns for part in parts):
            of_session = spec["scope"] == "session"
            columns[name] = np.concatenate(
                [
                    part.columns[name]
                    if name in part.columns
                    else missing(spec, len(part.lengths) if of_session else int(part.lengths.sum()))
                    for part in parts
                ]
            )
    return Rows(columns, lengths, times)


def missing(spec: dict[str, Any], count: int) -> np.ndarray:
    """(count,) values of a column that are not there."""
    types: dict[str, type] = {"int64": np.int64, "float64": np.float64, "string": object}
    return np.full(count, MISSING[spec["type"]], types[spec["type"]])


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
        found = values.astype(np.float32)
        found[~np.isfinite(found)] = 0.0
        return found


def _by_time(times: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """Order of interactions by session and time; equal times keep the order of the request.

    None where they stand in it, as most do.
    """
    follows = times[1:] >= times[:-1]
    follows[np.cumsum(lengths[:-1]) - 1] = True  # from one session to the next
    if follows.all():
        return None
    return np.lexsort((times, np.repeat(np.arange(len(lengths)), lengths)))


def newest_starts(times: np.ndarray, starts: np.ndarray, gap: int) -> np.ndarray:
    """(S,) where the session begins that is going on, of interactions by row and time.

    `starts` (S,) is where each row begins.
    """
    place = np.arange(len(times))
    begins = np.zeros(len(place), bool)
    begins[1:] = np.diff(times) > gap
    begins[starts] = True
    found: np.ndarray = np.maximum.reduceat(np.where(begins, place, 0), starts)
    return found


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
