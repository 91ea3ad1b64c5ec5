"""NVTabular operators of numbers, times and sessions.

They work on arrays and offsets, as NVTabular's list aggregation builds a Python list per group. A
GPU has its own engine (`preprocessing/gpu`). All interactions of a session must be in one
partition.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema, Tags
from numpy.typing import NDArray
from nvtabular.ops import Operator

from pipeline.data.fitted import Standardization
from pipeline.preprocessing.sorting.ordering import order_by

DAY_SECONDS = 86_400
WEEK_SECONDS = 7 * DAY_SECONDS
EPOCH_WEEKDAY_SECONDS = 3 * DAY_SECONDS
"""Offset of 1970-01-01, a Thursday, from the Monday on which weeks begin."""
PERIODS = {"hour": (DAY_SECONDS, 0), "weekday": (WEEK_SECONDS, EPOCH_WEEKDAY_SECONDS)}


class ContinuousOperator(Operator):
    """An operator whose outputs are continuous features."""

    @property
    def output_tags(self) -> list[Tags]:
        """Continuous."""
        return [Tags.CONTINUOUS]


class Standardize(ContinuousOperator):
    """Scale numbers to mean 0 and deviation 1 by the fitted statistics of each column.

    A result that overflows float32 becomes missing. A constant column (deviation 0) is only
    centred.
    """

    def __init__(self, standardizations: dict[str, Standardization]) -> None:
        super().__init__()
        self.standardizations = standardizations

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """Scaled columns of the same names."""
        scaled = pd.DataFrame()
        with np.errstate(over="ignore"):
            for name in col_selector.names:
                statistics = self.standardizations[name]
                values = df[name] - statistics.mean
                if statistics.deviation > 0:
                    values = values / statistics.deviation
                values = values.astype(np.float32)
                scaled[name] = values.where(values.abs() < np.inf)
        return scaled

    @property
    def output_dtype(self) -> type:
        """float32."""
        return np.float32


class Cyclic(ContinuousOperator):
    """Hour of the day or day of the week as sine and cosine, so that 23 h is close to 0 h."""

    def __init__(self, feature: str) -> None:
        super().__init__()
        self.feature = feature

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """Columns `<feature>_sin` and `<feature>_cos` of microseconds since 1970 UTC."""
        (name,) = col_selector.names
        period, shift = PERIODS[self.feature]
        # with whole seconds the product is exact in float64, on every engine and in the server
        seconds = (df[name] // 1_000_000 + shift) % period
        angle = seconds.astype(np.float64) * (2 * np.pi / period)
        return pd.DataFrame(
            {
                f"{self.feature}_sin": np.sin(angle).astype(np.float32),
                f"{self.feature}_cos": np.cos(angle).astype(np.float32),
            }
        )

    def column_mapping(self, col_selector: ColumnSelector) -> dict[str, list[str]]:
        """Two output columns from one input column."""
        return {f"{self.feature}_{part}": col_selector.names for part in ("sin", "cos")}

    @property
    def output_dtype(self) -> type:
        """float32."""
        return np.float32


class Elapsed(ContinuousOperator):
    """Seconds since the previous interaction of the session, 0 for the first one."""

    def __init__(self, session: str, timestamp: str) -> None:
        super().__init__()
        self.session = session
        self.timestamp = timestamp

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:  # noqa: ARG002
        """Column `elapsed` in the order of the rows."""
        order, starts = session_order(df[self.session], df[self.timestamp])
        sorted_times = df[self.timestamp].to_numpy()[order]
        steps = np.diff(sorted_times, prepend=sorted_times[:1])
        steps[starts] = 0
        elapsed = np.empty(len(df), np.float64)
        elapsed[order] = steps / 1e6
        return pd.DataFrame({"elapsed": elapsed}, index=df.index)

    def column_mapping(self, col_selector: ColumnSelector) -> dict[str, list[str]]:
        """One output column from two input columns."""
        return {"elapsed": col_selector.names}

    @property
    def output_dtype(self) -> type:
        """float64 seconds."""
        return np.float64


class GroupSessions(Operator):
    """Group interactions to one row per session, with list columns sorted by time.

    Rows with equal times keep their order. Sessions are sorted by id.

    Args:
        session: column of the session id timestamp: column of the time session_features: columns
        that keep the value of the oldest interaction, known before every target keep: number of
        newest interactions to keep; None keeps all
    """

    def __init__(
        self, session: str, timestamp: str, session_features: tuple[str, ...], keep: int | None
    ) -> None:
        super().__init__()
        self.session = session
        self.timestamp = timestamp
        self.session_features = session_features
        self.keep = keep

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """One row per session."""
        listed = [n for n in col_selector.names if n not in (self.session, *self.session_features)]
        order, starts = session_order(df[self.session], df[self.timestamp])
        ends = np.append(starts[1:], len(order))
        lengths = ends - starts
        oldest = order[starts]
        if self.keep is not None:
            from_end = np.repeat(ends, lengths) - np.arange(len(order))  # 1 is the newest
            order = order[from_end <= self.keep]
            lengths = np.minimum(lengths, self.keep)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        columns: dict[str, Any] = {self.session: _decoded(df[self.session].iloc[oldest])}
        for name in self.session_features:
            columns[name] = df[name].to_numpy()[oldest]
        for name in listed:
            values = pa.array(df[name].to_numpy()[order])
            lists = pa.ListArray.from_arrays(offsets, values)
            columns[name] = pd.arrays.ArrowExtensionArray(pa.chunked_array([lists]))
        return pd.DataFrame(columns, copy=False)

    def compute_column_schema(self, col_name: str, input_schema: Schema) -> ColumnSchema:
        """Schema of the column: a ragged list, except for session columns."""
        column = super().compute_column_schema(col_name, input_schema)
        is_scalar = col_name == self.session or col_name in self.session_features
        return column if is_scalar else _list_schema(column, self.keep)


def _list_schema(column: ColumnSchema, longest: int | None) -> ColumnSchema:
    """Schema of a ragged list of a column's values, with its shortest and longest length."""
    shortest = 0 if longest == 1 else 1  # Merlin reads equal bounds as a list that is not ragged
    bounds = {} if longest is None else {"value_count": {"min": shortest, "max": longest}}
    return ColumnSchema(
        column.name,
        dtype=column.dtype,
        tags=column.tags,
        properties={**column.properties, **bounds},
        is_list=True,
        is_ragged=True,
    )


def session_order(session: pd.Series, timestamp: pd.Series) -> tuple[NDArray[Any], NDArray[Any]]:
    """(N,) stable order by session and time, and the (S,) positions in it of session starts."""
    if len(session) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    codes = session_codes(session)
    times = timestamp.to_numpy()
    first = np.empty(len(codes), bool)
    first[0] = True
    np.not_equal(codes[1:], codes[:-1], out=first[1:])
    if bool(((codes[1:] > codes[:-1]) | (~first[1:] & (times[1:] >= times[:-1]))).all()):
        return np.arange(len(codes)), np.flatnonzero(first)
    order = order_by(codes, times)
    starts = np.flatnonzero(np.diff(codes[order], prepend=codes[order[0]] - 1))
    return order, starts


def session_codes(session: pd.Series) -> NDArray[Any]:
    """(N,) integers in the order of the ids."""
    if isinstance(session.dtype, np.dtype) and session.dtype.kind == "i":
        return session.to_numpy()
    return pd.factorize(session, sort=True)[0]


def _decoded(column: pd.Series) -> Any:
    """Values of a column, categories decoded."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.astype(column.cat.categories.dtype).array
    return column.array
