"""Reads requests: checks the tensors from Triton and returns their sessions and filters.

Letters: B rows of a request, n its width, S sessions, X excluded items, C candidates, k the length
of a list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import RequestError
from .lookups import FIRST_ITEM, MISSING_INTEGER, OUT_OF_VOCABULARY, without_nul
from .request_encoder import Encoder
from .rows import MISSING, Rows, newest, newest_starts
from .times import microseconds

MAX_REQUEST_VALUES = 100_000
"""Maximum number of values of each tensor of a request."""
MAX_SESSION_IDS = 10_000
"""Maximum number of excluded items and of candidates of a session, its own filtered items included,
as all requests of a batch are padded to the widest."""
MAX_SESSIONS = 10_000
"""Maximum number of sessions in a flat request."""
MAX_REQUEST_IDS = 1_000_000
"""Maximum number of excluded items and of candidates of a request, over all its sessions; a row
that all sessions share counts for each session."""
KINDS = {"int64": "i", "float64": "fi", "string": "OSU"}
"""NumPy kinds of a tensor by type of a column."""


class Request(NamedTuple):
    """Sessions of a request and the options of their lists."""

    rows: Rows
    session_ids: NDArray[Any]
    """(B, 1), or (1, S) of a flat request."""
    flat: bool
    k: int
    excluded: NDArray[Any]
    """(S, X) item indices, padded with 0."""
    candidates: NDArray[Any]
    """(S, C) item indices, padded with 0; a row without any allows the whole catalogue."""
    num_known: NDArray[Any]
    """(S,) int32, interactions whose item is in the catalogue."""


class _Layout(NamedTuple):
    """Positions of the interactions in tensors of the shape of `item_id`."""

    shape: tuple[int, ...]
    cells: NDArray[Any]
    """(interactions,) positions in a flattened tensor, session by session."""
    lengths: NDArray[Any]
    """(S,)"""
    session_ids: NDArray[Any]
    flat: bool


class RequestReader:
    """Reads the requests of one model."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.types: dict[str, str] = {c["name"]: c["type"] for c in encoder.columns}
        self.missing = frozenset(encoder.spec["missing"])
        self.session_type: str = encoder.spec["session_type"]

    def read(self, tensors: dict[str, NDArray[Any]]) -> Request:
        """Check the tensors of a request. RequestError says what is wrong with it."""
        item = tensors.get("item_id")
        if item is None:
            raise RequestError("item_id is missing. Send the item ids of each session, (B, n).")
        if item.ndim != 2 or item.shape[0] == 0 or item.shape[1] == 0:
            raise RequestError(
                f"item_id has the shape {list(item.shape)}, expected [B, n] with at least one "
                "session and one interaction."
            )
        for name, values in tensors.items():
            # Triton repeats ids for all sessions in each row
            limit = MAX_REQUEST_IDS if name in ("exclude", "candidates") else MAX_REQUEST_VALUES
            if values.size > limit:
                raise RequestError(
                    f"{name} has {values.size} values, expected at most {limit} in a request."
                )
        layout = self._layout(item, tensors.get("session_id"), tensors.get("length"))
        times = self._times(tensors.get("timestamp"), layout)
        gap = self.encoder.spec["session_gap"]
        columns = {
            column["name"]: _column(column, tensors[column["name"]], layout, times, gap)
            for column in self.encoder.columns
            if column["name"] in tensors
        }
        for name, values in columns.items() if self.missing else ():
            columns[name] = _replace(values, self.missing, MISSING[self.types[name]])
        rows = Rows(columns, layout.lengths, times)
        indices = self.encoder.lookups["item_id"](columns["item_id"])
        excluded = self._indices("exclude", tensors.get("exclude"), layout)
        if self._filters_seen(tensors.get("filter_seen")):
            excluded = np.concatenate([excluded, _pad_rows(indices, layout.lengths)], axis=1)
        candidates = self._indices("candidates", tensors.get("candidates"), layout)
        k = self._num_items(tensors.get("k"))
        starts = np.cumsum(layout.lengths) - layout.lengths
        num_known = np.add.reduceat(indices >= FIRST_ITEM, starts, dtype=np.int32)
        return Request(rows, layout.session_ids, layout.flat, k, excluded, candidates, num_known)

    def _layout(
        self, item: NDArray[Any], session: NDArray[Any] | None, length: NDArray[Any] | None
    ) -> _Layout:
        if session is None:
            empty = {"int64": np.int64, "string": object}[self.session_type]
            ids = np.full((item.shape[0], 1), MISSING[self.session_type], empty)
        else:
            _check_type("session_id", session, self.session_type)
            ids = without_nul(session)
        if ids.shape == item.shape and ids.shape[0] == 1 and ids.shape[1] > 1:
            if length is not None:
                raise RequestError("length is for one session a row, without session_id for each.")
            missing = MISSING_INTEGER if self.session_type == "int64" else b""
            if (ids == missing).any() or (ids.dtype == object and (ids == "").any()):
                raise RequestError("session_id is missing for an interaction. Send one for each.")
            return _flat_layout(item.shape, ids[0])
        if ids.shape != (item.shape[0], 1):
            raise RequestError(
                f"session_id has the shape {list(ids.shape)}, expected [{item.shape[0]}, 1] for "
                f"item_id's {list(item.shape)}, or [1, n] for both, flat."
            )
        mask, lengths = _read_lengths(item.shape, length)
        return _Layout(item.shape, mask.reshape(-1).nonzero()[0], lengths, ids, flat=False)

    def _times(self, values: NDArray[Any] | None, layout: _Layout) -> NDArray[Any] | None:
        """Return (interactions,) microseconds."""
        timestamp = self.encoder.timestamp
        if values is None:
            return None
        if timestamp is None:
            raise RequestError("timestamp is unknown: the model was trained without.")
        if values.shape != layout.shape:
            raise RequestError(
                f"timestamp has the shape {list(values.shape)}, expected {list(layout.shape)} to "
                "go with item_id."
            )
        _check_type("timestamp", values, timestamp["type"])
        values = values.reshape(-1)[layout.cells]
        times = microseconds(values, timestamp["unit"], timestamp["format"])
        return _fill_times(times, layout.lengths)

    def _indices(self, name: str, values: NDArray[Any] | None, layout: _Layout) -> NDArray[Any]:
        """Return (S, X) item indices of raw ids, (S, 0) without the tensor.

        Ids outside the catalogue stay out of vocabulary: as candidates, no list can hold them.
        """
        count = len(layout.lengths)
        if values is None:
            return np.zeros((count, 0), np.int64)
        if values.ndim != 2 or values.shape[0] not in (1, layout.shape[0]):
            raise RequestError(
                f"{name} has the shape {list(values.shape)}, expected [{layout.shape[0]}, m] with "
                "the item ids of each session, or [1, m]."
            )
        if values.shape[1] == 0:
            # an empty set of candidates gives an empty list, not the whole catalogue
            return np.full((count, int(name == "candidates")), OUT_OF_VOCABULARY)
        if values.shape[1] > MAX_SESSION_IDS or count * values.shape[1] > MAX_REQUEST_IDS:
            raise RequestError(
                f"{name} has {values.shape[1]} ids for each of {count} sessions, expected at most "
                f"{MAX_SESSION_IDS} for each and {MAX_REQUEST_IDS} in all."
            )
        _check_type(name, values, self.types["item_id"])
        indices = self.encoder.lookups["item_id"](values.reshape(-1)).reshape(values.shape)
        indices = np.where(indices < OUT_OF_VOCABULARY, 0, indices)  # rows end in missing ids
        if name == "candidates":  # a row of unknown candidates gives an empty list too
            indices[:, 0] = np.where(indices.any(1), indices[:, 0], OUT_OF_VOCABULARY)
        return indices if len(indices) == count else np.repeat(indices, count, axis=0)

    def _filters_seen(self, requested: NDArray[Any] | None) -> bool:
        if requested is None:
            return bool(self.encoder.spec["filter_seen"])
        if requested.dtype != np.bool_:
            raise RequestError(f"filter_seen holds {requested.dtype}, expected bool.")
        return bool(_single_value("filter_seen", requested))

    def _num_items(self, requested: NDArray[Any] | None) -> int:
        """Return the list length: `k`, one for all sessions of the request, or the default."""
        if requested is None:
            return int(self.encoder.spec["default_k"])
        k, max_k = int(_single_value("k", requested)), int(self.encoder.spec["max_k"])
        if not 1 <= k <= max_k:
            raise RequestError(
                f"k is {k}, expected 1 to {max_k}. For longer lists export with a larger --max-k."
            )
        return k


