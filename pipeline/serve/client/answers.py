"""Recommendations that a server or a model in this process returns."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION

if TYPE_CHECKING:
    import pandas as pd

RANK, SCORE, NUM_KNOWN = "rank", "score", "num_known"
OUTPUTS = ("item_ids", "scores", "num_known")
OUTPUTS_AND_EMBEDDINGS = (*OUTPUTS, "embedding")


class Answer(NamedTuple):
    """Recommendation lists of one request, best item first."""

    items: NDArray[Any]
    """(B, K) raw ids, int64 or text; without meaning where the score is minus infinity."""
    scores: NDArray[Any]
    """(B, K) float32, minus infinity behind the end of a short list."""
    num_known: NDArray[Any]
    """(B, 1) int32, interactions of each session whose item is in the catalogue."""
    embeddings: NDArray[Any] | None = None
    """(B, E) if requested: inner products with `item_embeddings` of the model are the scores."""

    @classmethod
    def from_outputs(cls, read: Callable[[str], Any]) -> "Answer":
        """Decode the tensors of a response, which `read` returns by name; text is UTF-8."""
        items = read("item_ids")
        if items.dtype == np.object_:
            texts = [v.decode("utf-8", "replace") for v in items.reshape(-1)]
            items = np.array(texts, object).reshape(items.shape)
        return cls(items, read("scores"), read(NUM_KNOWN), read("embedding"))

    def records(self, sessions: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yield the id and the list of each session as JSON takes them.

        `sessions` are B ids, None for a session without one.
        """
        counts = self.num_known.reshape(-1).tolist()
        rows = zip(sessions, self.items, self.scores, counts, strict=True)
        for session, items, scores, num_known in rows:
            pairs = zip(items.tolist(), scores.tolist(), strict=True)
            yield {
                SESSION: session,
                NUM_KNOWN: num_known,
                "recommendations": [
                    {ITEM: item, SCORE: score} for item, score in pairs if score != float("-inf")
                ],
            }


def records_to_frame(records: Iterable[dict[str, Any]]) -> "pd.DataFrame":
    """Return one row a recommended item: session_id, rank from 1, item_id, score."""
    import pandas as pd

    rows = [
        (record[SESSION], rank, entry[ITEM], entry[SCORE])
        for record in records
        for rank, entry in enumerate(record["recommendations"], 1)
    ]
    return pd.DataFrame(rows, columns=[SESSION, RANK, ITEM, SCORE])
