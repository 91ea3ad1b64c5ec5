"""Interface of maskings: the masked sequence, its targets and their loss.

Shape letters: B sessions, L positions, D width.
"""

from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import PADDING
from pipeline.data.batch import SessionBatch
from pipeline.model.ops.shared_gradient_embedding import share_gradient


class Stage(StrEnum):
    """Training, evaluation on sessions that hold their target, or prediction.

    `TRAIN_WHOLE` is training with the last interaction as input, for tasks other than the next
    item; for maskings with `encodes_once`.
    """

    TRAIN = "train"
    TRAIN_WHOLE = "train-whole"
    EVALUATE = "evaluate"
    PREDICT = "predict"


class MaskedSequence(NamedTuple):
    """Input of the sequence block with its targets."""

    embeddings: Tensor
    """(B, L, D)"""
    targets: Tensor
    """(B, L) item indices, PADDING at positions without a target."""
    lengths: Tensor
    """(B,) number of visible positions; the rest is padding."""
    query: Tensor
    """(B,) position whose hidden state predicts the next item (or the last target)."""
    order: Tensor | None = None
    """(B, L) order of plm: a position sees positions of lower order and those of order -1."""
    most_targets: int | None = None
    """Number of target slots in the static form of a training step, None for the packed form."""
    elapsed: Tensor | None = None
    """(B, L) feature `elapsed`, for an encoder that reads it."""


class Encoded(NamedTuple):
    """Hidden states with their targets."""

    hidden: Tensor
    """(B, L, D)"""
    targets: Tensor
    """(B, L) item indices, PADDING at positions without a target."""
    query: Tensor
    """(B,) position whose hidden state predicts the next item."""
    lengths: Tensor
    """(B,) number of positions that are not padding."""
    order: Tensor | None = None
    """(B, L) order of plm, see MaskedSequence."""
    most_targets: int | None = None
    """Number of target slots, see MaskedSequence."""


class Masking(nn.Module):
    """Base class: targets of a session and the positions visible to predict them."""

    name: str
    """clm, mlm, plm, rtd or none."""
    causal = False
    """Whether attention must be causal."""
    looks_both_ways = False
    """Whether attention must be bidirectional."""
    extra_positions = 0
    """Positions that the sequence block needs beyond L."""
    has_targets = True
    """Whether the masking defines targets for the next-item task."""
    few_targets = False
    """Whether targets are a small share of the positions, so that the last layer may skip the
    rest."""
    separate_generator = False
    """Whether the objective trains a copy of the blocks as generator."""
    can_shard = True
    """Whether the objective supports an item table sharded over processes."""
    encodes_once = False
    """Whether other tasks can read the hidden states of the next-item training pass."""

    def build(self, d_hidden: int, *, has_encoder: bool) -> None:
        """Build the layers that read hidden states of width `d_hidden`.

        `has_encoder` is true if a TransformerBlock is among the blocks. ConfigError if the masking
        needs one.
        """

    def check(self, width: int, *, item_alone: bool) -> None:
        """ConfigError if the masking does not fit an input block of output `width`.

        `item_alone` is true if the item is the only feature.
        """

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence."""
        raise NotImplementedError

    def at_targets(self, values: Tensor) -> Tensor:
        """Move (B, L) values of interactions to the positions of their targets.

        Unchanged for a masking whose targets are at their own positions.
        """
        return values

    def may_be_targets(self, lengths: Tensor, width: int) -> Tensor:
        """(B,) lengths -> (B, L) bool: interactions that can be training targets."""
        return torch.ones(len(lengths), width, dtype=torch.bool, device=lengths.device)

    def most_targets(self, num_sessions: int, most_interactions: int) -> int:
        """Maximum number of training targets of this many sessions and interactions."""
        return most_interactions

    def loss(self, body: Any, task: Any, batch: SessionBatch, weights: Tensor | None) -> Tensor:
        """Training loss of a NextItemPredictionTask on a SequentialBlock, ().

        `weights` (B, L) are at the positions of the targets, see `at_targets`.
        """
        return loss_and_encoded(body, task, batch, weights, Stage.TRAIN)[0]


def loss_and_encoded(
    body: Any, task: Any, batch: SessionBatch, weights: Tensor | None, stage: Stage
) -> tuple[Tensor, Encoded]:
    """Loss () of a next-item task and its hidden states; at TRAIN only at positions with a
    target."""
    table = body.inputs.item_table.weight
    looked_up, scored = None, table
    if task.scores_all_rows and not batch.is_static:  # a captured graph has no sparse gradients
        looked_up, scored = share_gradient(table)
    masked = body.masked(batch, stage, looked_up)
    encoded: Encoded = body.through(masked, targets_only=stage == Stage.TRAIN)
    most = encoded.most_targets
    return task.loss(encoded.hidden, encoded.targets, scored, weights, most), encoded


class NoMasking(Masking):
    """No masking, for models whose tasks read other columns than the item."""

    name = "none"
    has_targets = False

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence without targets."""
        query = (lengths - 1).clamp(min=0)
        return MaskedSequence(embeddings, torch.zeros_like(item_ids), lengths, query)


class CausalMasking(Masking):
    """clm: each position predicts the next item. Attention is causal.

    `train_on_last_item_seq_only` trains on the last item of each session only.
    """

    name = "clm"
    causal = True
    encodes_once = True

    def __init__(self, train_on_last_item_seq_only: bool = False) -> None:
        super().__init__()
        self.train_on_last_item_seq_only = train_on_last_item_seq_only

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence."""
        inputs = (lengths - 1).clamp(min=0)
        if stage == Stage.PREDICT:
            return MaskedSequence(embeddings, torch.zeros_like(item_ids), lengths, inputs)
        if stage == Stage.TRAIN_WHOLE:
            targets = self._targets(nn.functional.pad(item_ids[:, 1:], (0, 1)), inputs - 1)
            return MaskedSequence(embeddings, targets, lengths, inputs)
        if item_ids.size(1) == 1:
            return MaskedSequence(embeddings, torch.zeros_like(item_ids), inputs, inputs)
        # the last item of the longest row is only a target, so one column is dropped
        targets = self.at_targets(item_ids)
        query = (inputs - 1).clamp(min=0)
        if stage == Stage.TRAIN:
            targets = self._targets(targets, query)
        return MaskedSequence(embeddings[:, :-1], targets, inputs, query)

    def _targets(self, targets: Tensor, last: Tensor) -> Tensor:
        """(B, L) -> training targets: all, or those at the positions `last` (B,)."""
        if not self.train_on_last_item_seq_only:
            return targets
        columns = torch.arange(targets.size(1), device=last.device)
        return torch.where(columns == last.unsqueeze(1), targets, PADDING)

    def at_targets(self, values: Tensor) -> Tensor:
        """(B, L) -> (B, L - 1): the value of the next interaction of each position."""
        return values[:, 1:] if values.size(1) > 1 else values

    def most_targets(self, num_sessions: int, most_interactions: int) -> int:
        """All interactions, or one per session."""
        return num_sessions if self.train_on_last_item_seq_only else most_interactions

    def may_be_targets(self, lengths: Tensor, width: int) -> Tensor:
        """(B,) lengths -> (B, L) bool: all interactions except the first, or only the last."""
        columns = torch.arange(width, device=lengths.device)
        if self.train_on_last_item_seq_only:
            return (columns > 0) & (columns == (lengths - 1).unsqueeze(1))
        return (columns > 0).expand(len(lengths), -1)
