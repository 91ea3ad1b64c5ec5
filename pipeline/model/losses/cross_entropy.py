"""Softmax cross-entropy over the whole catalogue."""

from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.arguments import checked_arguments, closest
from pipeline.core.errors import ConfigError
from pipeline.model.losses import LossOptions

REDUCTIONS = ("mean", "sum", "none")


class LabelSmoothCrossEntropyLoss(nn.Module):
    """-log softmax(s)_p, with label smoothing (Szegedy et al., CVPR 2016).

    The target has probability 1 - smoothing + smoothing / items, every other smoothing / items.
    """

    sampled = False

    @checked_arguments(instead={"label_smoothing": "it is called `smoothing`."})
    def __init__(self, smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ConfigError(f"label smoothing is {smoothing}, expected 0 or more and below 1.")
        if reduction not in REDUCTIONS:
            raise ConfigError(f"reduction is {reduction!r}; {closest(reduction, list(REDUCTIONS))}")
        self.smoothing = smoothing
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(T, items), (T,) -> (T,) for reduction none, otherwise (); the mean of nothing is 0."""
        losses = functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.smoothing
        )
        match self.reduction:
            case "mean":
                return losses.sum() / max(losses.numel(), 1)
            case "sum":
                return losses.sum()
        return losses


def build(options: LossOptions) -> LabelSmoothCrossEntropyLoss:
    """The loss of each target, with the recipe's label smoothing."""
    return LabelSmoothCrossEntropyLoss(options.label_smoothing, reduction="none")
