"""plm: permutation language modelling (Yang et al. 2019, "XLNet")."""

import torch
from torch import Tensor, nn

from pipeline.core.columns import PADDING
from pipeline.core.errors import ConfigError
from pipeline.data.batch import visible_positions
from pipeline.model.masking.sequence import (
    MaskedSequence,
    Masking,
    Stage,
    check_probability,
    last_positions,
    some_but_not_all,
)


class PermutationMasking(Masking):
    """plm: spans of interactions are predicted in a random order.

    A target sees all interactions that are not targets and the targets before it in the order,
    with their content. `max_span_length` and `probability`, the share of interactions that are
    targets, are those of XLNet's pretraining. `permute_all` puts every interaction into the order;
    all but the first are targets then.
    """

    name = "plm"
    looks_both_ways = True
    extra_positions = 1

    def __init__(
        self, probability: float = 1 / 6, max_span_length: int = 5, permute_all: bool = False
    ) -> None:
        super().__init__()
        if max_span_length < 1:
            raise ConfigError(f"max_span_length is {max_span_length}, expected 1 or more.")
        self.probability = check_probability("plm_probability", probability)
        self.max_span_length = max_span_length
        self.permute_all = permute_all

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence with an order."""
        if stage == Stage.PREDICT:
            grown = nn.functional.pad(embeddings, (0, 0, 0, 1))  # (B, L + 1, D)
            is_target = torch.arange(grown.size(1), device=lengths.device) == lengths.unsqueeze(1)
            targets = torch.zeros(is_target.shape, dtype=item_ids.dtype, device=item_ids.device)
            # the target of an empty session has no position to see but its own
            order = _targets_last(is_target & (lengths > 0).unsqueeze(1))
            return MaskedSequence(grown, targets, lengths + 1, lengths, order)
        query = (lengths - 1).clamp(min=0)
        width = item_ids.size(1)
        if stage == Stage.EVALUATE:
            is_target = last_positions(lengths, width)
            order = _targets_last(is_target)
        else:
            is_target, order = self._draw(lengths, width)
        targets = torch.where(is_target, item_ids, PADDING)
        return MaskedSequence(embeddings, targets, lengths, query, order)

    def _draw(self, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """(B,) -> targets (B, L) bool and their order (B, L)."""
        visible = visible_positions(lengths, width)
        draw = torch.rand(visible.shape, device=lengths.device).masked_fill(~visible, 2.0)
        if self.permute_all:
            order = draw.argsort(1).argsort(1).masked_fill(~visible, -1)
            return order > 0, order  # the first has no interaction to be predicted from
        is_target = some_but_not_all(self._spans(lengths, width), draw, visible)
        order = draw.masked_fill(~is_target, 3.0).argsort(1).argsort(1)
        return is_target, order.masked_fill(~is_target, -1)

    def _spans(self, lengths: Tensor, width: int) -> Tensor:
        """(B,) -> (B, L) bool: a span of random length in each stretch of span / probability."""
        device = lengths.device
        columns = torch.arange(width, device=device)
        shape = (lengths.numel(), 1)
        begin = torch.zeros(shape, dtype=torch.int64, device=device)
        in_span = torch.zeros(lengths.numel(), width, dtype=torch.bool, device=device)
        for _ in range(int(width * self.probability) + 1):  # no stretch is shorter than 1 / p
            span = torch.randint(1, self.max_span_length + 1, shape, device=device)
            stretch = (span / self.probability).round().to(torch.int64)
            first = begin + (torch.rand(shape, device=device) * (stretch - span + 1)).floor()
            in_span |= (columns >= first) & (columns < first + span)
            begin += stretch
        return in_span


def _targets_last(is_target: Tensor) -> Tensor:
    """(B, L) bool -> (B, L) order in which targets come after all other interactions."""
    return is_target.to(torch.int64) - 1