def _replace(values: NDArray[Any], words: frozenset[str], missing: Any) -> NDArray[Any]:
    """Return values with `missing` for those whose text is among `words`."""
    replaced = values.copy()
    for index, value in enumerate(values.tolist()):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        if text in words:
            replaced[index] = missing
    return replaced


def _single_value(name: str, requested: NDArray[Any]) -> Any:
    values = np.unique(requested)
    if values.size != 1:
        raise RequestError(
            f"{name} differs within a request: {values[:5].tolist()}. Send one for all."
        )
    return values[0]


def _column(
    column: dict[str, Any],
    values: NDArray[Any],
    layout: _Layout,
    times: NDArray[Any] | None,
    gap: int | None,
) -> NDArray[Any]:
    """Return (interactions,) values of a column, (S,) of a session column.

    In a flat request, a session takes the value of its oldest interaction, after the last gap of
    `gap` microseconds.
    """
    name, of_session = column["name"], column["scope"] == "session"
    expected = (layout.shape[0], 1) if of_session and not layout.flat else layout.shape
    if values.shape != expected:
        raise RequestError(
            f"{name} has the shape {list(values.shape)}, expected {list(expected)} to go with "
            f"item_id's {list(layout.shape)}."
        )
    _check_type(name, values, column["type"])
    if of_session and not layout.flat:
        return values[:, 0]
    values = values.reshape(-1)[layout.cells]
    if not of_session:
        return values
    starts = np.cumsum(layout.lengths) - layout.lengths
    if times is not None:  # of its oldest interaction, as in preprocessing
        rows = np.repeat(np.arange(len(layout.lengths)), layout.lengths)
        order = np.lexsort((times, rows))
        if gap is not None:
            starts = newest_starts(times[order], starts, gap)
        starts = order[starts]
    return values[starts]


