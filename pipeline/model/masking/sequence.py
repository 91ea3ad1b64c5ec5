"""What passes from a masking to the sequence block, and what every masking has."""

from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.data.batch import visible_positions


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
    order: Tensor | None = None
    """(B, L), of plm: a position sees those of a lower number, and all those of -1."""


@runtime_checkable
class Masking(Protocol):
    """What every masking has."""

    name: str
    causal: bool
    """Whether attention must be to the past alone."""
    looks_both_ways: bool
    """Whether attention must be to both sides."""
    extra_positions: int
    """Positions beyond L that the sequence block must have room for."""

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence."""

    def at_targets(self, values: Tensor) -> Tensor:
        """(B, L) values of interactions -> where the targets of training and evaluation stand."""


class NoMasking(nn.Module):
    """Nothing to predict from within: for models whose tasks have targets of their own."""

    name = "none"
    causal = False
    looks_both_ways = False
    extra_positions = 0

    def apply_to(
        self,
        embeddings: Tensor,
        item_ids: Tensor,
        lengths: Tensor,
        stage: Stage,  # noqa: ARG002
    ) -> MaskedSequence:
        """(B, L, D), (B, L), (B,) -> MaskedSequence without targets."""
        query = (lengths - 1).clamp(min=0)
        return MaskedSequence(embeddings, torch.zeros_like(item_ids), lengths, query)

    def at_targets(self, values: Tensor) -> Tensor:
        """(B, L) as they are."""
        return values


def check_probability(name: str, value: float) -> float:
    """ConfigError unless it is a share between 0 and 1."""
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{name} is {value!r}, expected above 0 and below 1.")
    return value


def last_positions(lengths: Tensor, width: int) -> Tensor:
    """(B,) -> (B, L) bool: the last interaction of sessions that have another before it."""
    columns = torch.arange(width, device=lengths.device)
    return (columns == (lengths - 1).unsqueeze(1)) & (lengths > 1).unsqueeze(1)


def choose_hidden(lengths: Tensor, width: int, probability: float) -> Tensor:
    """(B,) -> (B, L) bool: each interaction by chance, at least one of a session, never all."""
    visible = visible_positions(lengths, width)
    draw = torch.rand(visible.shape, device=lengths.device).masked_fill(~visible, 2.0)
    return some_but_not_all(draw < probability, draw, visible)


def some_but_not_all(chosen: Tensor, draw: Tensor, visible: Tensor) -> Tensor:
    """(B, L) -> (B, L): with the smallest draw of each row, without the largest.

    `draw` is random where `visible`, and 2 elsewhere. A session of one is left with nothing.
    """
    if draw.size(0) == 0:
        return chosen
    smallest = draw.argmin(1, keepdim=True)
    largest = draw.masked_fill(~visible, -1.0).argmax(1, keepdim=True)
    return chosen.scatter(1, smallest, True).scatter(1, largest, False) & visible
