"""Ranking metrics: the rank of a target by counting, and the gain of a rank.

With one target per row all metrics follow from its rank. At a cutoff K: Recall (= hit rate) is 1 if
rank <= K; Precision is Recall / K; MRR and MAP are 1 / rank; DCG is 1 / log2(1 + rank) (Jarvelin
and Kekalainen 2002), and so is NDCG, since the best DCG of one target is 1.
"""

import torch
from torch import Tensor

METRICS = ("recall", "ndcg", "dcg", "mrr", "map", "precision")


def ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """(N, C) scores, (N,) columns of the targets -> (N,) ranks, 1 is best.

    C is the number of candidates: all rows of the item table, or the items. Ranks are counted,
    without a sort. A score that equals the target's, or is not a number, ranks before the target. A
    negative target is not a candidate and has rank C + 1.
    """
    own = scores.gather(1, targets.clamp(min=0).unsqueeze(1))  # (N, 1)
    # not `>=`: a score that is not a number must not count as worse
    rank = (~(scores < own)).sum(1)
    return torch.where(targets >= 0, rank, scores.size(1) + 1)


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
    """(N,) ranks -> mean gains by `metric@K`; NaN without ranks."""
    return {
        f"{metric}@{cutoff}": float(gains.mean())
        for cutoff in cutoffs
        for metric, gains in gains_at(ranks, cutoff).items()
    }
