"""Ranking metrics under the names of Transformers4Rec, computed as in `pipeline.evaluation`.

Shape letters: N targets, V classes or rows of the item table.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.compat.construction import Rebuildable
from pipeline.core.errors import ConfigError
from pipeline.evaluation.metrics import gains


class RankingMetric(Rebuildable):
    """A metric of ranks at the cutoffs `top_ks`, accumulated over batches.

    A call with scores (N, V) and labels adds them and returns their means (cutoffs,). Labels are
    indices (N,) with `labels_onehot`, else rows (N, V) with a single 1. Ties with the target rank
    before it.
    """

    metric: ClassVar[str]
    """Name in `pipeline.evaluation.metrics`."""
    name: ClassVar[str]
    """Name in the keys of an evaluation, before the cutoff."""

    def __init__(self, top_ks: int | Sequence[int] = (2, 5), labels_onehot: bool = False) -> None:
        self.top_ks = [top_ks] if isinstance(top_ks, int) else [int(k) for k in top_ks]
        if not self.top_ks or min(self.top_ks) < 1:
            raise ConfigError(f"top_ks is {top_ks!r}, expected lengths of lists from 1.")
        self.labels_onehot = labels_onehot
        self._ranks: list[Tensor] = []

    def __call__(self, preds: Tensor, target: Tensor) -> Tensor:
        """(N, V) scores, labels -> (cutoffs,) means of this batch; adds the batch to the sums."""
        self.update(preds, target)
        return self._means(self._ranks[-1])

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add scores (N, V) and labels. ConfigError for several labels per row."""
        labels = target.long() if self.labels_onehot and target.dim() == 1 else _single(target)
        own = preds.gather(1, labels.unsqueeze(1))
        self._ranks.append((~(preds < own)).sum(1).cpu())

    def compute(self) -> Tensor:
        """(cutoffs,) means of all batches since `reset`; NaN without any."""
        return self._means(torch.cat([torch.empty(0, dtype=torch.int64), *self._ranks]))

    def reset(self) -> None:
        """Discard all batches."""
        self._ranks = []

    def of_ranks(self, ranks: Any) -> dict[str, float]:
        """(N,) ranks -> means by `name_CUTOFF`."""
        values = gains(np.asarray(ranks), tuple(self.top_ks), (self.metric,))
        means = [float(np.mean(v)) if len(v) else float("nan") for v in values.values()]
        return {f"{self.name}_{k}": mean for k, mean in zip(self.top_ks, means, strict=True)}

    def _means(self, ranks: Tensor) -> Tensor:
        return torch.tensor(list(self.of_ranks(ranks.numpy()).values()))


def _single(labels: Tensor) -> Tensor:
    """(N, V) rows with a single 1 -> (N,) its column."""
    if labels.dim() != 2 or not bool((labels.bool().sum(1) == 1).all()):
        raise ConfigError(
            "A ranking metric takes one true item per row, as (N, V) with a single 1."
        )
    return labels.bool().int().argmax(1)


class PrecisionAt(RankingMetric):
    """Precision@K."""

    metric, name = "precision", "precision_at"


class RecallAt(RankingMetric):
    """Recall@K, the hit rate."""

    metric, name = "recall", "recall_at"


class AvgPrecisionAt(RankingMetric):
    """Mean average precision at K."""

    metric, name = "map", "avg_precision_at"


class DCGAt(RankingMetric):
    """Discounted cumulative gain at K."""

    metric, name = "dcg", "dcg_at"


class NDCGAt(RankingMetric):
    """NDCG@K."""

    metric, name = "ndcg", "ndcg_at"


class MeanReciprocalRankAt(RankingMetric):
    """MRR@K."""

    metric, name = "mrr", "mean_reciprocal_rank_at"


MRRAt = MeanReciprocalRankAt


def default_metrics() -> list[RankingMetric]:
    """NDCG, MAP and Recall at 10 and 20."""
    return [metric(top_ks=[10, 20]) for metric in (NDCGAt, AvgPrecisionAt, RecallAt)]


ranking_metrics_registry: dict[str, type[RankingMetric]] = {
    **{f"{metric.metric}_at": metric for metric in RankingMetric.__subclasses__()},
    **{metric.metric: metric for metric in RankingMetric.__subclasses__()},
}
"""Metrics by name, such as ndcg_at and ndcg."""
