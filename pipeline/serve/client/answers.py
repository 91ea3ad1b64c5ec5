"""What a server answered."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.core.columns import ITEM, SESSION

if TYPE_CHECKING:
    import pandas as pd

RANK, SCORE = "rank", "score"


class Answer(NamedTuple):
    """Lists of one request, best first."""

    items: np.ndarray
    """(B, K) raw ids: int64 or text; of no meaning where the score is minus infinity."""
    scores: np.ndarray
    """(B, K) float32, minus infinity where a list has no more items."""
    embeddings: np.ndarray | None = None
    """(B, E), where asked for: inner products with `item_embeddings` of the model are scores."""

    @classmethod
    def of(
        cls, items: np.ndarray, scores: np.ndarray, embeddings: np.ndarray | None = None
    ) -> "Answer":
        """From the tensors of an answer, where text is UTF-8."""
        if items.dtype == np.object_:
            texts = [v.decode("utf-8", "replace") for v in items.reshape(-1)]
            items = np.array(texts, object).reshape(items.shape)
        return cls(items, scores, embeddings)

    def records(self, sessions: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """One a session, as JSON takes it: its id and its list, best first.

        `sessions` are B ids, None where there is none.
        """
        for session, items, scores in zip(sessions, self.items, self.scores, strict=True):
            pairs = zip(items.tolist(), scores.tolist(), strict=True)
            yield {
                SESSION: session,
                "recommendations": [
                    {ITEM: item, SCORE: score} for item, score in pairs if score != float("-inf")
                ],
            }


def frame_of(records: Iterable[dict[str, Any]]) -> "pd.DataFrame":
    """One row a recommendation: session_id, rank from 1, item_id, score."""
    import pandas as pd

    rows = [
        (record[SESSION], rank, entry[ITEM], entry[SCORE])
        for record in records
        for rank, entry in enumerate(record["recommendations"], 1)
    ]
    return pd.DataFrame(rows, columns=[SESSION, RANK, ITEM, SCORE])
