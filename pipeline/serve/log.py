"""Raw log files as the sessions of requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.core import values
from pipeline.core.columns import SESSION, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.core.logfile import Report, read_log
from pipeline.serve.served import ServedModel

Columns = dict[str, list[Any]]


def read_sessions(served: ServedModel, files: list[Path]) -> Iterator[tuple[Any, Columns]]:
    """Ids and raw columns of each session, its rows in the order of the files.

    Rows without a session id belong to none and are passed over. DataError for a file that cannot
    be read, lacks a column or holds no row.
    """
    report = Report()
    tables = [read_log(served.recipe, file, report) for file in files]
    chunks = {
        name: [values.plain(table[name]) for table in tables] for name in [SESSION, *served.columns]
    }
    sessions = values.categories(chunks.pop(SESSION), None)[0]
    columns: dict[str, Any] = {}
    for name, parts in chunks.items():
        kind = served.types.get(name) or served.timestamp_type
        if name == TIMESTAMP:
            columns[name] = _raw_times(parts, str(kind))
        elif kind == "float64":
            columns[name] = values.numbers(parts, positive=False)[0]
        else:
            columns[name] = values.categories(parts, kind)[0]  # type: ignore[arg-type]
    frame = pd.DataFrame(columns)
    if not len(frame):
        raise DataError(f"{', '.join(map(str, files))} holds no row to recommend for.")
    # a feature of the session has the value of its newest interaction, wherever that stands
    times = np.arange(len(frame))
    if served.recipe.timestamp is not None:
        parts = [values.plain(table[TIMESTAMP]) for table in tables]
        times = values.microseconds(parts, served.recipe.timestamp)[0]
    for session, rows in frame.groupby(sessions.to_numpy(), sort=False, dropna=True):
        own_times = times[rows.index]
        newest = int(np.flatnonzero(own_times == own_times.max())[-1])
        taken: Columns = {}
        for name in frame.columns:
            given = [None if pd.isna(v) else v for v in rows[name].tolist()]
            taken[name] = [given[newest]] if served.scopes.get(name) == "session" else given
        yield session, taken


def _raw_times(parts: list[pa.Array], kind: str) -> Any:
    """Times as the server takes them: text, or numbers in the log's unit."""
    if kind == "string":
        texts = []
        for part in parts:
            if pa.types.is_timestamp(part.type):
                part = part.cast(pa.timestamp("us"), safe=False)
            texts += part.cast(pa.string()).to_pylist()
        return texts
    if kind == "int64":
        return values.categories(parts, "int64")[0]
    return values.numbers(parts, positive=False)[0]
