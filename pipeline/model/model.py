"""A body with a head: from sessions to scores of the next item."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import OUT_OF_VOCABULARY
from pipeline.core.errors import ConfigError
from pipeline.model.batch import SessionBatch, newest
from pipeline.model.blocks import Encoded, SequentialBlock
from pipeline.model.features import TabularSequenceFeatures
from pipeline.model.masking import Stage
from pipeline.model.task import NextItemPredictionTask


class TargetHidden(NamedTuple):
    """Hidden states at positions that have a target, row by row."""

    hidden: Tensor
    """(T, D)"""
    targets: Tensor
    """(T,) item indices, among them those that are unknown."""
    rows: Tensor
    """(T,) row of the batch that each came from."""
    is_last: Tensor
    """(T,) bool: whether it is the last interaction of its row."""


class Head(nn.Module):
    """A body and the task that reads its hidden states."""

    def __init__(
        self,
        body: SequentialBlock,
        task: NextItemPredictionTask,
        inputs: TabularSequenceFeatures | None = None,
    ) -> None:
        super().__init__()
        if inputs is not None and inputs is not body.inputs:
            raise ConfigError("`inputs` is not the input block that the body begins with.")
        table = body.inputs.item_table
        task.build(body.output_size, table.num_embeddings, table.embedding_dim)
        self.body = body
        self.task = task


class Model(nn.Module):
    """What is trained, evaluated, exported: callers choose the method, no mode is kept inside."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    @property
    def inputs(self) -> TabularSequenceFeatures:
        """The input block."""
        return self.head.body.inputs

    @property
    def causal(self) -> bool:
        """Whether hidden states depend on the past alone."""
        masking = self.inputs.masking
        return masking is not None and masking.causal

    def forward(self, batch: SessionBatch) -> Tensor:
        """Scores of the next item, (B, V), from the newest L interactions."""
        encoded = self.encode(batch, Stage.PREDICT)
        return self.head.task.scores(self.session_embedding(encoded), self._item_table())

    def loss(self, batch: SessionBatch) -> Tensor:
        """Training loss, ()."""
        encoded = self.encode(batch, Stage.TRAIN)
        return self.head.task.loss(encoded.hidden, encoded.targets, self._item_table())

    def at_targets(self, batch: SessionBatch) -> TargetHidden:
        """Hidden states and targets for evaluation, in the order of rows and positions."""
        encoded = self.encode(batch, Stage.EVALUATE)
        # an unknown item is a target that no model can hit; a missing id is none
        rows, positions = (encoded.targets >= OUT_OF_VOCABULARY).nonzero(as_tuple=True)
        return TargetHidden(
            hidden=encoded.hidden[rows, positions],
            targets=encoded.targets[rows, positions],
            rows=rows,
            is_last=positions == encoded.query[rows],
        )

    def scores(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V) scores of the next item; reserved indices have minus infinity."""
        return self.head.task.scores(hidden, self._item_table())

    def encode(self, batch: SessionBatch, stage: Stage) -> Encoded:
        """Hidden states of a stage."""
        longest = self.inputs.max_sequence_length
        if longest is not None:
            # training and evaluation rows hold their target as well
            batch = newest(batch, longest + (stage != Stage.PREDICT))
        encoded: Encoded = self.head.body(batch, stage)
        return encoded

    @staticmethod
    def session_embedding(encoded: Encoded) -> Tensor:
        """(B, L, D) -> (B, D): the hidden state that predicts the next item."""
        rows = torch.arange(encoded.query.size(0), device=encoded.query.device)
        return encoded.hidden[rows, encoded.query]

    def item_embeddings(self) -> Tensor:
        """(items, E): row i belongs to the item of index FIRST_ITEM + i."""
        return self.head.task.embed_items(self._item_table())

    def session_embeddings(self, batch: SessionBatch) -> Tensor:
        """(B, E): times those of the items it ranks them as the scores do."""
        encoded = self.encode(batch, Stage.PREDICT)
        return self.head.task.embed_hidden(self.session_embedding(encoded))

    def _item_table(self) -> Tensor:
        return self.inputs.item_table.weight
