"""Metrics of an evaluation: of ranks (Recall, NDCG, MRR and others) and of top-K lists.

With one target per list all metrics of ranks follow from the rank of the target. At a cutoff K the
gain of a rank is: Recall (= hit rate) 1, Precision 1 / K, MRR and MAP 1 / rank, DCG
1 / log2(1 + rank) (Jarvelin and Kekalainen 2002), and so NDCG, since the best DCG of one target is
1. For a rank beyond K each is 0. A metric is the mean of the gains.

Metrics of the lists at a cutoff K:

coverage: share of the catalogue that is in at least one list (catalogue coverage; Ge,
Delgado-Battenfeld and Jannach, RecSys 2010). popularity: mean number of training interactions of
the items of a list, averaged over lists: average recommendation popularity, ARP (Yin et al.,
"Challenging the long tail recommendation", VLDB 2012; Abdollahpouri et al., "Managing popularity
bias with personalized re-ranking", 2019). popularity_bias: this value divided by the mean
popularity of the targets; 1 is as popular as the true next items, above 1 favours popular items. A
target without training interactions has popularity 0.

The margin of a mean is half its 95 % interval. Targets of one session are not independent, so the
session is the unit: the variance is cluster-robust (Liang and Zeger 1986; Cameron and Miller, "A
practitioner's guide to cluster-robust inference", 2015), with Student's t for as many sessions. It
covers the sampling of sessions, not the variance between training seeds.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from pipeline.core.columns import FIRST_ITEM
from pipeline.recipe.choices import METRICS

_LOWER_IS_BETTER = ("loss", "log_loss", "calibration_error", "rmse", "mae", "miscalibration")
DEFAULT_CUTOFFS = (5, 10, 20)
_FEWEST_SESSIONS = 10
"""Minimum sessions: with fewer, the interval is too wide to be useful."""


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric, such as loss, price.rmse or ndcg@20, is better."""
    return metric.split(".")[-1].split("@")[0] in _LOWER_IS_BETTER


GAINS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {}
"""Metrics that `pipeline.plugins` has registered: (N,) ranks and a cutoff -> (N,) gains."""


class Ranked(NamedTuple):
    """Ranks of N targets, in the order of sessions and positions, and counts of their N lists."""

    ranks: NDArray[Any]
    """(N,) 1-based; an unknown target ranks after the whole catalogue."""
    targets: NDArray[Any]
    """(N,) item indices."""
    exposure: NDArray[Any]
    """(C, items) number of the N lists with each item, for each of C lengths."""
    lists: NDArray[Any] | None = None
    """(N, K) int32 items from 0 of the longest lists, best first, -1 after the end; None if not
    kept."""


def ranking_metrics(ranks: NDArray[Any], cutoffs: tuple[int, ...]) -> dict[str, float]:
    """(N,) ranks -> means by `metric@K`; NaN without a rank."""
    values = gains(ranks, cutoffs)
    return {name: float(torch.from_numpy(gain).mean()) for name, gain in values.items()}


def gains(
    ranks: NDArray[Any], cutoffs: tuple[int, ...], metrics: tuple[str, ...] | None = None
) -> dict[str, NDArray[Any]]:
    """(N,) ranks -> (N,) gains by `metric@K`; their means are the metrics.

    `metrics` are names of METRICS and GAINS, None for all.
    """
    rank = torch.from_numpy(ranks).to(torch.float64)
    values: dict[str, NDArray[Any]] = {}
    for cutoff in cutoffs:
        hit = (rank <= cutoff).to(torch.float64)
        reciprocal, discounted = hit / rank, hit / torch.log2(1 + rank)
        by_metric = {
            "recall": hit,
            "ndcg": discounted,
            "dcg": discounted,
            "mrr": reciprocal,
            "map": reciprocal,
            "precision": hit / cutoff,
        }
        by_metric |= {name: gain(rank, cutoff) for name, gain in GAINS.items()}
        for metric in metrics or (*METRICS, *GAINS):
            values[f"{metric}@{cutoff}"] = by_metric[metric].numpy()
    return values


