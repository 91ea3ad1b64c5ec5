"""Top-K recommendations by raw id."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM, ITEM, SESSION
from pipeline.model.model import TopK


class Recommendations(NamedTuple):
    """Lists of B sessions, best first."""

    items: NDArray[Any]
    """(B, K) raw ids; 0 or None behind the end of a list."""
    scores: NDArray[Any]
    """(B, K) float32; minus infinity behind the end."""
    counts: NDArray[Any]
    """(B,) lengths of the lists: K, or fewer where filters left fewer items."""

    def records(self, sessions: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yield the id and the list of each session as JSON takes them, without padding.

        `sessions` are B ids, None for a session without one.
        """
        for session, items, scores, count in zip(
            sessions, self.items, self.scores, self.counts, strict=True
        ):
            pairs = zip(items[:count].tolist(), scores[:count].tolist(), strict=True)
            yield {
                SESSION: session,
                "recommendations": [{ITEM: item, "score": score} for item, score in pairs],
            }


def to_raw_ids(best: TopK, catalogue: NDArray[Any]) -> Recommendations:
    """Item indices -> raw ids; `catalogue` (items,) has those of the indices from FIRST_ITEM."""
    indices, scores = best.items.cpu().numpy(), best.scores.cpu().numpy()
    filled = indices >= FIRST_ITEM
    items = catalogue[np.where(filled, indices - FIRST_ITEM, 0)]
    items[~filled] = None if items.dtype == object else 0
    return Recommendations(items, scores, filled.sum(1))
