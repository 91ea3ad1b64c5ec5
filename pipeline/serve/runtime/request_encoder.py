"""Encodes raw sessions of requests as tensors of the model.

The results equal those of the NVTabular workflow that preprocessing fitted; tests compare both on
random input.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .expressions import Categories, Sessions, Statistic, Values, evaluate, finite
from .lookups import (
    FIRST_ITEM,
    MISSING_INTEGER,
    OUT_OF_VOCABULARY,
    UNKNOWN_INTEGER,
    IntegerLookup,
    MultiValuedLookup,
    TextLookup,
    lookup_of,
    object_array,
    read_array,
    read_values,
    without_nul,
)
from .operator_steps import OperatorSteps
from .rows import MISSING, Padding, Rows, missing, newest_starts, time_order
from .times import time_columns, time_feature


class Encoder:
    """Fitted tables and statistics, applied to requests."""

    def __init__(self, directory: Path) -> None:
        """Read `encoder.json` and the tables beside it."""
        self.spec: dict[str, Any] = json.loads((directory / "encoder.json").read_text("utf-8"))
        self.length: int = self.spec["max_sequence_length"]
        self.columns: list[dict[str, Any]] = self.spec["columns"]
        self.expressions: list[dict[str, Any]] = self.spec["expressions"]
        self.encoded = [*(c for c in self.columns if c["kind"] != "input"), *self.expressions]
        """Columns of a request that the model reads, and columns of expressions."""
        self.timestamp: dict[str, Any] | None = self.spec["timestamp"]
        self.lookups: dict[str, IntegerLookup | TextLookup | MultiValuedLookup] = {}
        for column in self.encoded:
            if column["kind"] == "categorical":
                kind = "int64" if "buckets" in column else column.get("values", column["type"])
                values = read_values(directory, column["name"], kind)
                lookup = lookup_of(values, column.get("hash_buckets", 0))
                self.lookups[column["name"]] = (
                    MultiValuedLookup(lookup, column["separator"], column["columns"])
                    if "columns" in column
                    else lookup
                )
                if column["name"] == "item_id":
                    self.items = item_array(values)
        self.operators = {
            c["name"]: OperatorSteps(directory, c["name"], c["steps"])
            for c in self.columns
            if "steps" in c
        }
        """Steps of a user's workflow by column."""
        self.means = {
            c["name"]: _read_means(directory, c) for c in self.encoded if "mean_of_all" in c
        }
        """Lookup of the categories and their means by feature, the overall mean last."""
        self.unsent = {c["name"]: self._encode_column(c, missing(c, 1))[0] for c in self.encoded}
        """Encoded missing value of each column; (M,) of multi-valued ones."""
        self.item_features = {
            c["name"]: self._read_item_feature(directory, c)
            for c in self.columns[1:]
            if c["of_item"]
        }
        """Encoded values of item features, which a request may leave out, by name: (V,) for each
        item index, then for the further items; (V, M) of multi-valued ones."""
        self.raw_item_features = self._read_raw_item_features(directory)
        self.statistics = {
            call: _read_statistic(directory, f"expression.{number}")
            for number, call in enumerate(self.spec["statistics"])
        }
        self._reading_others = [c["name"] for c in self.columns if "reads" in c]
        self.further: IntegerLookup | TextLookup | None = None
        """Items outside the catalogue that have item features."""
        if self.spec["further_items"]:
            kind = self.columns[0]["type"]
            self.further = lookup_of(read_values(directory, "item_id.further", kind))

    @property
    def optional(self) -> list[str]:
        """Columns that are computed from others if a request leaves them out."""
        return [*self.item_features, *self._reading_others]

    def encode(self, rows: Rows, width: int | None = None) -> dict[str, NDArray[Any]]:
        """Encode S sessions: per feature (S, W) of the newest W interactions, or (S, 1).

        W is the smaller one of `max_sequence_length` and `width`.
        """
        width = self.length if width is None else min(width, self.length)
        if self.spec["session_gap"] or self.spec["drop_repeats"]:
            rows = self._current_sessions(rows)
        order = None if rows.times is None else time_order(rows.times, rows.lengths)
        padding = Padding(rows.lengths, width)
        chosen = padding.kept
        if order is not None:
            chosen = order if chosen is None else order[chosen]
        encoded: dict[str, NDArray[Any]] = {}
        item_rows: NDArray[Any] | None = None  # of `item_features`; item_id is the first column
        computed = self._computed(rows, order) if self.expressions else {}
        for spec in self.encoded:
            name = spec["name"]
            sent = rows.columns.get(name, rows.columns.get(spec.get("reads", "")))
            values = computed.get(name, sent)
            if spec["scope"] == "session":
                if values is None:
                    values = missing(spec, len(rows.lengths))
                encoded[name] = self._encode_column(spec, values)[:, np.newaxis]
            elif values is None and name in self.item_features:
                encoded[name] = self.item_features[name][item_rows]
            elif values is None:
                encoded[name] = padding(self.unsent[name][np.newaxis].repeat(padding.num_kept, 0))
            else:
                values = values if chosen is None else values[chosen]
                flat = self._encode_column(spec, values)
                encoded[name] = padding(flat)
                if name == "item_id":
                    item_rows = encoded[name]
                    if self.further is not None and self.item_features:
                        item_rows = padding(self._with_further(flat, values))
        self._split_tags(encoded)
        return encoded | self._encode_times(rows, order, padding)

    def _computed(self, rows: Rows, order: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
        """Return the values of the expressions in the order of `rows`."""
        starts = np.cumsum(rows.lengths) - rows.lengths
        positions = {
            "interaction": np.repeat(starts, rows.lengths),
            "session": np.arange(len(starts)),
        }
        inputs = self._expression_inputs(rows, order)
        computed = {}
        for spec in self.expressions:
            starts = positions[spec["scope"]]
            value = evaluate(spec["tree"], Sessions(inputs, starts, self.statistics))
            values = value.values if isinstance(value, Categories) else value
            if order is not None and spec["scope"] == "interaction":
                values, in_order = np.empty_like(values), values
                values[order] = in_order
            computed[spec["name"]] = values
        return computed

    def _expression_inputs(self, rows: Rows, order: NDArray[Any] | None) -> dict[str, Values]:
        """Return the inputs of the expressions, with interactions in the order of time."""
        count = int(rows.lengths.sum())
        times = np.full(count, np.nan) if rows.times is None else rows.times / 1e6
        inputs: dict[str, Values] = {"timestamp": times if order is None else times[order]}
        names = {name for spec in self.expressions for name in spec["numbers"]}
        names |= {"item_id", *(name for spec in self.expressions for name in spec["categories"])}
        specs = [spec for spec in self.columns if spec["name"] in names]
        item_rows = self._item_rows(rows) if self.raw_item_features else None
        for spec in specs:
            values = rows.columns.get(spec["name"])
            if values is None and spec["name"] in self.raw_item_features:
                values = self.raw_item_features[spec["name"]][item_rows]
            elif values is None:
                per_session = spec["scope"] == "session"
                values = missing(spec, len(rows.lengths) if per_session else count)
            if order is not None and spec["scope"] != "session":
                values = values[order]
            if values.dtype.kind == "f" or spec["type"] == "float64":
                inputs[spec["name"]] = _clean(values.astype(np.float64), spec)
            else:
                inputs[spec["name"]] = Categories.of(values)
        return inputs

    def _item_rows(self, rows: Rows) -> NDArray[Any]:
        """Return (interactions,) rows of the item features."""
        values = rows.columns["item_id"]
        return self._with_further(self.lookups["item_id"](values), values)

    def _split_tags(self, encoded: dict[str, NDArray[Any]]) -> None:
        """Replace each multi-valued column by M columns of one value, in place."""
        for spec in self.columns:
            if "columns" in spec:
                tags = encoded.pop(spec["name"])
                for number, name in enumerate(spec["columns"]):
                    encoded[name] = np.ascontiguousarray(tags[..., number])

    def _encode_times(
        self, rows: Rows, order: NDArray[Any] | None, padding: Padding
    ) -> dict[str, NDArray[Any]]:
        encoded = {}
        for feature in self.spec["time_features"]:
            if rows.times is None:
                for name in time_columns(feature):
                    encoded[name] = np.zeros(padding.shape, np.float32)
                continue
            times = rows.times if order is None else rows.times[order]
            columns = time_feature(feature, times, rows.lengths)
            if feature == "elapsed":
                statistics = self.spec["timestamp"]["elapsed"]
                columns["elapsed"] = standardize(columns["elapsed"], statistics)
            for name, values in columns.items():
                encoded[name] = padding(values if padding.kept is None else values[padding.kept])
        return encoded

    def _with_further(self, indices: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        """Return (n,) item indices, where those of further items follow the catalogue."""
        unknown = np.flatnonzero(indices == OUT_OF_VOCABULARY)
        if not len(unknown) or self.further is None:
            return indices
        further = self.further(values[unknown])
        indices = indices.copy()
        indices[unknown] = np.where(
            further >= FIRST_ITEM, further + len(self.items), OUT_OF_VOCABULARY
        )
        return indices

    def _read_item_feature(self, directory: Path, spec: dict[str, Any]) -> NDArray[Any]:
        """Return the encoded values of the reserved indices, then of the items."""
        values = read_array(directory / f"{spec['name']}.of_item.npy")
        if spec["kind"] == "continuous":
            values = standardize(values, spec)
        unsent = self.unsent[spec["name"]]
        reserved = np.stack([np.zeros_like(unsent), unsent, unsent])
        return np.concatenate([reserved, values.astype(unsent.dtype)])

    def _read_raw_item_features(self, directory: Path) -> dict[str, NDArray[Any]]:
        """Return (V,) values of item features that expressions read, as a request sends them."""
        raw: dict[str, NDArray[Any]] = {}
        for spec in self.columns[1:]:
            name = spec["name"]
            if spec["of_item"] and any(name in e["numbers"] for e in self.expressions):
                values = read_array(directory / f"{name}.of_item.npy")
                raw[name] = np.concatenate([np.full(FIRST_ITEM, np.nan), values])
            elif spec["of_item"] and any(name in e["categories"] for e in self.expressions):
                texts = read_values(directory, f"{name}.texts_of_item", "string")
                raw[name] = object_array([*[b""] * FIRST_ITEM, *texts])
        return raw

    def _current_sessions(self, rows: Rows) -> Rows:
        """Return the current session of each row, without repeats, as in training."""
        order = None if rows.times is None else time_order(rows.times, rows.lengths)
        if order is not None:
            rows = self._select(rows, order, rows.lengths)
        if self.spec["session_gap"] and rows.times is not None:
            starts = np.cumsum(rows.lengths) - rows.lengths
            newest_start = newest_starts(rows.times, starts, self.spec["session_gap"])
            kept = np.arange(len(rows.times)) >= np.repeat(newest_start, rows.lengths)
            rows = self._select(rows, kept, starts + rows.lengths - newest_start)
        if self.spec["drop_repeats"]:
            item = without_nul(rows.columns["item_id"])
            starts = np.cumsum(rows.lengths) - rows.lengths
            kept = np.ones(len(item), bool)
            kept[1:] = (item[1:] != item[:-1]) | (item[1:] == MISSING[self.columns[0]["type"]])
            if item.dtype.kind == "i":  # UNKNOWN_INTEGER may stand for different texts
                kept[1:] |= item[1:] == UNKNOWN_INTEGER
            kept[starts] = True
            rows = self._select(rows, kept, np.add.reduceat(kept, starts))
        return rows

    def _select(self, rows: Rows, chosen: NDArray[Any], lengths: NDArray[Any]) -> Rows:
        """Return some interactions, by position or by mask; session columns stay."""
        of_session = {spec["name"] for spec in self.columns if spec["scope"] == "session"}
        columns = {
            name: values if name in of_session else values[chosen]
            for name, values in rows.columns.items()
        }
        return Rows(columns, lengths, None if rows.times is None else rows.times[chosen])

    def _encode_column(self, spec: dict[str, Any], values: NDArray[Any]) -> NDArray[Any]:
        if "steps" in spec:
            values = self.operators[spec["name"]](values)
        if "buckets" in spec:
            with np.errstate(over="ignore"):  # outside float32 is missing, as in training
                is_finite = np.isfinite(values.astype(np.float32))
            buckets = np.searchsorted(np.array(spec["buckets"]), values, side="right")
            values = np.where(is_finite, buckets, MISSING_INTEGER)
        if spec["kind"] == "categorical":
            return self.lookups[spec["name"]](values)
        if spec["name"] in self.means:
            lookup, means = self.means[spec["name"]]
            # reserved indices have no category and get the last mean
            values = means[np.maximum(lookup(values) - FIRST_ITEM, -1)]
        return standardize(values.astype(np.float64), spec)


def _read_means(
    directory: Path, spec: dict[str, Any]
) -> tuple[IntegerLookup | TextLookup, NDArray[Any]]:
    means = read_array(directory / f"{spec['name']}.means.npy")
    values = read_values(directory, spec["name"], spec["type"])
    return lookup_of(values), np.append(means, spec["mean_of_all"])


def _read_statistic(directory: Path, name: str) -> Statistic:
    texts = read_values(directory, name, "string")
    numbers = read_array(directory / f"{name}.numbers.npy").tolist()
    return Statistic(dict(zip(texts, numbers)), numbers[-1])  # noqa: B905


def _clean(numbers: NDArray[Any], spec: dict[str, Any]) -> NDArray[Any]:
    """Return float64 with NaN for numbers that reading of a log leaves out."""
    numbers = finite(numbers)
    if spec["log"]:
        numbers = np.where(numbers.astype(np.float32) <= -1, np.nan, numbers)
    return numbers


def item_array(values: NDArray[Any] | list[bytes]) -> NDArray[Any]:
    """Return raw item ids in the order of their indices, as a response holds them."""
    return values if isinstance(values, np.ndarray) else object_array(values)


def standardize(values: NDArray[Any], spec: dict[str, Any]) -> NDArray[Any]:
    """Scale float64 to float32 of mean 0 and deviation 1, missing values to 0.

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
        scaled = values.astype(np.float32)
        scaled[~np.isfinite(scaled)] = 0.0
        return scaled
