"""Requests as Triton gives them, checked: sessions, and what their lists may hold.

Letters: B rows of a request, n its width, S sessions, X excluded items, C candidates, k of a list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .encoder import MISSING, Encoder, Rows, newest, newest_starts
from .errors import RequestError
from .lookups import FIRST_ITEM, MISSING_INTEGER, OUT_OF_VOCABULARY, without_nul
from .times import microseconds

MOST_INTERACTIONS = 100_000
"""Of a request; the cells of its widest tensor."""
MOST_FILTERED = 10_000
"""Ids of `exclude` and of `candidates` for a session, and of its own items that are filtered:
requests that are answered together are as wide as the widest of them."""
MOST_SESSIONS = 10_000
"""Of a flat request."""
MOST_IN_ALL = 1_000_000
"""Of all sessions of a request: one row of ids is for all of them."""
KINDS = {"int64": "i", "float64": "fi", "string": "OSU"}


class Request(NamedTuple):
    """What was asked."""

    rows: Rows
    session_ids: np.ndarray
    """(B, 1), or (1, S) where interactions came flat."""
    flat: bool
    k: int
    excluded: np.ndarray
    """(S, X) item indices, 0 for none."""
    candidates: np.ndarray
    """(S, C) item indices, 0 for none; a row without any may hold the whole catalogue."""


class _Layout(NamedTuple):
    """Where interactions stand in tensors of the shape of `item_id`."""

    shape: tuple[int, ...]
    cells: np.ndarray
    """(interactions,) places in a flattened tensor, session by session."""
    lengths: np.ndarray
    """(S,)"""
    session_ids: np.ndarray
    flat: bool


class Reader:
    """Reads the requests of one model."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        spec = encoder.spec
        self.types: dict[str, str] = {c["name"]: c["type"] for c in encoder.columns}
        self.session_type: str = spec["session_type"]
        self.inputs = [*self.types, "timestamp", "length", "session_id"]
        self.inputs += ["k", "exclude", "candidates", "filter_seen"]

    def read(self, tensors: dict[str, np.ndarray]) -> Request:
        """Check the tensors of a request, by name. RequestError says what is wrong with it."""
        item = tensors.get("item_id")
        if item is None:
            raise RequestError("item_id is missing. Send the item ids of each session, (B, n).")
        if item.ndim != 2 or item.shape[0] == 0 or item.shape[1] == 0:
            raise RequestError(
                f"item_id has the shape {list(item.shape)}, expected [B, n] with at least one "
                "session and one interaction."
            )
        for name, values in tensors.items():
            # a list of ids for all comes as one for each row
            most = MOST_IN_ALL if name in ("exclude", "candidates") else MOST_INTERACTIONS
            if values.size > most:
                raise RequestError(
                    f"{name} has {values.size} values, expected at most {most} in a request."
                )
        layout = self._layout(item, tensors.get("session_id"), tensors.get("length"))
        times = self._times(tensors.get("timestamp"), layout)
        columns = {}
        for column in self.encoder.columns:
            sent = tensors.get(column["name"])
            if sent is not None:
                gap = self.encoder.spec["session_gap"]
                columns[column["name"]] = _column(column, sent, layout, times, gap)
        rows = Rows(columns, layout.lengths, times)
        excluded = self._indices("exclude", tensors.get("exclude"), layout)
        if self._filters_seen(tensors.get("filter_seen")):
            indices = self.encoder.lookups["item_id"](columns["item_id"])
            excluded = np.concatenate([excluded, _by_row(indices, layout.lengths)], axis=1)
        candidates = self._indices("candidates", tensors.get("candidates"), layout)
        k = self._num_items(tensors.get("k"))
        return Request(rows, layout.session_ids, layout.flat, k, excluded, candidates)

    def _layout(
        self, item: np.ndarray, session: np.ndarray | None, length: np.ndarray | None
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
            return _of_flat(item.shape, ids[0])
        if ids.shape != (item.shape[0], 1):
            raise RequestError(
                f"session_id has the shape {list(ids.shape)}, expected [{item.shape[0]}, 1] for "
                f"item_id's {list(item.shape)}, or [1, n] for both, flat."
            )
        inside, lengths = _inside(item.shape, length)
        return _Layout(item.shape, inside.reshape(-1).nonzero()[0], lengths, ids, flat=False)

    def _times(self, values: np.ndarray | None, layout: _Layout) -> np.ndarray | None:
        """(interactions,) microseconds."""
        timestamp = self.encoder.timestamp
        if values is None:
            return None
        if timestamp is None:
            raise RequestError("timestamp is not known here: the model was trained without.")
        if values.shape != layout.shape:
            raise RequestError(
                f"timestamp has the shape {list(values.shape)}, expected {list(layout.shape)} to "
                "go with item_id."
            )
        _check_type("timestamp", values, timestamp["type"])
        times = microseconds(values.reshape(-1)[layout.cells], timestamp["unit"])
        known = times != MISSING_INTEGER
        if known.all():
            return times
        # an interaction without a time keeps its place: it gets that of the one before
        starts = np.repeat(np.cumsum(layout.lengths) - layout.lengths, layout.lengths)
        places = np.arange(len(times))
        last = np.maximum.accumulate(np.where(known, places, starts))
        filled = times[np.maximum(last, starts)]
        # those before the first known one of their session get its time
        after = np.minimum.accumulate(np.where(known, places, len(times) - 1)[::-1])[::-1]
        ends = starts + np.repeat(layout.lengths, layout.lengths)
        first = np.where(known[after] & (after < ends), times[after], MISSING_INTEGER)
        filled = np.where(filled == MISSING_INTEGER, first, filled)
        return np.where(filled == MISSING_INTEGER, 0, filled)

    def _indices(self, name: str, values: np.ndarray | None, layout: _Layout) -> np.ndarray:
        """(S, X) item indices of raw ids, (S, 0) where there are none.

        What is not in the catalogue stays out of vocabulary: among candidates, it is one that no
        list can hold.
        """
        count = len(layout.lengths)
        none = np.zeros((count, 0), np.int64)
        if values is None:
            return none
        if values.ndim != 2 or values.shape[0] not in (1, layout.shape[0]):
            raise RequestError(
                f"{name} has the shape {list(values.shape)}, expected [{layout.shape[0]}, m] with "
                "the item ids of each session, or [1, m]."
            )
        if values.shape[1] == 0:
            # a choice of nothing is not the whole catalogue
            return np.full((count, int(name == "candidates")), OUT_OF_VOCABULARY)
        if values.shape[1] > MOST_FILTERED or count * values.shape[1] > MOST_IN_ALL:
            raise RequestError(
                f"{name} has {values.shape[1]} ids for each of {count} sessions, expected at most "
                f"{MOST_FILTERED} for each and {MOST_IN_ALL} in all."
            )
        _check_type(name, values, self.types["item_id"])
        indices = self.encoder.lookups["item_id"](values.reshape(-1)).reshape(values.shape)
        found = np.where(indices < OUT_OF_VOCABULARY, 0, indices)  # rows end in missing ids
        if name == "candidates":  # nor is one of unknown items
            found[:, 0] = np.where(found.any(1), found[:, 0], OUT_OF_VOCABULARY)
        return found if len(found) == count else np.repeat(found, count, axis=0)

    def _filters_seen(self, requested: np.ndarray | None) -> bool:
        if requested is None:
            return bool(self.encoder.spec["filter_seen"])
        if requested.dtype != np.bool_:
            raise RequestError(f"filter_seen holds {requested.dtype}, expected bool.")
        return bool(_one_of("filter_seen", requested))

    def _num_items(self, requested: np.ndarray | None) -> int:
        """List length of a request: its `k`, one for all its sessions, or the default."""
        if requested is None:
            return int(self.encoder.spec["default_k"])
        k, most = int(_one_of("k", requested)), int(self.encoder.spec["max_k"])
        if not 1 <= k <= most:
            raise RequestError(
                f"k is {k}, expected 1 to {most}. For longer lists export with a larger --max-k."
            )
        return k


def _one_of(name: str, requested: np.ndarray) -> Any:
    values = np.unique(requested)
    if values.size != 1:
        raise RequestError(
            f"{name} differs within a request: {values[:5].tolist()}. Send one for all."
        )
    return values[0]


def _column(
    column: dict[str, Any],
    values: np.ndarray,
    layout: _Layout,
    times: np.ndarray | None,
    gap: int | None,
) -> np.ndarray:
    """(interactions,) or, of a session, (S,) values; one begins after `gap` microseconds."""
    name, of_session = column["name"], column["scope"] == "session"
    count = len(layout.lengths) if of_session else len(layout.cells)
    kind = column["type"]
    expected = (layout.shape[0], 1) if of_session and not layout.flat else layout.shape
    if values.shape != expected:
        raise RequestError(
            f"{name} has the shape {list(values.shape)}, expected {list(expected)} to go with "
            f"item_id's {list(layout.shape)}."
        )
    _check_type(name, values, kind)
    if of_session and not layout.flat:
        return values[:, 0]
    taken = values.reshape(-1)[layout.cells]
    if not of_session:
        return taken
    starts = np.cumsum(layout.lengths) - layout.lengths
    if times is not None:  # of its oldest interaction, as in preprocessing
        rows = np.repeat(np.arange(count), layout.lengths)
        order = np.lexsort((times, rows))
        if gap is not None:
            starts = newest_starts(times[order], starts, gap)
        starts = order[starts]
    return taken[starts]


def _of_flat(shape: tuple[int, ...], ids: np.ndarray) -> _Layout:
    """Interactions of sessions in any order; sessions stand in the order of their first."""
    values, first, code = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    session = rank[code.reshape(-1)]
    lengths = np.bincount(session, minlength=len(values))
    if len(values) > MOST_SESSIONS:
        raise RequestError(
            f"session_id names {len(values)} sessions, expected at most {MOST_SESSIONS} in a "
            "request."
        )
    cells = np.argsort(session, kind="stable")
    return _Layout(shape, cells, lengths, values[order][np.newaxis], flat=True)


def _inside(shape: tuple[int, ...], length: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(B, n) bool of cells that hold an interaction, and (B,) lengths."""
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


def _by_row(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(interactions,) -> (S, longest), filled up with 0; the last ones of a long session."""
    width = max(1, min(int(lengths.max()), MOST_FILTERED, MOST_IN_ALL // len(lengths)))
    kept, row, column = newest(lengths, width)
    rows = np.zeros((len(lengths), width), np.int64)
    rows[row, column] = np.where(values < FIRST_ITEM, 0, values)[kept]
    return rows


def _check_type(name: str, values: np.ndarray, wanted: str) -> None:
    if values.dtype.kind not in KINDS[wanted]:
        raise RequestError(f"{name} holds {values.dtype}, expected {wanted}.")
