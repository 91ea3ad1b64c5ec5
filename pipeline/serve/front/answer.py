"""Lists of item indices to the tensors of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .lookups import FIRST_ITEM, MISSING_INTEGER

if TYPE_CHECKING:
    from .request import Request


class Lists(NamedTuple):
    """What the model says of S sessions."""

    scores: np.ndarray
    """(S, K) best first, minus infinity where there are no more items."""
    items: np.ndarray
    """(S, K) indices."""
    embeddings: np.ndarray
    """(S, E) of which a session's inner products with those of items are its scores."""


def answers(request: Request, lists: Lists, items: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors by name: (B, k) `item_ids` and `scores`, (B, E) `embedding`, (B, 1) `session_ids`.

    Of flat interactions there is one row: (1, S * k), (1, S * E), (1, S). `items` are raw ids in
    the order of the catalogue. A list that is shorter ends in missing ids, whose scores are minus
    infinity.
    """
    scores = lists.scores[:, : request.k]
    indices = lists.items[:, : request.k]
    found = items[np.maximum(indices - FIRST_ITEM, 0)]
    short = np.isneginf(scores)
    if short.any():
        found[short] = MISSING_INTEGER if found.dtype.kind == "i" else b""
    rows = 1 if request.flat else len(scores)
    return {
        "item_ids": found.reshape(rows, -1),
        "scores": np.ascontiguousarray(scores).reshape(rows, -1),
        "embedding": np.ascontiguousarray(lists.embeddings).reshape(rows, -1),
        "session_ids": np.ascontiguousarray(request.session_ids),
    }
