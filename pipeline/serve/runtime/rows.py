"""Interactions of requests as flat arrays: order, current session, newest interactions, padding."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .lookups import MISSING_INTEGER

MISSING: dict[str, Any] = {"int64": MISSING_INTEGER, "float64": np.nan, "string": b""}
"""Missing value by type of a column."""


class Rows(NamedTuple):
    """Sessions of one or several requests, flattened."""

    columns: dict[str, NDArray[Any]]
    """(interactions,) values of interaction features and (sessions,) values of session features,
    without those that the request leaves out."""
    lengths: NDArray[Any]
    """(sessions,) number of interactions, at least 1."""
    times: NDArray[Any] | None
    """(interactions,) microseconds, None if the request has no times and is in their order."""


class Padding:
    """The newest interactions of each session, padded on the right to a common width."""

    def __init__(self, lengths: NDArray[Any], width: int) -> None:
        self.shape = (len(lengths), width)
        self.kept: NDArray[Any] | None = None
        """(kept,) positions of the kept interactions, None for all."""
        # in most requests all sessions have this width and need no cut or padding
        if not (lengths == width).all():
            self.kept, self._row, self._column = newest(lengths, width)

    @property
    def num_kept(self) -> int:
        """Number of kept interactions."""
        return self.shape[0] * self.shape[1] if self.kept is None else len(self.kept)

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """(kept, ...) -> (S, W, ...), 0 after the end of a session."""
        if self.kept is None:
            return values.reshape(*self.shape, *values.shape[1:])
        padded = np.zeros((*self.shape, *values.shape[1:]), values.dtype)
        padded[self._row, self._column] = values
        return padded


def merge(parts: list[Rows], specs: list[dict[str, Any]]) -> Rows:
    """Concatenate sessions of several requests, all with times or all without.

    `specs` describe the columns; a column of only some requests is missing in the others.
    """
    if len(parts) == 1:
        return parts[0]
    times = None
    if parts[0].times is not None:
        times = np.concatenate([part.times for part in parts if part.times is not None])
    columns = {}
    for spec in specs:
        name = spec["name"]
        if any(name in part.columns for part in parts):
            columns[name] = np.concatenate([_column_or_missing(part, spec) for part in parts])
    return Rows(columns, np.concatenate([part.lengths for part in parts]), times)


def _column_or_missing(rows: Rows, spec: dict[str, Any]) -> NDArray[Any]:
    if spec["name"] in rows.columns:
        return rows.columns[spec["name"]]
    per_session = spec["scope"] == "session"
    return missing(spec, len(rows.lengths) if per_session else int(rows.lengths.sum()))


def missing(spec: dict[str, Any], count: int) -> NDArray[Any]:
    """Return (count,) missing values of a column."""
    types: dict[str, type] = {"int64": np.int64, "float64": np.float64, "string": object}
    return np.full(count, MISSING[spec["type"]], types[spec["type"]])


def time_order(times: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any] | None:
    """Return the order of interactions by session and time, None if they are sorted.

    Equal times keep the order of the request.
    """
    follows = times[1:] >= times[:-1]
    follows[np.cumsum(lengths[:-1]) - 1] = True  # from one session to the next
    if follows.all():
        return None
    return np.lexsort((times, np.repeat(np.arange(len(lengths)), lengths)))


def newest_starts(times: NDArray[Any], starts: NDArray[Any], gap: int) -> NDArray[Any]:
    """Return (S,) first positions of the current sessions, which begin after the last gap.

    `times` are sorted by row and time, `starts` (S,) are the first positions of rows, `gap` is in
    microseconds.
    """
    positions = np.arange(len(times))
    begins = np.zeros(len(times), bool)
    begins[1:] = np.diff(times) > gap
    begins[starts] = True
    first: NDArray[Any] = np.maximum.reduceat(np.where(begins, positions, 0), starts)
    return first


def newest(lengths: NDArray[Any], width: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return positions of the newest sorted interactions, and their rows and columns in padding."""
    ends = np.cumsum(lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)
    from_end = ends[row] - np.arange(len(row))  # 1 is the newest
    kept = from_end <= width
    column = np.minimum(lengths, width)[row] - from_end
    return kept.nonzero()[0], row[kept], column[kept]
