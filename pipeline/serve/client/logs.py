"""Sessions of requests from raw logs and data frames."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.core.columns import ORDER, SESSION, TIMESTAMP
from pipeline.core.errors import DataError, InputWarning
from pipeline.data import values
from pipeline.data.times import NO_TIME, microseconds
from pipeline.logs.columns import read_frame
from pipeline.logs.files import column_names, find_logs, read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.durations import duration_microseconds
from pipeline.recipe.features import ColumnFeature, ColumnNumber, Feature, TargetEncodedFeature
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.split import Split
from pipeline.recipe.timestamp import Timestamp
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.client.tensors import Columns


def read_sessions(served: ServedModel, files: list[Path]) -> Iterator[tuple[Any, Columns]]:
    """Yield the id and the raw columns of each session, with its rows by time.

    Rows without a session id are skipped. A warning lists other dropped or repaired rows.
    DataError for a file that cannot be read, lacks a column or has no row.
    """
    files = find_logs(served.recipe, files)
    recipe = _log_recipe(served.recipe, column_names(served.recipe, files))
    report = RowCounts()
    tables = read_logs(recipe, files, report)
    if not sum(table.num_rows for table in tables):
        raise DataError(f"{', '.join(map(str, files))} holds no row to recommend for.")
    missing = sum(_num_missing_sessions(table) for table in tables)
    report.dropped["rows without a session id"] += missing
    if report.counts:
        text = "; ".join(report.sentences)
        warnings.warn(f"{', '.join(map(str, files))}: {text}.", InputWarning, stacklevel=2)
    return _sessions(served, tables)


def _num_missing_sessions(table: pa.Table) -> int:
    ids, _ = values.category_chunk(values.to_array(table[SESSION]), "string")
    return int(ids.null_count)


def sessions_of_frame(served: ServedModel, frame: pd.DataFrame) -> Iterator[tuple[Any, Columns]]:
    """Yield the sessions of a frame with the log's columns; only session and item are required.

    DataError if one of these two is missing.
    """
    table = read_frame(_log_recipe(served.recipe, set(frame.columns)), frame)
    return _sessions(served, [table])


def _log_recipe(recipe: Preprocess, columns: set[str]) -> Preprocess:
    """Return the recipe that reads a log with these `columns` for requests.

    It reads no operator features and expressions, the category of a target encoding, and features
    of items and of a side table only if this log has them: the model has the items' values.
    """
    features: list[Feature] = []
    for feature in recipe.read_features:
        name, column = feature.name, feature.source
        if isinstance(feature, TargetEncodedFeature):
            features.append(ColumnNumber(name=name, kind="continuous", column=column))
        elif isinstance(feature, ColumnFeature) and (
            column in columns or not (feature.table or feature.of == "item")
        ):
            features.append(feature.model_copy(update={"table": False}))
    order = tuple(column for column in recipe.order if column in columns)
    update = {"features": tuple(features), "order": order, "split": Split()}
    return recipe.model_copy(update=update)


def _sessions(served: ServedModel, tables: list[pa.Table]) -> Iterator[tuple[Any, Columns]]:
    names = [name for name in (*served.types, TIMESTAMP) if name in tables[0].column_names]
    frame = pd.DataFrame({name: _column(served, tables, name) for name in names})
    chunks = [values.to_array(table[SESSION]) for table in tables]
    frame["_session"] = values.categories(chunks, None)[0].to_numpy()
    if served.recipe.timestamp is not None and TIMESTAMP in names:
        chunks = [values.to_array(table[TIMESTAMP]) for table in tables]
        times = microseconds(chunks, served.recipe.timestamp)[0]
        if (times != NO_TIME).all():  # else interactions keep their positions
            frame["_time"] = times
            keys = [
                values.numbers([values.to_array(table[name]) for table in tables], positive=False)[
                    0
                ]
                for name in reversed(tables[0].column_names)
                if name.startswith(ORDER)
            ]
            frame = frame.iloc[np.lexsort((*keys, times))]
    gap = served.recipe.session_gap and duration_microseconds(served.recipe.session_gap)
    for session, rows in frame.groupby("_session", sort=False, dropna=True):
        columns: Columns = {}
        first = 0  # oldest interaction of the current session
        if gap is not None and "_time" in rows:
            starts = np.flatnonzero(np.diff(rows["_time"].to_numpy()) > gap) + 1
            first = int(starts[-1]) if len(starts) else 0
        for name in names:
            column = [None if pd.isna(v) else v for v in rows[name].tolist()]
            per_session = served.scopes.get(name) == "session"
            columns[name] = column[first : first + 1] if per_session else column
        yield session, columns


def _column(served: ServedModel, tables: list[pa.Table], name: str) -> Any:
    kind = served.types.get(name) or served.timestamp_type
    chunks = [values.to_array(table[name]) for table in tables]
    if name == TIMESTAMP:
        return _raw_times(chunks, str(kind), served.recipe.timestamp)
    if kind == "float64":
        return values.numbers(chunks, positive=False, decimal=served.recipe.decimal)[0]
    return values.categories(chunks, kind)[0]  # type: ignore[arg-type]


def _raw_times(parts: list[pa.Array], kind: str, config: Timestamp | None) -> Any:
    """Return times in the form of a request: text, or numbers in the unit of the log."""
    if kind == "string":
        assert config is not None  # noqa: S101
        times = microseconds(parts, config)[0]
        # an invalid time is missing: a server would refuse the request
        moments = pa.array(times, pa.timestamp("us", "UTC"), mask=times == NO_TIME)
        if config.format is None:
            return moments.cast(pa.timestamp("us")).cast(pa.string()).to_pylist()
        texts = moments.to_pandas().dt.strftime(config.format)
        return texts.where(texts.notna(), None).tolist()
    if kind == "int64":
        # whole units, also where this log has fractions of them
        assert config is not None  # noqa: S101
        times = microseconds(parts, config)[0]
        unit = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[config.unit]
        return [None if t == NO_TIME else round(t / unit) for t in times.tolist()]
    return values.numbers(parts, positive=False)[0]
