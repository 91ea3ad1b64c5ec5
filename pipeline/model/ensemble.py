"""An ensemble: a model whose score is the mean of its members' scores."""

import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.model.head import Head
from pipeline.model.masking import Encoded, Stage
from pipeline.model.model import Model


class Ensemble(Model):
    """Members that train together, each on its own loss, and predict as one model.

    Each member is a head with its own body and one next-item task; all read the same sessions with
    the same masking. The mean of inner products is an inner product of concatenated vectors, so
    that queries and items work as those of a single model, also in a vector index: E is the sum
    over the members. Further tasks belong to the first member. ConfigError for members that differ
    in masking, max_sequence_length or catalogue.
    """

    def __init__(self, *heads: Head) -> None:
        super().__init__(*heads)
        first = heads[0].body
        for head in heads:
            body = head.body
            same = (
                body.masking.name == first.masking.name
                and body.inputs.max_sequence_length == first.inputs.max_sequence_length
                and head.item_table.size(0) == heads[0].item_table.size(0)
            )
            if not same:
                raise ConfigError(
                    "Members of an Ensemble read the same sessions: they need the same masking, "
                    "max_sequence_length and catalogue."
                )
            head.next_item_task()  # ConfigError for a head without a next-item task
            if head.item_tasks:
                raise ConfigError(
                    f"{head.item_tasks[0].task_name}: an Ensemble has no targets per item, as its "
                    "items have a vector in each member."
                )

    def _session_queries(self, encoded: dict[int, Encoded], batch: SessionBatch) -> Tensor:
        """(B, Q) `session_queries` from the result of `_encode_all`."""
        joined = self._joined([encoded[id(head.body)] for head in self.all_heads])
        return self.queries(self.session_embedding(self.with_repeats(joined, batch, Stage.PREDICT)))

    def encode(self, batch: SessionBatch, stage: Stage) -> Encoded:
        """Concatenated queries of all members in place of hidden states: (B, L, E)."""
        encoded = [self._encode(head.body, batch, stage) for head in self.all_heads]
        return self.with_repeats(self._joined(encoded), batch, stage)

    def _joined(self, encoded: list[Encoded]) -> Encoded:
        """Hidden states of each member -> (B, L, E) concatenated queries."""
        queries = [
            head.next_item_task().queries(member.hidden)
            for head, member in zip(self.all_heads, encoded, strict=True)
        ]
        return encoded[0]._replace(hidden=torch.cat(queries, -1) / len(queries))

    @property
    def width(self) -> int:
        """E, summed over the members."""
        return sum(head.next_item_task().width for head in self.all_heads)

    @property
    def network_width(self) -> int:
        """E: `encode` returns queries."""
        return self.width

    def network_queries(self, hidden: Tensor) -> Tensor:
        """(..., E), unchanged: `encode` returns queries."""
        return hidden

    def network_items(self, positions: Tensor | None = None) -> Tensor:
        """(V - 3, E) item vectors in catalogue order, or (C, E) of (C,) catalogue `positions`."""
        return torch.cat(
            [head.next_item_task().items(head.item_table, positions) for head in self.all_heads], -1
        )

    def predict(self, batch: SessionBatch) -> dict[str, Tensor]:
        """Predictions by task name; the next-item scores are the mean of the members'."""
        first, *others = self.all_heads
        predictions = super().predict(batch)
        for head in others:
            del predictions[head.next_item_task().task_name]
        predictions[first.next_item_task().task_name] = self(batch)
        return predictions
