"""Time windows, and the sessions of a window as arrays and as a part of a data directory."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION, SESSIONS_DIRECTORY, TIMESTAMP
from pipeline.core.errors import ArtifactError
from pipeline.data.directory import Data
from pipeline.data.sessions import read_sessions

_MICROSECONDS = 1_000_000
_DAY = 86_400 * _MICROSECONDS
_ROW_GROUP_SESSIONS = 65_536
"""Sessions per row group, as in preprocessing: the unit of shuffling."""


class Window(NamedTuple):
    """A span of time and the sessions that end in it."""

    begin: int
    """Microseconds since 1970 UTC."""
    end: int
    """Microseconds since 1970 UTC, exclusive."""
    sessions: NDArray[Any]
    """Rows of the sessions in the table of all sessions, ascending."""


def read_all_sessions(data: Data) -> pa.Table:
    """Sessions of all parts, with the columns of the schema and times."""
    names = [*(name for name in data.schema.column_names if name != SESSION), TIMESTAMP]
    parts = [read_sessions(data.path, part, list(dict.fromkeys(names))) for part in data.parts]
    return pa.concat_tables(parts, promote_options="permissive").combine_chunks()


def windows_of(sessions: pa.Table, seconds: float, min_length: int) -> list[Window]:
    """Windows of `seconds` with a session of `min_length` interactions. ArtifactError if none."""
    times = sessions[TIMESTAMP].combine_chunks()
    offsets = times.offsets.to_numpy()
    is_long = np.diff(offsets) >= min_length
    if not is_long.any():
        raise ArtifactError("The data hold no session to train on. Preprocess a longer log.")
    ends = times.values.to_numpy()[np.maximum(offsets[1:] - 1, 0)]
    return cut_windows(ends, seconds, is_long)


def cut_windows(ends: NDArray[Any], seconds: float, is_trainable: NDArray[Any]) -> list[Window]:
    """(M,) microseconds of the sessions' last interactions -> windows, oldest first.

    Windows begin at midnight UTC of the first day. Windows without a session of `is_trainable` (M,)
    bool are left out.
    """
    width = round(seconds * _MICROSECONDS)
    origin = int(ends.min()) // _DAY * _DAY
    numbers = (ends - origin) // width
    windows = []
    for number in np.unique(numbers[is_trainable]).tolist():
        begin = origin + number * width
        windows.append(Window(begin, begin + width, np.flatnonzero(numbers == number)))
    return windows


def trainable_sessions(sessions: pa.Table, max_length: int, min_length: int) -> pa.Table:
    """Sessions of `min_length` interactions or more, cut to their newest `max_length`.

    Preprocessing does so for the train part only.
    """
    lengths = np.diff(sessions[ITEM].combine_chunks().offsets.to_numpy())
    chosen = sessions.take(np.flatnonzero(lengths >= min_length)).combine_chunks()
    for name in chosen.column_names:
        if not pa.types.is_list(chosen[name].type):
            continue
        column = chosen[name].combine_chunks()
        offsets = column.offsets.to_numpy()
        lengths = np.minimum(np.diff(offsets), max_length)
        starts = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum()) + np.repeat(offsets[1:] - lengths - starts, lengths)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        cut = pa.ListArray.from_arrays(ends, column.values.take(rows))
        chosen = chosen.set_column(chosen.column_names.index(name), name, cut)
    return chosen


def write_part(sessions: pa.Table, directory: Path, part: str) -> None:
    """Write sessions as a part of a data directory."""
    folder = directory / SESSIONS_DIRECTORY / part
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(sessions, folder / "part-0.parquet", row_group_size=_ROW_GROUP_SESSIONS)


def flat_column(sessions: pa.Table, name: str) -> NDArray[Any]:
    """Values of a column: (N,) per interaction, or (M,) per session."""
    column = sessions[name].combine_chunks()
    values: NDArray[Any] = (
        column.flatten() if pa.types.is_list(column.type) else column
    ).to_numpy()
    return values
