"""mlm: masked language modelling (Devlin et al. 2019; BERT4Rec, Sun et al. 2019)."""

import torch
from torch import Tensor, nn

from pipeline.core.columns import PADDING
from pipeline.core.errors import ConfigError
from pipeline.model.masking.sequence import (
    MaskedSequence,
    Masking,
    Stage,
    check_probability,
    choose_masked,
    last_positions,
)


class MaskedMasking(Masking):
    """mlm: a learned vector replaces some interactions, which are predicted from both sides.

    `width` is D of the interaction embeddings, `probability` the share of masked interactions in
    training.
    """

    name = "mlm"
    looks_both_ways = True
    extra_positions = 1
    few_targets = True

    def __init__(self, width: int, probability: float = 0.2) -> None:
        super().__init__()
        self.probability = check_probability("mlm_probability", probability)
        self.hidden_item = nn.Parameter(torch.randn(width) * 0.02)
        """(D,) mask vector; saved weights hold it under this name."""

    def check(self, width: int, *, item_alone: bool) -> None:
        """ConfigError unless the mask vector is as wide as the interaction embeddings."""
        if self.hidden_item.numel() != width:
            raise ConfigError(
                f"The mask vector of the masking has {self.hidden_item.numel()} numbers, the "
                f"interaction embeddings of the input block have {width}."
            )

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence."""
        if stage == Stage.PREDICT:
            # one more position, masked, behind the last interaction
            grown = nn.functional.pad(embeddings, (0, 0, 0, 1))  # (B, L + 1, D)
            query = lengths
            masked = torch.arange(grown.size(1), device=lengths.device) == query.unsqueeze(1)
            targets = torch.zeros(masked.shape, dtype=item_ids.dtype, device=item_ids.device)
            return MaskedSequence(self._mask(grown, masked), targets, lengths + 1, query)
        query = (lengths - 1).clamp(min=0)
        if stage == Stage.EVALUATE:
            masked = last_positions(lengths, item_ids.size(1))
        else:
            masked = choose_masked(lengths, item_ids.size(1), self.probability)
        targets = torch.where(masked, item_ids, PADDING)
        return MaskedSequence(self._mask(embeddings, masked), targets, lengths, query)

    def _mask(self, embeddings: Tensor, masked: Tensor) -> Tensor:
        """(B, L, D), (B, L) bool -> (B, L, D) with the mask vector at masked positions."""
        return torch.where(masked.unsqueeze(-1), self.hidden_item.to(embeddings.dtype), embeddings)
