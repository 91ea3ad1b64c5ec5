"""Recommendations that a server or a model in this process returns."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION
from pipeline.core.errors import ConfigError
from pipeline.serve.client.served_model import ServedModel

if TYPE_CHECKING:
    import pandas as pd

RANK, SCORE, NUM_KNOWN, TARGETS = "rank", "score", "num_known", "targets"
OUTPUTS = ("item_ids", "scores", "num_known")


class Answer(NamedTuple):
    """Recommendation lists of one request, best item first, of length 0 if not requested."""

    items: NDArray[Any]
    """(B, K) raw ids, int64 or text; without meaning where the score is minus infinity."""
    scores: NDArray[Any]
    """(B, K) float32, minus infinity behind the end of a short list."""
    num_known: NDArray[Any]
    """(B, 1) int32, interactions of each session whose item is in the catalogue."""
    embeddings: NDArray[Any] | None = None
    """(B, E) if requested: inner products with `item_embeddings` of the model are the scores."""
    targets: Mapping[str, NDArray[Any]] = MappingProxyType({})
    """(B,) by name if requested: probabilities, or numbers in the units of the log."""

    @classmethod
    def from_outputs(cls, read: Callable[[str], Any], targets: Collection[str] = ()) -> "Answer":
        """Decode the tensors of a response, which `read` returns by name; text is UTF-8."""
        items, scores, num_known = read("item_ids"), read("scores"), read(NUM_KNOWN)
        if items is None:
            items = scores = np.empty((len(num_known), 0), np.float32)
        if items.dtype == np.object_:
            texts = [v.decode("utf-8", "replace") for v in items.reshape(-1)]
            items = np.array(texts, object).reshape(items.shape)
        values = {name: read(name).reshape(-1) for name in targets}
        return cls(items, scores, num_known, read("embedding"), values)

    def records(self, sessions: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yield the id, the list and the targets of each session as JSON takes them.

        `sessions` are B ids, None for a session without one. What was not requested is left out.
        """
        counts = self.num_known.reshape(-1).tolist()
        rows = zip(sessions, self.items, self.scores, counts, strict=True)
        for row, (session, items, scores, num_known) in enumerate(rows):
            pairs = zip(items.tolist(), scores.tolist(), strict=True)
            targets = {name: float(values[row]) for name, values in self.targets.items()}
            yield {
                SESSION: session,
                NUM_KNOWN: num_known,
                **({TARGETS: targets} if targets else {}),
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


def target_frame(records: Iterable[dict[str, Any]]) -> "pd.DataFrame":
    """Return one row a session: session_id and the targets by name."""
    import pandas as pd

    return pd.DataFrame([{SESSION: record[SESSION], **record[TARGETS]} for record in records])


def outputs_of(served: ServedModel, *, lists: bool, embeddings: bool, targets: bool) -> list[str]:
    """Return the outputs to request. ConfigError for what the model does not have."""
    if lists and not served.ranks_items:
        raise ConfigError(
            "The model does not predict the next item, so it recommends nothing. Ask for its "
            f"targets, {', '.join(served.targets)}: --targets, or `predict` in Python."
        )
    if targets and not served.targets:
        raise ConfigError("The model predicts the next item alone: it has no targets.")
    names = [*OUTPUTS] if lists else [NUM_KNOWN]
    return [*names, *(["embedding"] if embeddings else []), *(served.targets if targets else [])]
