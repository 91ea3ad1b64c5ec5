"""Maskings whose targets are at their own positions.

mlm: masked language modelling (Devlin et al. 2019; BERT4Rec, Sun et al. 2019). plm: permutation
language modelling (Yang et al. 2019, "XLNet").
"""

import math

import torch
from torch import Tensor, nn

from pipeline.core.columns import PADDING
from pipeline.core.errors import ConfigError
from pipeline.data.batch import visible_positions
from pipeline.model.masking.sequence import MaskedSequence, Masking, Stage


class InPlaceMasking(Masking):
    """Masking with targets at their own positions and bidirectional attention."""

    looks_both_ways = True
    extra_positions = 1

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence."""
        query, order = (lengths - 1).clamp(min=0), None
        if stage == Stage.PREDICT:
            # one more position, the target, after the last interaction
            embeddings = nn.functional.pad(embeddings, (0, 0, 0, 1))  # (B, L + 1, D)
            columns = torch.arange(embeddings.size(1), device=lengths.device)
            is_target = columns == lengths.unsqueeze(1)
            item_ids = item_ids.new_zeros(is_target.shape)
            query, lengths = lengths, lengths + 1
        elif stage == Stage.EVALUATE:
            is_target = last_positions(lengths, item_ids.size(1))
        else:
            is_target, order = self.draw(lengths, item_ids.size(1))
        targets = torch.where(is_target, item_ids, PADDING)
        sequence = MaskedSequence(embeddings, targets, lengths, query, order)
        return self.hide(sequence, is_target)

    def draw(self, lengths: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
        """(B,) -> training targets (B, L) bool, and their order (B, L) or None."""
        raise NotImplementedError

    def hide(self, sequence: MaskedSequence, is_target: Tensor) -> MaskedSequence:
        """Mask the targets (B, L) bool."""
        raise NotImplementedError


class MaskedMasking(InPlaceMasking):
    """mlm: a learned vector replaces random interactions, which are predicted from both sides.

    `width` is D of the interaction embeddings, `probability` the share of masked interactions in
    training.
    """

    name = "mlm"
    few_targets = True

    def __init__(self, width: int, probability: float = 0.2) -> None:
        super().__init__()
        self.probability = check_probability("mlm_probability", probability)
        self.hidden_item = nn.Parameter(torch.randn(width) * 0.02)
        """(D,) mask vector, under its name in saved weights."""

    def check(self, width: int, *, item_alone: bool) -> None:
        """ConfigError unless the mask vector and the interaction embeddings have the same width."""
        if self.hidden_item.numel() != width:
            raise ConfigError(
                f"The mask vector of the masking has {self.hidden_item.numel()} numbers, the "
                f"interaction embeddings of the input block have {width}."
            )

    def draw(self, lengths: Tensor, width: int) -> tuple[Tensor, None]:
        """(B,) -> random interactions (B, L) bool, without an order."""
        return choose_masked(lengths, width, self.probability), None

    def most_targets(self, num_sessions: int, most_interactions: int) -> int:
        """At least the mean number of targets plus eight standard deviations.

        A draw exceeds it once in 10^15 steps; the excess targets are left out of the loss.
        """
        chance = self.probability
        # a session of two, the shortest with a target, has one: 1 - 2 p more than the mean
        extra = max(0.0, 1 - 2 * chance) * num_sessions
        spread = math.sqrt(most_interactions * chance * (1 - chance))
        return min(math.ceil(most_interactions * chance + extra + 8 * spread), most_interactions)

    def hide(self, sequence: MaskedSequence, is_target: Tensor) -> MaskedSequence:
        """Replace the targets by the mask vector."""
        vector = self.hidden_item.to(sequence.embeddings.dtype)
        masked = torch.where(is_target.unsqueeze(-1), vector, sequence.embeddings)
        return sequence._replace(embeddings=masked)


class PermutationMasking(InPlaceMasking):
    """plm: spans of interactions are predicted in a random order.

    A target sees all interactions that are not targets, and the targets before it in the order.
    `max_span_length` and `probability`, the share of targets among the interactions, default to
    those of XLNet's pretraining. `permute_all` permutes every interaction; all but the first in the
    order are targets then.
    """

    name = "plm"

    def __init__(
        self, probability: float = 1 / 6, max_span_length: int = 5, permute_all: bool = False
    ) -> None:
        super().__init__()
        if max_span_length < 1:
            raise ConfigError(f"max_span_length is {max_span_length}, expected 1 or more.")
        self.probability = check_probability("plm_probability", probability)
        self.max_span_length = max_span_length
        self.permute_all = permute_all

    def draw(self, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """(B,) -> targets (B, L) bool and their order (B, L)."""
        visible = visible_positions(lengths, width)
        draw = torch.rand(visible.shape, device=lengths.device).masked_fill(~visible, 2.0)
        if self.permute_all:
            order = draw.argsort(1).argsort(1).masked_fill(~visible, -1)
            return order > 0, order  # the first in the order sees no interaction
        is_target = some_but_not_all(self._spans(lengths, width), draw, visible)
        order = draw.masked_fill(~is_target, 3.0).argsort(1).argsort(1)
        return is_target, order.masked_fill(~is_target, -1)

    def _spans(self, lengths: Tensor, width: int) -> Tensor:
        """(B,) -> (B, L) bool: a span of random length per stretch of length span / probability."""
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

    def hide(self, sequence: MaskedSequence, is_target: Tensor) -> MaskedSequence:
        """Order the targets after all other interactions, unless `draw` returned an order."""
        if sequence.order is not None:
            return sequence
        # the target of an empty session can only see its own position
        is_last = is_target & (sequence.query > 0).unsqueeze(1)
        return sequence._replace(order=is_last.to(torch.int64) - 1)


def check_probability(name: str, value: float) -> float:
    """Return `value`; ConfigError unless 0 < value < 1."""
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{name} is {value!r}, expected above 0 and below 1.")
    return value


def last_positions(lengths: Tensor, width: int) -> Tensor:
    """(B,) -> (B, L) bool: the last interaction of each session of at least two."""
    columns = torch.arange(width, device=lengths.device)
    return (columns == (lengths - 1).unsqueeze(1)) & (lengths > 1).unsqueeze(1)


def choose_masked(lengths: Tensor, width: int, probability: float) -> Tensor:
    """(B,) -> (B, L) bool: random interactions, at least one and never all of a session."""
    visible = visible_positions(lengths, width)
    draw = torch.rand(visible.shape, device=lengths.device).masked_fill(~visible, 2.0)
    return some_but_not_all(draw < probability, draw, visible)


def some_but_not_all(chosen: Tensor, draw: Tensor, visible: Tensor) -> Tensor:
    """Add the smallest draw of each row to `chosen` (B, L), and remove the largest draw.

    `draw` is random at `visible` positions and 2 elsewhere. A session of one interaction has no
    target.
    """
    if draw.size(0) == 0:
        return chosen
    smallest = draw.argmin(1, keepdim=True)
    largest = draw.masked_fill(~visible, -1.0).argmax(1, keepdim=True)
    return chosen.scatter(1, smallest, True).scatter(1, largest, False) & visible
