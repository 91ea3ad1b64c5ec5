"""Top-K lists from scores, with items left out or chosen, as indices and as raw ids."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM, ITEM, PADDING, SESSION
from pipeline.model.batch import SessionBatch
from pipeline.model.model import Model

_NOTHING = float("-inf")


class TopK(NamedTuple):
    """Best items of B sessions; a list with fewer than K is filled up."""

    scores: Tensor
    """(B, K) float32, best first; minus infinity where the list is filled up."""
    items: Tensor
    """(B, K) item indices; PADDING there."""


class Lists(NamedTuple):
    """Recommendations for B sessions, best first."""

    items: np.ndarray
    """(B, K) raw ids; 0 or None behind the end of a list."""
    scores: np.ndarray
    """(B, K) float32; minus infinity there."""
    counts: np.ndarray
    """(B,) items of each list: K, or fewer where filters left fewer."""

    def records(self, sessions: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """One a session, as JSON takes it: its id and its list, without what fills it up.

        `sessions` are B ids, None where there is none.
        """
        for session, items, scores, count in zip(
            sessions, self.items, self.scores, self.counts, strict=True
        ):
            pairs = zip(items[:count].tolist(), scores[:count].tolist(), strict=True)
            yield {
                SESSION: session,
                "recommendations": [{ITEM: item, "score": score} for item, score in pairs],
            }


def top_k(
    model: Model,
    batch: SessionBatch,
    k: int,
    *,
    excluded: Tensor | None = None,
    candidates: Tensor | None = None,
) -> TopK:
    """Best `k` items of each session of the batch.

    `excluded` are indices (E,) of items that no list holds, or (B, E) for each session its own;
    `candidates` are indices (C,) of the only items that lists hold. PADDING in them is nothing.
    """
    scores = model(batch)  # (B, V)
    if excluded is not None:
        rows = excluded.expand(scores.size(0), -1) if excluded.dim() == 1 else excluded
        scores = scores.scatter(1, rows, _NOTHING)
    if candidates is not None:
        scores = scores[:, candidates]  # (B, C)
    best, columns = torch.topk(scores, min(k, scores.size(1)))
    items = columns if candidates is None else candidates[columns]
    filled = best == _NOTHING
    short = (0, k - best.size(1))
    return TopK(
        torch.nn.functional.pad(best, short, value=_NOTHING),
        torch.nn.functional.pad(items.masked_fill(filled, PADDING), short, value=PADDING),
    )


def to_raw_ids(best: TopK, catalogue: np.ndarray) -> Lists:
    """Lists by raw id; `catalogue` (items,) holds those from the index FIRST_ITEM on."""
    indices, scores = best.items.cpu().numpy(), best.scores.cpu().numpy()
    there = indices >= FIRST_ITEM
    items = catalogue[np.where(there, indices - FIRST_ITEM, 0)]
    items[~there] = None if items.dtype == object else 0
    return Lists(items, scores, there.sum(1))