def behind_every_list(ranks: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """(N,) ranks, those of unknown targets beyond any cutoff, even one above the catalogue size."""
    return np.where(targets >= FIRST_ITEM, ranks, np.iinfo(np.int32).max)


def weighted(values: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """(N,) values, (N,) weights -> (N,) values whose plain mean is the weighted mean.

    Their deviations are those of the linearized weighted mean, so that `margin` of them, and of
    their differences, is that of the weighted mean. Values of weight 0 may be NaN.
    """
    weights = weights.astype(np.float64)
    total = weights.sum()
    if not total:
        return np.full(len(values), np.nan)
    values = np.where(weights > 0, values, 0)
    mean = (weights * values).sum() / total
    return mean + weights * (values - mean) * (len(values) / total)


def margin(values: NDArray[Any], sessions: NDArray[Any]) -> float | None:
    """(N,) gains or differences of gains, (N,) ascending sessions -> half the 95 % interval.

    None with fewer than 10 sessions, or if all values are equal, as without a hit.
    """
    error, num_sessions = standard_error(values, sessions)
    return None if error is None else float(stdtrit(num_sessions - 1, 0.975) * error)


def p_value(differences: NDArray[Any], sessions: NDArray[Any]) -> float | None:
    """(N,) differences of gains on the same targets -> two-sided p of a mean of 0.

    Student's t of the cluster-robust error; with one target per session it is the paired t-test.
    None where `margin` is None.
    """
    error, num_sessions = standard_error(differences, sessions)
    if error is None:
        return None
    return float(2 * stdtr(num_sessions - 1, -abs(differences.mean()) / error))


def standard_error(values: NDArray[Any], sessions: NDArray[Any]) -> tuple[float | None, int]:
    """Cluster-robust standard error of the mean and the number of sessions."""
    starts = np.flatnonzero(np.diff(sessions, prepend=-1))
    if len(starts) < _FEWEST_SESSIONS:
        return None, len(starts)
    # sum of a session's deviations from the mean
    sums = np.add.reduceat(values - values.mean(), starts)
    variance = (sums**2).sum() / len(values) ** 2 * len(starts) / (len(starts) - 1)
    if not variance > np.finfo(np.float64).eps ** 2:  # or NaN
        return None, len(starts)
    return math.sqrt(variance), len(starts)


def mean_or_none(values: NDArray[Any]) -> float | None:
    """(N,) -> mean, None if it is not defined."""
    mean = float(values.mean())
    return None if math.isnan(mean) else mean


def best_row(values: Mapping[str, NDArray[Any]], metric: str) -> str:
    """(N,) values of a metric by name -> the first name with the best mean."""
    sign = -1 if lower_is_better(metric) else 1
    return max(values, key=lambda name: sign * float(values[name].mean()))


def means_and_margins(
    gains_by_model: Mapping[str, Mapping[str, NDArray[Any]]], sessions: NDArray[Any]
) -> dict[str, Any]:
    """Return {"results": means, "margins": margins} of gains, each by model and metric.

    A mean that is not defined is None.
    """
    return {
        "results": {
            model: {name: mean_or_none(values) for name, values in gains.items()}
            for model, gains in gains_by_model.items()
        },
        "margins": {
            model: {name: margin(values, sessions) for name, values in gains.items()}
            for model, gains in gains_by_model.items()
        },
    }


def list_metrics(
    exposure: NDArray[Any],
    cutoffs: tuple[int, ...],
    targets: NDArray[Any],
    popularity: NDArray[Any],
) -> dict[str, float | None]:
    """(C, items) exposure at each cutoff, (N,) targets -> metrics of the lists by `metric@K`.

    `popularity` (items,) are training interactions. The bias is None if no target occurs in
    training, and every metric is None without lists.
    """
    target_mean = popularity[targets[targets >= FIRST_ITEM] - FIRST_ITEM].sum() / max(
        len(targets), 1
    )
    values: dict[str, float | None] = {}
    for cutoff, shown in zip(cutoffs, exposure, strict=True):
        total = int(shown.sum())
        mean = float(shown @ popularity / total) if total else None
        values[f"coverage@{cutoff}"] = float((shown > 0).mean()) if total else None
        values[f"popularity@{cutoff}"] = mean
        values[f"popularity_bias@{cutoff}"] = (
            float(mean / target_mean) if mean is not None and target_mean else None
        )
    return values
