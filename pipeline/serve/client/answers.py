"""Recommendations that a server or a model in this process returns."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """(B, K) float32, minus infinity after the end of a short list."""
    num_known: NDArray[Any]
    """(B, 1) int32, interactions of each session whose item is in the catalogue."""
    embeddings: NDArray[Any] | None = None
    """(B, E) if requested: inner products with `item_embeddings` of the model are the scores of
    the next item."""
    targets: Mapping[str, NDArray[Any]] = MappingProxyType({})
    """(B,) by name if requested: probabilities, or numbers in the units of the log."""
    item_targets: Mapping[str, NDArray[Any]] = MappingProxyType({})
    """(B, K) by name if requested: predictions of the targets for each item of the list."""
    version: int | None = None
    """Version of the model or arm that answered, None without a server."""

    @classmethod
    def from_outputs(
        cls, read: Callable[[str], Any], outputs: list[str], served: ServedModel
    ) -> "Answer":
        """Decode the `outputs` of a response, which `read` returns by name; text is UTF-8."""
        items, scores, num_known = read("item_ids"), read("scores"), read(NUM_KNOWN)
        if items is None:
            items = scores = np.empty((len(num_known), 0), np.float32)
        if items.dtype == np.object_:
            texts = [v.decode("utf-8", "replace") for v in items.reshape(-1)]
            items = np.array(texts, object).reshape(items.shape)
        targets = {n: read(n).reshape(-1) for n in served.targets if n in outputs}
        of_items = {n: read(n).reshape(items.shape) for n in served.item_targets if n in outputs}
        return cls(items, scores, num_known, read("embedding"), targets, of_items)

    def records(self, sessions: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yield the id, the list and the targets of each session as JSON values.

        `sessions` are B ids, None for a session without one. Outputs that were not requested are
        left out.
        """
        counts = self.num_known.reshape(-1).tolist()
        columns = {ITEM: self.items, SCORE: self.scores, **self.item_targets}
        for row, (session, num_known) in enumerate(zip(sessions, counts, strict=True)):
            values = [column[row].tolist() for column in columns.values()]
            entries = [
                dict(zip(columns, entry, strict=True)) for entry in zip(*values, strict=True)
            ]
            targets = {name: float(values[row]) for name, values in self.targets.items()}
            yield {
                SESSION: session,
                NUM_KNOWN: num_known,
                **({TARGETS: targets} if targets else {}),
                "recommendations": [e for e in entries if e[SCORE] != float("-inf")],
            }


def records_to_frame(records: Iterable[dict[str, Any]]) -> "pd.DataFrame":
    """Return one row per recommended item: session_id, rank from 1, item_id, score and targets."""
    import pandas as pd

    rows = [
        {SESSION: record[SESSION], RANK: rank, **entry}
        for record in records
        for rank, entry in enumerate(record["recommendations"], 1)
    ]
    return pd.DataFrame(rows, columns=None if rows else [SESSION, RANK, ITEM, SCORE])


def target_frame(records: Iterable[dict[str, Any]]) -> "pd.DataFrame":
    """Return one row per session: session_id and the targets by name."""
    import pandas as pd

    return pd.DataFrame([{SESSION: record[SESSION], **record[TARGETS]} for record in records])


def outputs_of(served: ServedModel, *, lists: bool, embeddings: bool, targets: bool) -> list[str]:
    """Return the outputs to request. ConfigError for outputs that the model does not have."""
    if lists and not served.ranks_items:
        raise ConfigError(
            "The model does not predict the next item, so it recommends nothing. Ask for its "
            f"targets, {', '.join(served.targets)}: --targets, or `predict` in Python."
        )
    of_items = served.item_targets if lists else []
    if targets and not (served.targets or of_items):
        raise ConfigError(
            "The model predicts the next item alone: it has no targets."
            if not served.item_targets
            else f"The targets, {', '.join(served.item_targets)}, are of the items of a list. Ask "
            "for lists with them: --targets, or `recommend(..., targets=True)` in Python."
        )
    names = [*OUTPUTS] if lists else [NUM_KNOWN]
    names += ["embedding"] if embeddings else []
    return names + ([*served.targets, *of_items] if targets else [])
