"""clm: causal language modelling."""

import torch
from torch import Tensor

from pipeline.core.columns import PADDING
from pipeline.model.masking.sequence import MaskedSequence, Masking, Stage


class CausalMasking(Masking):
    """clm: each position predicts the next item. Attention is to the past only.

    `train_on_last_item_seq_only` trains on the last item of each session only.
    """

    name = "clm"
    causal = True

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
        if item_ids.size(1) == 1:
            return MaskedSequence(embeddings, torch.zeros_like(item_ids), inputs, inputs)
        # the last item of the longest row is only a target: one column less to compute
        targets = self.at_targets(item_ids)
        query = (inputs - 1).clamp(min=0)
        if stage == Stage.TRAIN and self.train_on_last_item_seq_only:
            columns = torch.arange(targets.size(1), device=lengths.device)
            targets = torch.where(columns == query.unsqueeze(1), targets, PADDING)
        return MaskedSequence(embeddings[:, :-1], targets, inputs, query)

    def at_targets(self, values: Tensor) -> Tensor:
        """(B, L) -> (B, L - 1): the value of the interaction after each position."""
        return values[:, 1:] if values.size(1) > 1 else values

    def may_be_targets(self, lengths: Tensor, width: int) -> Tensor:
        """(B,) lengths -> (B, L) bool: all interactions but the first, or the last only."""
        columns = torch.arange(width, device=lengths.device)
        if self.train_on_last_item_seq_only:
            return (columns > 0) & (columns == (lengths - 1).unsqueeze(1))
        return (columns > 0).expand(len(lengths), -1)
