"""Sessions of windows of time: which they are, and their values by a catalogue that grows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.columns import (
    FIRST_ITEM,
    ITEM,
    SESSIONS_DIRECTORY,
    TIMESTAMP,
)
from pipeline.data.interactions import Interactions

_MICROSECONDS = 1_000_000
_DAY = 86_400 * _MICROSECONDS
_ROW_GROUP_SESSIONS = 65_536
"""As preprocessing writes them: what the loader shuffles among each other."""


class Window(NamedTuple):
    """A span of time with the sessions that end in it."""

    begin: int
    """Microseconds since 1970 UTC."""
    end: int
    """One past its last microsecond."""
    sessions: np.ndarray
    """Their places in the table of all sessions, rising."""


def cut_windows(ends: np.ndarray, seconds: float, trainable: np.ndarray) -> list[Window]:
    """(M,) times of the sessions' last interactions, in microseconds -> windows, oldest first.

    They are counted from midnight UTC of the first day. A span without a session that is
    `trainable`, (M,) bool, is left out: nothing could be learned from it.
    """
    width = round(seconds * _MICROSECONDS)
    origin = int(ends.min()) // _DAY * _DAY
    number = (ends - origin) // width
    windows = []
    for which in np.unique(number[trainable]).tolist():
        begin = origin + which * width
        windows.append(Window(begin, begin + width, np.flatnonzero(number == which)))
    return windows


class Growing(NamedTuple):
    """A categorical feature of the data, whose values come window by window."""

    columns: tuple[str, ...]
    """Several where an interaction has several values."""
    first: int
    """Index of the first value, behind the reserved ones and hash buckets."""
    unknown: np.ndarray
    """(V,) the index of each value before it has occurred."""

    @property
    def num_rows(self) -> int:
        """V of the data."""
        return len(self.unknown)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Which values have occurred, by categorical feature: (rows,) indices of the data.

    A value stands where it did when more are added. Those of one window stand in the data's order.
    """

    rows: dict[str, np.ndarray]

    def extended(self, occurred: dict[str, np.ndarray]) -> "Catalogue":
        """With the values of `occurred`, indices of the data, that are new."""
        rows = {}
        for name, known in self.rows.items():
            new = np.setdiff1d(occurred[name], known)  # sorted
            rows[name] = np.concatenate([known, new[new >= FIRST_ITEM]])
        return Catalogue(rows=rows)

    def places(self, name: str, num_rows: int) -> np.ndarray:
        """(V,) for each index of the data its place here, or -1."""
        places = np.full(num_rows, -1)
        places[self.rows[name]] = np.arange(len(self.rows[name]))
        return places


def trainable(sessions: pa.Table, longest: int, shortest: int) -> pa.Table:
    """Sessions of `shortest` interactions or more, cut to their newest `longest`.

    Preprocessing does so with the training part, but not with the others.
    """
    lengths = np.diff(sessions[ITEM].combine_chunks().offsets.to_numpy())
    chosen = sessions.take(np.flatnonzero(lengths >= shortest)).combine_chunks()
    for name, column in _lists(chosen):
        offsets = column.offsets.to_numpy()
        lengths = np.minimum(np.diff(offsets), longest)
        starts = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(offsets[1:] - lengths - starts, lengths)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        chosen = _with(chosen, name, pa.ListArray.from_arrays(ends, column.values.take(places)))
    return chosen


def mapped(sessions: pa.Table, catalogue: Catalogue, features: dict[str, Growing]) -> pa.Table:
    """With the indices of a catalogue; what is not in it is unknown, or in its hash bucket."""
    for name in catalogue.rows:
        feature = features[name]
        places = catalogue.places(name, feature.num_rows)
        # what stands for unknown values is known from the beginning
        places = np.where(places < 0, places[feature.unknown], places)
        for column_name in feature.columns:
            column = sessions[column_name].combine_chunks()
            if pa.types.is_list(column.type):
                values = pa.array(places[column.values.to_numpy()], type=column.type.value_type)
                found = pa.ListArray.from_arrays(column.offsets, values)
            else:
                found = pa.array(places[column.to_numpy()], type=column.type)
            sessions = _with(sessions, column_name, found)
    return sessions


def write_part(sessions: pa.Table, directory: Path, part: str) -> None:
    """Sessions as a part of a data directory."""
    folder = directory / SESSIONS_DIRECTORY / part
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(sessions, folder / "part-0.parquet", row_group_size=_ROW_GROUP_SESSIONS)


def interactions_of(sessions: pa.Table) -> Interactions:
    """As ragged arrays."""
    items = sessions[ITEM].combine_chunks()
    return Interactions(
        items.values.to_numpy(),
        items.offsets.to_numpy().astype(np.int64),
        flat(sessions, TIMESTAMP),
    )


def flat(sessions: pa.Table, name: str) -> np.ndarray:
    """(interactions,) values of a column; (sessions,) of one with a value a session."""
    column = sessions[name].combine_chunks()
    values: np.ndarray = (column.flatten() if pa.types.is_list(column.type) else column).to_numpy()
    return values


def _lists(sessions: pa.Table) -> Iterator[tuple[str, Any]]:
    for name in sessions.column_names:
        if pa.types.is_list(sessions[name].type):
            yield name, sessions[name].combine_chunks()


def _with(sessions: pa.Table, name: str, column: Any) -> pa.Table:
    return sessions.set_column(sessions.column_names.index(name), name, column)
