"""Tensors of a response from lists of item indices."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .lookups import FIRST_ITEM, MISSING_INTEGER

if TYPE_CHECKING:
    from .request import Request


class Recommendations(NamedTuple):
    """Output of the model for S sessions."""

    scores: np.ndarray
    """(S, K) best first, minus infinity behind the end of a short list."""
    items: np.ndarray
    """(S, K) item indices."""
    embeddings: np.ndarray
    """(S, E) vectors of the sessions; inner products with those of items are the scores."""


def response_tensors(
    request: Request, recommendations: Recommendations, items: np.ndarray, outputs: Collection[str]
) -> dict[str, np.ndarray]:
    """Return those of the tensors that `outputs` names.

    They are (B, k) `item_ids` and `scores`, (B, E) `embedding` and (B, 1) `session_ids`, of a flat
    request in one row: (1, S * k), (1, S * E), (1, S). `items` are raw ids in the order of the
    catalogue. A short list ends in missing ids, whose scores are minus infinity.
    """
    scores = recommendations.scores[:, : request.k]
    rows = 1 if request.flat else len(scores)
    tensors: dict[str, np.ndarray] = {}
    if "item_ids" in outputs:
        ids = items[np.maximum(recommendations.items[:, : request.k] - FIRST_ITEM, 0)]
        missing = scores == -np.inf
        if missing.any():
            ids[missing] = MISSING_INTEGER if ids.dtype.kind == "i" else b""
        tensors["item_ids"] = ids.reshape(rows, -1)
    if "scores" in outputs:
        tensors["scores"] = np.ascontiguousarray(scores).reshape(rows, -1)
    if "embedding" in outputs:
        tensors["embedding"] = np.ascontiguousarray(recommendations.embeddings).reshape(rows, -1)
    if "session_ids" in outputs:
        tensors["session_ids"] = np.ascontiguousarray(request.session_ids)
    return tensors
