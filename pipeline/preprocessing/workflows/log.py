"""The log of a user's workflow: its columns, their types, and frames of whole sessions."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.merlin import has_cudf
from pipeline.data import values
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.blocks import raw_blocks
from pipeline.preprocessing.sorting.log import Log
from pipeline.preprocessing.sorting.spill import read
from pipeline.recipe.preprocess import Preprocess

Kind = Literal["integer", "number", "text", "time"]
_MICROSECONDS = {"s": 10**6, "ms": 10**3, "us": 1}


def column_kinds(recipe: Preprocess, files: Iterable[Path]) -> dict[str, Kind]:
    """Kind of the values of each feature's column in the whole log, by canonical name."""
    kinds: dict[str, set[Kind]] = {feature.name: set() for feature in recipe.features}
    for _, table in raw_blocks(recipe, files, RowCounts()):
        for name, of_column in kinds.items():
            of_column.add(_kind(values.to_array(table[name])))
    return {name: _common_kind(of_column) for name, of_column in kinds.items()}


def _kind(column: pa.Array) -> Kind:
    if pa.types.is_temporal(column.type):
        return "time"
    if values.as_integers(column) is not None:
        return "integer"
    try:
        _, unusable = values.numbers([column], positive=False)
    except pa.ArrowException:
        return "text"
    return "text" if unusable.any() else "number"


def _common_kind(kinds: set[Kind]) -> Kind:
    if len(kinds) == 1:
        return next(iter(kinds))
    return "number" if kinds <= {"integer", "number"} else "text"


@dataclass(frozen=True)
class LogColumn:
    """A column of the log as the workflow reads it."""

    name: str
    """Name in the log."""
    canonical: str
    """Name in the sorted log."""
    kind: Kind
    dtype: Literal["int64", "float64", "object", "datetime64[ns]"]
    """float64 for integers with missing values, as in pandas."""

    @property
    def request_type(self) -> Literal["int64", "float64", "string"]:
        """Type of its values in a request."""
        types: dict[str, Any] = {"integer": "int64", "number": "float64"}
        return types.get(self.kind, "string")


class LogFrames:
    """Frames of a sorted log with the columns and types that a workflow reads."""

    def __init__(self, recipe: Preprocess, columns: Iterable[str], kinds: dict[str, Kind],
                 logs: list[Log]) -> None:  # fmt: skip
        self._recipe = recipe
        of_feature = {feature.source: feature.name for feature in recipe.features}
        canonical = {recipe.session: SESSION, recipe.item: ITEM} | of_feature
        if recipe.timestamp is not None:
            canonical[recipe.timestamp.column] = TIMESTAMP
        self.columns = [self._column(name, canonical[name], kinds, logs) for name in columns]

    def column(self, name: str) -> LogColumn:
        """Column by its name in the log."""
        return next(column for column in self.columns if column.name == name)

    def frame(self, path: Path, rows: NDArray[Any] | None = None) -> Any:
        """Frame of a shard or of masked rows of it; a cuDF frame if NVTabular runs on a GPU."""
        table = read(path)
        if rows is not None and not rows.all():
            table = table.filter(pa.array(rows))
        frame = pd.DataFrame({c.name: self._series(c, table) for c in self.columns})
        if not has_cudf():
            return frame
        import cudf

        return cudf.DataFrame.from_pandas(frame)

    def _column(
        self, name: str, canonical: str, kinds: dict[str, Kind], logs: list[Log]
    ) -> LogColumn:
        kind = kinds.get(canonical)
        if kind is None and canonical == TIMESTAMP:
            kind = _time_kind(self._recipe, logs[0])
        elif kind is None:
            kind = "integer" if logs[0].types[canonical] == "int64" else "text"
        dtypes: dict[str, Any] = {"number": "float64", "text": "object", "time": "datetime64[ns]"}
        dtype: Any = dtypes.get(kind)
        if dtype is None:
            dtype = "float64" if _has_nulls(logs, canonical) else "int64"
        return LogColumn(name, canonical, kind, dtype)

    def _series(self, column: LogColumn, table: pa.Table) -> Any:
        array = values.to_array(table[column.canonical])
        if column.canonical == TIMESTAMP and self._recipe.timestamp is not None:
            return _times(array.to_numpy(), self._recipe.timestamp.unit, column.dtype)
        if column.kind == "time":
            return pd.to_datetime(pd.Series(array.to_pandas()), format="ISO8601")
        if column.dtype == "object":
            return values.as_text(array).to_pandas()
        return array.to_pandas().astype(column.dtype)


def _time_kind(recipe: Preprocess, log: Log) -> Kind:
    assert recipe.timestamp is not None  # noqa: S101
    if recipe.timestamp.unit == "iso":
        return "time"
    return "integer" if log.timestamp_type == "int64" else "number"


def _times(microseconds: NDArray[Any], unit: str, dtype: str) -> Any:
    """Times in the unit of the log; text and Parquet timestamps become NumPy's datetimes."""
    if dtype == "datetime64[ns]":
        return microseconds.astype("datetime64[us]").astype("datetime64[ns]")
    if unit == "ns":
        return (microseconds * 1000).astype(dtype)
    if dtype == "float64":
        return microseconds / _MICROSECONDS[unit]
    return microseconds // _MICROSECONDS[unit]


def _has_nulls(logs: list[Log], canonical: str) -> bool:
    paths = [shard.path for log in logs for shard in log.shards]
    return any(read(path)[canonical].null_count for path in paths if path is not None)


def mask_of(part: int, splits: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """(N,) bool, True for the interactions of the sessions of a part."""
    mask: NDArray[Any] = np.repeat(splits == part, lengths)
    return mask
