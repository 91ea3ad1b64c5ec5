"""What a sequence model predicts and what it may see on the way.

A masking takes interaction embeddings (B, L, D) and says which targets (B, L) belong to them.
Evaluating a session is predicting it without its last item, by the same positions:

| n items in the row    | clm                               | mlm                               |
| --------------------- | --------------------------------- | --------------------------------- |
| train                 | position i predicts item i + 1    | hidden items, at least one and    |
|                       |                                   | never all, at their own place     |
| evaluate (row incl.   | the same; the last item is        | item n - 1 hidden and predicted   |
| its target)           | no input                          | at its place                      |
| predict               | position n - 1 predicts what      | a hidden position n is appended   |
|                       | comes next                        | and predicts what comes next      |
"""

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import PADDING
from pipeline.core.errors import ConfigError
from pipeline.model.batch import visible_positions


class Stage(StrEnum):
    """Who calls: training, evaluation with known targets, or prediction without."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    PREDICT = "predict"


class MaskedSequence(NamedTuple):
    """Input of the sequence block with what it is to predict."""

    embeddings: Tensor
    """(B, L, D)"""
    targets: Tensor
    """(B, L) item indices, PADDING where there is nothing to predict."""
    lengths: Tensor
    """(B,) positions that attention may see; what follows is padding."""
    query: Tensor
    """(B,) position whose hidden state predicts the next item (or the last target)."""


class CausalMasking(nn.Module):
    """clm: each position predicts the item after it. Needs attention to the past alone."""

    causal = True
    extra_positions = 0
    """Positions beyond L that the sequence block must have room for."""

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence."""
        if stage == Stage.PREDICT:
            query = (lengths - 1).clamp(min=0)
            return MaskedSequence(embeddings, torch.zeros_like(item_ids), lengths, query)
        inputs = (lengths - 1).clamp(min=0)
        if item_ids.size(1) == 1:
            return MaskedSequence(embeddings, torch.zeros_like(item_ids), inputs, inputs)
        # the last item of the longest row is a target alone: one column less to compute
        targets = item_ids[:, 1:]
        query = (inputs - 1).clamp(min=0)
        return MaskedSequence(embeddings[:, :-1], targets, inputs, query)


class MaskedMasking(nn.Module):
    """mlm: some interactions are replaced by a learned vector and predicted from both sides."""

    causal = False
    extra_positions = 1

    def __init__(self, width: int, probability: float = 0.2) -> None:
        super().__init__()
        self.probability = probability
        self.hidden_item = nn.Parameter(torch.randn(width) * 0.02)
        """(D,) stands for an item that is to be predicted."""

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence."""
        if stage == Stage.PREDICT:
            # one more position, hidden, right behind the last interaction
            grown = nn.functional.pad(embeddings, (0, 0, 0, 1))  # (B, L + 1, D)
            query = lengths
            hidden = torch.arange(grown.size(1), device=lengths.device) == query.unsqueeze(1)
            targets = torch.zeros(hidden.shape, dtype=item_ids.dtype, device=item_ids.device)
            return MaskedSequence(self._hide(grown, hidden), targets, lengths + 1, query)
        query = (lengths - 1).clamp(min=0)
        if stage == Stage.EVALUATE:
            columns = torch.arange(item_ids.size(1), device=lengths.device)
            # a session of one interaction has nothing to be predicted from
            hidden = (columns == query.unsqueeze(1)) & (lengths > 1).unsqueeze(1)
        else:
            hidden = self._choose(lengths, item_ids.size(1))
        targets = torch.where(hidden, item_ids, PADDING)
        return MaskedSequence(self._hide(embeddings, hidden), targets, lengths, query)

    def _hide(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden.unsqueeze(-1), self.hidden_item.to(embeddings.dtype), embeddings)

    def _choose(self, lengths: Tensor, width: int) -> Tensor:
        """(B,) -> (B, L): each interaction by chance, at least one of a session, never all."""
        device = lengths.device
        visible = visible_positions(lengths, width)
        draw = torch.rand(visible.shape, device=device).masked_fill(~visible, 2.0)
        hidden = draw < self.probability
        smallest = draw.argmin(1, keepdim=True)
        hidden = hidden.scatter(1, smallest, True)
        largest = draw.masked_fill(~visible, -1.0).argmax(1, keepdim=True)
        hidden = hidden.scatter(1, largest, False)  # for a session of one this leaves no target
        return hidden & visible


Masking = CausalMasking | MaskedMasking


def build_masking(name: str, width: int, mlm_probability: float = 0.2) -> Masking:
    """Masking by its name: clm (causal) or mlm (masked). ConfigError for another."""
    match name:
        case "clm" | "causal":
            return CausalMasking()
        case "mlm" | "masked":
            return MaskedMasking(width, mlm_probability)
    raise ConfigError(f"masking is {name!r}. Expected clm (causal) or mlm (masked).")
