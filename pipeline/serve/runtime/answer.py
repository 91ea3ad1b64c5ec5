"""Lists of item indices to the tensors of an answer."""

from __future__ import annotations

from collections.abc import Collection
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


def answers(
    request: Request, lists: Lists, items: np.ndarray, wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """Tensors by name: (B, k) `item_ids` and `scores`, (B, E) `embedding`, (B, 1) `session_ids`.

    Of flat interactions there is one row: (1, S * k), (1, S * E), (1, S). `items` are raw ids in
    the order of the catalogue. A list that is shorter ends in missing ids, whose scores are minus
    infinity. Only those `wanted` are made.
    """
    scores = lists.scores[:, : request.k]
    rows = 1 if request.flat else len(scores)
    made: dict[str, np.ndarray] = {}
    if "item_ids" in wanted:
        found = items[np.maximum(lists.items[:, : request.k] - FIRST_ITEM, 0)]
        short = scores == -np.inf
        if short.any():
            found[short] = MISSING_INTEGER if found.dtype.kind == "i" else b""
        made["item_ids"] = found.reshape(rows, -1)
    if "scores" in wanted:
        made["scores"] = np.ascontiguousarray(scores).reshape(rows, -1)
    if "embedding" in wanted:
        made["embedding"] = np.ascontiguousarray(lists.embeddings).reshape(rows, -1)
    if "session_ids" in wanted:
        made["session_ids"] = np.ascontiguousarray(request.session_ids)
    return made
