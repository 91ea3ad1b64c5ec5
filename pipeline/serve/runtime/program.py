"""Requests through the model: encoded together, in passes of a bounded size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .answer import Lists
from .encoder import Encoder, merge
from .request import Request

Ask = Callable[[np.ndarray], np.ndarray]
"""What `packed` gives to (S, 2 * K + E) int32: indices of items, bits of scores and of vectors."""


class Program:
    """Asks the model for lists."""

    def __init__(self, encoder: Encoder, ask: Ask) -> None:
        self.encoder = encoder
        self.ask = ask
        self.packing: list[str] = encoder.spec["packing"]
        self.most: int = encoder.spec["max_batch"]
        self.width: int = encoder.spec["width"]

    def __call__(self, requests: list[Request]) -> Lists:
        """The lists of all sessions of all requests, as long as the longest that is asked for."""
        sessions = sum(len(request.rows.lengths) for request in requests)
        encoded = self._encoded(requests, sessions)
        k = max(request.k for request in requests)
        parts = []
        for first in range(0, sessions, self.most):
            rows = slice(first, min(first + self.most, sessions))
            excluded = _rows([request.excluded for request in requests], rows)
            candidates = _rows([request.candidates for request in requests], rows)
            parts.append(self.ask(self.packed(encoded, rows, excluded, candidates, k)))
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        k = (found.shape[1] - self.width) // 2
        numbers = found.view(np.float32)
        return Lists(numbers[:, k : 2 * k], found[:, :k], numbers[:, 2 * k :])

    def packed(
        self,
        encoded: dict[str, np.ndarray],
        rows: slice,
        excluded: np.ndarray,
        candidates: np.ndarray,
        k: int,
    ) -> np.ndarray:
        """(S, n) int32: a session in one row, floats as the bits of integers, as the program's
        `unpack` takes it apart."""
        in_order = [encoded[name][rows] for name in self.packing]
        integers = [values for values in in_order if values.dtype.kind == "i"]
        bits = [values.view(np.int32) for values in in_order if values.dtype.kind == "f"]
        sizes = (encoded["item_id"].shape[1], excluded.shape[1], candidates.shape[1], k)
        first = np.array([sizes] * len(excluded), np.int32)
        return np.concatenate(
            [first, *integers, excluded, candidates, *bits], axis=1, dtype=np.int32
        )

    def _encoded(self, requests: list[Request], sessions: int) -> dict[str, np.ndarray]:
        """All sessions at once where they are alike, put together in their order.

        What a request leaves out is filled in, whatever others beside it have sent.
        """
        longest = max(int(request.rows.lengths.max()) for request in requests)
        groups: dict[tuple[bool, ...], list[int]] = {}
        for place, request in enumerate(requests):
            sent = request.rows.columns
            form = (request.rows.times is None, *(name in sent for name in self.encoder.of_item))
            groups.setdefault(form, []).append(place)
        if len(groups) == 1:
            return self.encoder.encode(
                merge([request.rows for request in requests], self.encoder.columns), longest
            )
        ends = np.cumsum([len(request.rows.lengths) for request in requests])
        whole: dict[str, np.ndarray] = {}
        for places in groups.values():
            rows = merge([requests[place].rows for place in places], self.encoder.columns)
            begins = [ends[p] - len(requests[p].rows.lengths) for p in places]
            into = np.concatenate(
                [np.arange(b, ends[p]) for b, p in zip(begins, places, strict=True)]
            )
            for name, values in self.encoder.encode(rows, longest).items():
                target = whole.setdefault(name, np.zeros((sessions, values.shape[1]), values.dtype))
                target[into] = values
        return whole


def _rows(parts: list[np.ndarray], rows: slice) -> np.ndarray:
    """Some rows of arrays of different widths below each other, filled up with 0.

    As wide as those that are among them: a request that is wide costs its neighbours of a pass, and
    a pass is bounded.
    """
    some = []
    first = 0
    for part in parts:
        inside = part[max(rows.start - first, 0) : max(rows.stop - first, 0)]
        if len(inside):
            some.append(inside)
        first += len(part)
    width = max(part.shape[1] for part in some)
    if all(part.shape[1] == width for part in some):
        return np.concatenate(some) if len(some) > 1 else some[0]
    whole = np.zeros((rows.stop - rows.start, width), np.int64)
    first = 0
    for part in some:
        whole[first : first + len(part), : part.shape[1]] = part
        first += len(part)
    return whole
