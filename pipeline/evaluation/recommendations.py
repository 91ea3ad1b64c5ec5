"""Top-K lists by raw id."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pipeline.core.columns import FIRST_ITEM, ITEM, SESSION
from pipeline.model.model import TopK


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


def to_raw_ids(best: TopK, catalogue: np.ndarray) -> Lists:
    """Lists by raw id; `catalogue` (items,) holds those from the index FIRST_ITEM on."""
    indices, scores = best.items.cpu().numpy(), best.scores.cpu().numpy()
    there = indices >= FIRST_ITEM
    items = catalogue[np.where(there, indices - FIRST_ITEM, 0)]
    items[~there] = None if items.dtype == object else 0
    return Lists(items, scores, there.sum(1))
