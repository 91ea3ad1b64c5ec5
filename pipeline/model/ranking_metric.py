"""Ranking metrics of scores: a rank by counting, and what a target of that rank is worth.

With one target each, the rank says all. At a cutoff K: Recall (= hit rate) 1 if rank <= K;
Precision that over K; MRR and MAP 1 / rank; DCG 1 / log2(1 + rank) (Jarvelin and Kekalainen 2002),
and NDCG the same, since the best DCG of one target is 1.
"""

import torch
from torch import Tensor

METRICS = ("recall", "ndcg", "dcg", "mrr", "map", "precision")


def ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """(N, C) scores, (N,) columns of the targets -> (N,) ranks, 1 is best.

    C is all rows of the item table or the items alone. By counting: no sort, no one-hot. What has
    the target's score counts as ahead of it, and so does a score that is not a number. A negative
    target is none of the columns and ranks behind them, at C + 1.
    """
    own = scores.gather(1, targets.clamp(min=0).unsqueeze(1))  # (N, 1)
    # not `>=`: a score that is not a number must not count as worse
    ahead = (~(scores < own)).sum(1)
    return torch.where(targets >= 0, ahead, scores.size(1) + 1)


def gains_at(ranks: Tensor, cutoff: int) -> dict[str, Tensor]:
    """(N,) ranks -> (N,) float64 gain of each, by metric."""
    ranks = ranks.to(torch.float64)
    hit = (ranks <= cutoff).to(torch.float64)
    reciprocal, discounted = hit / ranks, hit / torch.log2(1 + ranks)
    return {
        "recall": hit,
        "ndcg": discounted,
        "dcg": discounted,
        "mrr": reciprocal,
        "map": reciprocal,
        "precision": hit / cutoff,
    }


def means(ranks: Tensor, cutoffs: tuple[int, ...]) -> dict[str, float]:
    """(N,) ranks -> means by `metric@K`; NaN where there is no rank."""
    return {
        f"{metric}@{cutoff}": float(gains.mean())
        for cutoff in cutoffs
        for metric, gains in gains_at(ranks, cutoff).items()
    }
