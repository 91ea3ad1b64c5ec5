"""Several models in one, which score by the mean of their scores."""

import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.model.blocks import Encoded
from pipeline.model.head import Head
from pipeline.model.masking import Stage
from pipeline.model.model import Model


class Ensemble(Model):
    """Members that learn side by side, each from its own loss, and are asked as one.

    Each member is a head with a body of its own and one next-item task; all read the same sessions
    with the same masking. The mean of inner products is an inner product of vectors side by side,
    so that whatever reads a model's queries and items, an index of vectors among them, reads an
    ensemble's: E is the sum of the members'. Further tasks belong to the first member.
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
            head.task  # noqa: B018  (ConfigError where there is none)

    def encode(self, batch: SessionBatch, stage: Stage) -> Encoded:
        """Queries of all members side by side, where others have hidden states: (B, L, E)."""
        found = [self._encode(head.body, batch, stage) for head in self._heads()]
        queries = [
            head.task.queries(encoded.hidden)
            for head, encoded in zip(self._heads(), found, strict=True)
        ]
        return found[0]._replace(hidden=torch.cat(queries, -1) / len(queries))

    def queries(self, hidden: Tensor) -> Tensor:
        """(..., E) as they are."""
        return hidden

    def items(self, positions: Tensor | None = None) -> Tensor:
        """(V - 3, E) in the order of the catalogue; or of these (C,) `positions` there alone."""
        return torch.cat(
            [head.task.items(head.item_table, positions) for head in self._heads()], -1
        )

    def predict(self, batch: SessionBatch) -> dict[str, Tensor]:
        """What each task says, by its name; of the members' next items, their mean alone."""
        first, *others = self._heads()
        found = super().predict(batch)
        for head in others:
            del found[head.task.task_name]
        found[first.task.task_name] = self(batch)
        return found
