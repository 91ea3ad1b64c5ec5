"""Losses of next-item prediction, one a file; which there are stands in `pipeline.recipe.choices`.

A new one takes a file here, called as the loss is, with `build(options)`, and its name in that
list. A loss is a module that gives the loss of each of T targets, and says what it reads:

| `sampled` | `forward`                                                             |
| --------- | --------------------------------------------------------------------- |
| False     | logits (T, items), positions of the targets in the catalogue (T,)     |
| True      | `Sampled`: scores of the targets and of some negatives                |

A loss over all logits may have `over_catalogue` as well, which gets queries and the item table in
place of their products, so that it need not hold them all at once.
"""

from importlib import import_module
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipeline.core.arguments import checked_arguments, closest
from pipeline.core.errors import ConfigError
from pipeline.recipe.choices import FULL_LOSSES, SAMPLED_LOSSES


class LossOptions(NamedTuple):
    """What a recipe can set; each loss reads what is its own and leaves the rest."""

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over the catalogue; cross-entropy."""
    gbce_t: float = 0.75
    """Calibration: 0 is plain binary cross-entropy, 1 undoes the sampling; gbce."""
    regularization: float = 0.0
    """Weight of the squared scores of negatives; bpr-max."""
    recompute: bool | None = None
    """Compute scores again for the backward pass rather than keep them; cross-entropy."""


@runtime_checkable
class OverCatalogue(Protocol):
    """A loss that makes its own scores."""

    def over_catalogue(
        self, queries: Tensor, table: Tensor, targets: Tensor, *, first: int, normalize: bool
    ) -> Tensor:
        """(T, E), (first + items, E), (T,) positions among the items -> (T,), or ()."""


class Sampled(NamedTuple):
    """Scores of T targets and of N negatives each, with what the draw was like.

    A draw that hit the row's own target is no negative: it takes no part in any loss, and a row
    without negatives has loss 0 and gradient 0. The methods below see to that.
    """

    positive: Tensor
    """(T,) scores of the targets."""
    negative: Tensor
    """(T, N) scores of the negatives."""
    log_expected: Tensor
    """(T, N), (1, N) or (N,): log of how often each is expected among the draws, log(N q_j)."""
    is_negative: Tensor
    """(T, N) False where a draw is to be left out."""
    num_items: int
    """Items of the catalogue."""

    def scores(self) -> tuple[Tensor, Tensor]:
        """() -> (T, 1), (T, N): in float32 at least, and 0 for a draw that is no negative.

        0 rather than minus infinity: its gradient is 0, that of infinity is no number.
        """
        dtype = torch.promote_types(self.negative.dtype, torch.float32)
        negative = self.negative.to(dtype).masked_fill(~self.is_negative, 0.0)
        return self.positive.to(dtype).unsqueeze(1), negative

    def lowered(self, values: Tensor) -> Tensor:
        """(T, N) -> (T, N): the lowest finite number for a draw that is no negative."""
        return values.masked_fill(~self.is_negative, torch.finfo(values.dtype).min)

    def total(self, values: Tensor) -> Tensor:
        """(T, N) -> (T,): sum over the row's negatives."""
        return values.masked_fill(~self.is_negative, 0.0).sum(1)

    def mean(self, values: Tensor) -> Tensor:
        """(T, N) -> (T,): mean over the row's negatives, 0 where there are none."""
        return self.total(values) / self.num_negatives().clamp(min=1)

    def num_negatives(self) -> Tensor:
        """() -> (T,): draws that are negatives."""
        return self.is_negative.sum(1)

    def or_zero(self, losses: Tensor) -> Tensor:
        """(T,) -> (T,): 0 for a row without negatives."""
        return losses.masked_fill(~self.is_negative.any(1), 0.0)


@checked_arguments()
def build_loss(
    name: str,
    *,
    label_smoothing: float = 0.0,
    gbce_t: float = 0.75,
    regularization: float = 0.0,
    recompute: bool | None = None,
) -> nn.Module:
    """Loss by its name in `pipeline.recipe.choices`. ConfigError for another.

    Options that belong to another loss have no effect.
    """
    known = [*FULL_LOSSES, *SAMPLED_LOSSES]
    if name not in known:
        raise ConfigError(f"loss is {name!r}; {closest(str(name), known)}")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    loss: nn.Module = module.build(LossOptions(label_smoothing, gbce_t, regularization, recompute))
    return loss


# below the records, because the file uses them
from pipeline.model.losses.cross_entropy import LabelSmoothCrossEntropyLoss  # noqa: E402

__all__ = ["LabelSmoothCrossEntropyLoss", "LossOptions", "OverCatalogue", "Sampled", "build_loss"]
