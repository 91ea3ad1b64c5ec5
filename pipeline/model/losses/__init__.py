"""Losses of next-item prediction.

A new loss needs a class, a line in `LOSSES` below and its name in `pipeline.recipe.choices`. A loss
is a module that returns the loss of each of T targets. Its `sampled` defines the input of
`forward`:

| `sampled` | `forward`                                                             |
| --------- | --------------------------------------------------------------------- |
| False     | logits (T, items), positions of the targets in the catalogue (T,)     |
| True      | `Sampled`: scores of the targets and of some negatives                |

A loss over all logits may also have `over_catalogue`, which reads queries and the item table and
need not hold their product.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from pipeline.core.errors import ConfigError, closest
from pipeline.model.losses.cross_entropy import LabelSmoothCrossEntropyLoss
from pipeline.model.losses.sampled import (
    BPRLoss,
    BPRMaxLoss,
    GBCELoss,
    Sampled,
    SampledSoftmaxLoss,
    TOP1Loss,
    TOP1MaxLoss,
)

__all__ = ["LabelSmoothCrossEntropyLoss", "LossOptions", "OverCatalogue", "Sampled", "build_loss"]


class LossOptions(NamedTuple):
    """Settings of all losses; each loss reads its own."""

    label_smoothing: float = 0.0
    """cross-entropy: share of the target's probability spread over the catalogue."""
    gbce_t: float = 0.75
    """gbce: calibration; 0 is binary cross-entropy, 1 corrects fully for the sampling."""
    regularization: float = 0.0
    """bpr-max: weight of the squared scores of negatives."""
    recompute: bool | None = None
    """cross-entropy: recompute scores in the backward pass instead of keeping them."""


LOSSES: dict[str, Callable[[LossOptions], nn.Module]] = {
    "cross-entropy": lambda options: LabelSmoothCrossEntropyLoss(
        options.label_smoothing, reduction="none", recompute=options.recompute
    ),
    "sampled-softmax": lambda _: SampledSoftmaxLoss(),
    "gbce": lambda options: GBCELoss(options.gbce_t),
    "bpr": lambda _: BPRLoss(),
    "bpr-max": lambda options: BPRMaxLoss(options.regularization),
    "top1": lambda _: TOP1Loss(),
    "top1-max": lambda _: TOP1MaxLoss(),
}
"""Constructor of each loss by its name in a recipe."""


@runtime_checkable
class OverCatalogue(Protocol):
    """A loss that computes the scores itself."""

    def over_catalogue(
        self, queries: Tensor, table: Tensor, targets: Tensor, *, first: int, normalize: bool
    ) -> Tensor:
        """(T, E), (first + items, E), (T,) positions among the items -> (T,), or ()."""


def build_loss(name: str, **options: Any) -> nn.Module:
    """Build a loss by its name in `LOSSES`; `options` are fields of LossOptions.

    Options of other losses have no effect. ConfigError for an unknown name.
    """
    if name not in LOSSES:
        raise ConfigError(f"loss is {name!r}; {closest(str(name), list(LOSSES))}")
    return LOSSES[name](LossOptions(**options))
