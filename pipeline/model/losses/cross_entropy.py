"""Softmax cross-entropy over the whole catalogue."""

from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.errors import ConfigError, closest
from pipeline.model.ops.catalogue_chunks import Scratch, Settings
from pipeline.model.ops.catalogue_cross_entropy import (
    MOST_KEPT_BYTES,
    catalogue_cross_entropy,
)
from pipeline.model.ops.sharded_cross_entropy import sharded_cross_entropy
from pipeline.model.ops.shards import Shards

REDUCTIONS = ("mean", "sum", "none")


class LabelSmoothCrossEntropyLoss(nn.Module):
    """-log softmax(s)_p, with label smoothing (Szegedy et al., CVPR 2016).

    The target has probability 1 - smoothing + smoothing / items, every other item smoothing /
    items. `reduction` is "mean", "sum" or "none". `recompute` is for `over_catalogue`: True
    recomputes the scores in the backward pass, so that memory does not grow with targets times
    items; False keeps them, which is faster; None keeps them up to half a gigabyte.
    """

    sampled = False

    def __init__(
        self, smoothing: float = 0.0, reduction: str = "mean", recompute: bool | None = None
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ConfigError(f"label smoothing is {smoothing}, expected 0 or more and below 1.")
        if reduction not in REDUCTIONS:
            raise ConfigError(f"reduction is {reduction!r}; {closest(reduction, list(REDUCTIONS))}")
        self.smoothing = smoothing
        self.reduction = reduction
        self.recompute = recompute
        self._scratch = Scratch()
        self.gradients = Scratch()
        """Memory of the table's gradient, released at the end of the step."""
        self.shards: Shards | None = None
        """Distribution of the table's rows over processes, None if each process has the whole
        table."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(T, items), (T,) -> (T,) for reduction none, otherwise (); the mean of no target is 0."""
        losses = functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.smoothing
        )
        return self._reduced(losses)

    def over_catalogue(
        self, queries: Tensor, table: Tensor, targets: Tensor, *, first: int, normalize: bool
    ) -> Tensor:
        """Loss of queries (T, E) and an item table (first + items, E), without a (T, items) tensor.

        The first `first` rows of the table are not items; `normalize` scales items to length 1.
        `targets` (T,) are positions among the items. Returns (T,), or () if reduced.
        """
        if self.shards is not None:
            settings = Settings(first, self.smoothing, normalize, self._scratch, self.gradients)
            losses = sharded_cross_entropy(
                queries, table, targets, settings, self.shards, recompute=self.recompute
            )
            return self._reduced(losses)
        recompute = self.recompute
        if recompute is None:
            recompute = 4 * queries.size(0) * table.size(0) > MOST_KEPT_BYTES
        losses = catalogue_cross_entropy(
            queries,
            table,
            targets,
            first=first,
            smoothing=self.smoothing,
            normalize=normalize,
            scratch=None if recompute else self._scratch,
            gradients=self.gradients,
        )
        return self._reduced(losses)

    def _reduced(self, losses: Tensor) -> Tensor:
        match self.reduction:
            case "mean":
                return losses.sum() / max(losses.numel(), 1)
            case "sum":
                return losses.sum()
        return losses