def _fill_times(times: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """Fill missing times, so that an interaction without a time keeps its position.

    It gets the time of the previous interaction, or else of the first later one in the session, or
    else 0.
    """
    present = times != MISSING_INTEGER
    if present.all():
        return times
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    positions = np.arange(len(times))
    last = np.maximum.accumulate(np.where(present, positions, starts))
    filled = times[np.maximum(last, starts)]
    following = np.minimum.accumulate(np.where(present, positions, len(times) - 1)[::-1])[::-1]
    ends = starts + np.repeat(lengths, lengths)
    first = np.where(present[following] & (following < ends), times[following], MISSING_INTEGER)
    filled = np.where(filled == MISSING_INTEGER, first, filled)
    return np.where(filled == MISSING_INTEGER, 0, filled)


def _flat_layout(shape: tuple[int, ...], ids: NDArray[Any]) -> _Layout:
    """Lay out interactions in any order; sessions are ordered by their first interaction."""
    values, first, code = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    session = rank[code.reshape(-1)]
    lengths = np.bincount(session, minlength=len(values))
    if len(values) > MAX_SESSIONS:
        raise RequestError(
            f"session_id names {len(values)} sessions, expected at most {MAX_SESSIONS} in a "
            "request."
        )
    cells = np.argsort(session, kind="stable")
    return _Layout(shape, cells, lengths, values[order][np.newaxis], flat=True)


def _read_lengths(
    shape: tuple[int, ...], length: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (B, n) bool, True for an interaction, and (B,) lengths."""
    if length is None:
        return np.ones(shape, bool), np.full(shape[0], shape[1])
    if length.size != shape[0]:
        raise RequestError(
            f"length has the shape {list(length.shape)}, expected [{shape[0]}, 1] for item_id's "
            f"{list(shape)}."
        )
    lengths = length.reshape(-1).astype(np.int64)
    wrong = (lengths < 1) | (lengths > shape[1])
    if wrong.any():
        raise RequestError(
            f"length is {int(lengths[wrong][0])}, expected 1 to {shape[1]}, the width of item_id."
        )
    return np.arange(shape[1]) < lengths[:, np.newaxis], lengths


def _pad_rows(values: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """(interactions,) -> (S, longest), padded with 0; a long session keeps its newest ones."""
    width = max(1, min(int(lengths.max()), MAX_SESSION_IDS, MAX_REQUEST_IDS // len(lengths)))
    kept, row, column = newest(lengths, width)
    rows = np.zeros((len(lengths), width), np.int64)
    rows[row, column] = np.where(values < FIRST_ITEM, 0, values)[kept]
    return rows


def _check_type(name: str, values: NDArray[Any], kind: str) -> None:
    if values.dtype.kind not in KINDS[kind]:
        raise RequestError(f"{name} holds {values.dtype}, expected {kind}.")
