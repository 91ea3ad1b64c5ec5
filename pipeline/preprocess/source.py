"""Logs to interactions in canonical columns and types.

Whatever is dropped or set to missing on the way is counted.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.core import values
from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.core.fitted import TimestampType, ValueType
from pipeline.core.logfile import Report, read_log
from pipeline.core.recipe import Preprocess


@dataclass(frozen=True)
class Interactions:
    """A log in canonical columns."""

    frame: pd.DataFrame
    types: dict[str, ValueType]
    """Of the session, the item and each categorical feature."""
    timestamp_type: TimestampType | None
    """None where the order of the rows stands for time."""
    report: Report


def read_interactions(
    recipe: Preprocess, files: list[Path], fitted_types: dict[str, ValueType] | None = None
) -> Interactions:
    """Read `files` as one log.

    Where `fitted_types` is given, categorical values are read as those types; otherwise integers
    stay integers and all else becomes text. DataError for a missing file, a missing column, an
    unreadable file or a log without a usable row.
    """
    report = Report()
    tables = [read_log(recipe, file, report) for file in files]
    columns: dict[str, pd.Series] = {}
    types: dict[str, ValueType] = {}
    wanted = fitted_types or {}  # not of the session: its id is never encoded
    for name in [SESSION, ITEM, *(f.name for f in recipe.features if f.kind == "categorical")]:
        chunks = [values.plain(table[name]) for table in tables]
        columns[name], types[name] = values.categories(
            chunks, None if name == SESSION else wanted.get(name)
        )
    for feature in recipe.features:
        if feature.kind == "continuous":
            chunks = [values.plain(table[feature.name]) for table in tables]
            numbers, bad = values.numbers(chunks, positive=feature.log)
            columns[feature.name] = pd.Series(numbers)
            report.counts[f"values of {feature.name} that are no usable number"] += bad
    times, timestamp_type = _times(recipe, tables)
    frame = pd.DataFrame({**columns, TIMESTAMP: times})
    frame = _keep(frame, frame[SESSION].notna(), "rows without a session id", report)
    frame = _keep(frame, frame[TIMESTAMP] != values.NO_TIME, "rows without a usable time", report)
    if types[SESSION] == "int64":
        frame[SESSION] = frame[SESSION].astype(np.int64)
    report.counts = +report.counts  # drops the zeros
    if frame.empty:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.counts.items())
        raise DataError(
            f"{', '.join(map(str, files))}: no usable row among {report.rows} "
            f"({reasons or 'nothing in it'}). Check `session`, `timestamp` and `delimiter`."
        )
    return Interactions(frame.reset_index(drop=True), types, timestamp_type, report)


def _times(recipe: Preprocess, tables: list[pa.Table]) -> tuple[np.ndarray, TimestampType | None]:
    if recipe.timestamp is None:
        return np.arange(sum(table.num_rows for table in tables), dtype=np.int64), None
    chunks = [values.plain(table[TIMESTAMP]) for table in tables]
    return values.microseconds(chunks, recipe.timestamp)


def _keep(frame: pd.DataFrame, kept: pd.Series, reason: str, report: Report) -> pd.DataFrame:
    """Drop the rows that are not `kept` and say how many."""
    report.counts[reason] += int((~kept).sum())
    return frame if kept.all() else frame[kept]
