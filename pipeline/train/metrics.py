"""Ranking metrics from ranks: with one target each, the rank says all.

rank is 1-based in the full catalogue. At a cutoff K: Recall (= hit rate) 1 if rank <= K;
Precision that over K; MRR and MAP 1 / rank; NDCG 1 / log2(1 + rank) (Jarvelin and Kekalainen
2002, with an ideal gain of 1).
"""

import numpy as np

METRICS = ("recall", "ndcg", "mrr", "map", "precision")
DEFAULT_CUTOFFS = (5, 10, 20)


def ranking_metrics(ranks: np.ndarray, cutoffs: tuple[int, ...]) -> dict[str, float]:
    """(N,) ranks -> means by `metric@K`; NaN where there is no rank."""
    values = {}
    for cutoff in cutoffs:
        for metric, gains in gains_at(ranks, cutoff).items():
            values[f"{metric}@{cutoff}"] = float(gains.mean()) if len(ranks) else float("nan")
    return values


def gains_at(ranks: np.ndarray, cutoff: int) -> dict[str, np.ndarray]:
    """(N,) ranks -> (N,) gain of each, by metric."""
    ranks = ranks.astype(np.float64)
    hit = ranks <= cutoff
    reciprocal = hit / ranks
    return {
        "recall": hit.astype(np.float64),
        "ndcg": hit / np.log2(1 + ranks),
        "mrr": reciprocal,
        "map": reciprocal,
        "precision": hit / cutoff,
    }
