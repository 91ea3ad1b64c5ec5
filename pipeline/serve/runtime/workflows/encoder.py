"""Encoder that runs the user's NVTabular workflow on the raw columns of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..lookups import MISSING_INTEGER, NULL, lookup_of, object_array, read_values, without_nul
from ..request_encoder import Encoder
from ..rows import Padding, Rows
from ..times import microseconds
from .graph import SavedGraph

FOLDER = "workflow"


class WorkflowEncoder(Encoder):
    """Encodes requests with a saved workflow; ids of filters and answers use the item tables."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._graph = SavedGraph(directory / FOLDER)
        spec = self._graph.spec
        self._log: list[dict[str, Any]] = spec["columns"]
        self._outputs: list[dict[str, Any]] = [
            output for output in spec["outputs"] if output["name"] in self.spec["outputs"]
        ]
        self._session: str = spec["session"]
        self._sort: set[str] = set(spec["sort"])
        self._codes = {
            output["name"]: lookup_of(
                read_values(directory, output["name"], self.spec["codes"][output["name"]])
            )
            for output in self._outputs
            if output["kind"] == "code"
        }

    @property
    def optional(self) -> list[str]:
        """Columns that requests may leave out, such as times."""
        return [column["tensor"] for column in self._log if column["tensor"] != "item_id"]

    def encode(self, rows: Rows, width: int | None = None) -> dict[str, NDArray[Any]]:
        """Encode S sessions: per feature (S, W) of the newest W interactions, or (S, 1)."""
        width = self.length if width is None else min(width, self.length)
        num_sessions = len(rows.lengths)
        # Categorify fails on a column without values, so an extra last session has one in each
        sessions = self._graph.execute(self._frame(rows)).iloc[:num_sessions]
        encoded = {}
        for output in self._outputs:
            values = sessions[output["source"]]
            if not output["is_list"]:
                encoded[output["name"]] = self._convert(output, values.to_numpy())[:, np.newaxis]
                continue
            lengths = values.map(len).to_numpy()
            padding = Padding(lengths, width)
            flat = np.concatenate([np.asarray(each) for each in values])
            flat = flat if padding.kept is None else flat[padding.kept]
            encoded[output["name"]] = padding(self._convert(output, flat))
        return encoded

    def _frame(self, rows: Rows) -> pd.DataFrame:
        """Return a frame with the columns of the log, and a last session of known values."""
        numbers = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
        columns = {}
        for column in self._log:
            values = rows.columns.get(column["tensor"])
            if column["name"] == self._session:
                keys = np.append(numbers, len(rows.lengths))
                texts = object_array([f"{key:09}" for key in keys.tolist()])
                columns[column["name"]] = texts if column["dtype"] == "object" else keys
                continue
            if values is None and column["name"] in self._sort:
                series = np.arange(len(numbers)).astype(column["dtype"])  # order of the request
            elif values is None:
                series = _missing(column["dtype"], len(numbers))
            else:
                values = values[numbers] if column["scope"] == "session" else values
                series = _typed(values, column["dtype"])
            last = pd.Series([column["value"]]).astype(column["dtype"])
            columns[column["name"]] = pd.concat([pd.Series(series), last], ignore_index=True)
        return pd.DataFrame(columns)

    def _convert(self, output: dict[str, Any], values: NDArray[Any]) -> NDArray[Any]:
        """Convert to indices or float32, as in the sessions of the data directory."""
        if output["kind"] == "number":
            numbers = values.astype(np.float32)
            return np.where(np.isfinite(numbers), numbers, np.float32(0))
        missing = pd.isna(values)
        if output["kind"] == "index":
            return np.where(missing, NULL, np.where(missing, 0, values)).astype(np.int64)
        if self.spec["codes"][output["name"]] == "int64":
            codes = np.where(missing, MISSING_INTEGER, np.where(missing, 0, values))
            return self._codes[output["name"]](codes.astype(np.int64))
        texts = object_array(["" if gone else str(v) for v, gone in zip(values, missing)])  # noqa: B905
        return self._codes[output["name"]](texts)


def _missing(dtype: str, count: int) -> NDArray[Any]:
    if dtype == "object":
        return np.full(count, None, object)
    if dtype == "int64":
        return np.full(count, MISSING_INTEGER)
    return np.full(count, np.nan if dtype == "float64" else np.datetime64("NaT"), dtype)


def _typed(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the values of a tensor in the type of the log's column."""
    if dtype.startswith("datetime"):
        times = microseconds(values, "iso", None)
        moments = times.astype("datetime64[us]").astype("datetime64[ns]")
        return np.where(times == MISSING_INTEGER, np.datetime64("NaT"), moments)
    if dtype == "object":
        texts = (
            v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)
            for v in without_nul(values).tolist()
        )
        return object_array([text or None for text in texts])
    if dtype == "float64" and values.dtype.kind == "i":
        return np.where(values == MISSING_INTEGER, np.nan, values.astype(np.float64))
    return values.astype(dtype)
