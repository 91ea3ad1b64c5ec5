"""mlm: masked language modelling (Devlin et al. 2019; BERT4Rec, Sun et al. 2019)."""

import torch
from torch import Tensor, nn

from pipeline.core.columns import PADDING
from pipeline.model.masking.sequence import (
    MaskedSequence,
    Stage,
    check_probability,
    choose_hidden,
    last_positions,
)


class MaskedMasking(nn.Module):
    """mlm: some interactions are replaced by a learned vector and predicted from both sides."""

    name = "mlm"
    causal = False
    looks_both_ways = True
    extra_positions = 1

    def __init__(self, width: int, probability: float = 0.2) -> None:
        super().__init__()
        self.probability = check_probability("mlm_probability", probability)
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
            hidden = last_positions(lengths, item_ids.size(1))
        else:
            hidden = choose_hidden(lengths, item_ids.size(1), self.probability)
        targets = torch.where(hidden, item_ids, PADDING)
        return MaskedSequence(self._hide(embeddings, hidden), targets, lengths, query)

    def at_targets(self, values: Tensor) -> Tensor:
        """(B, L) as they are: a target stands in its own place."""
        return values

    def _hide(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden.unsqueeze(-1), self.hidden_item.to(embeddings.dtype), embeddings)
