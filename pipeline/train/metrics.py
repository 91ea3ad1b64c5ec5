"""Figures of an evaluation: from ranks, how well; from top-K lists, what is recommended at all.

The gains of a rank stand in `pipeline/model/ranking_metric.py`. Of the lists, at a cutoff K:

coverage: share of the catalogue that stands in at least one list (catalogue coverage; Ge,
Delgado-Battenfeld and Jannach, RecSys 2010).
popularity: mean number of training interactions of the items of a list, averaged over lists:
average recommendation popularity, ARP (Yin et al., "Challenging the long tail recommendation",
VLDB 2012; Abdollahpouri et al., "Managing popularity bias with personalized re-ranking", 2019).
popularity_bias: that over the mean number of the targets; 1 is as popular as what people chose,
above 1 leans to popular items. A target that training never saw has 0.
"""

from typing import NamedTuple

import numpy as np
import torch

from pipeline.core.columns import FIRST_ITEM
from pipeline.model import ranking_metric
from pipeline.model.ranking_metric import METRICS as METRICS

LOWER_IS_BETTER = ("loss",)
LIST_METRICS = ("coverage", "popularity", "popularity_bias")
DEFAULT_CUTOFFS = (5, 10, 20)


class Ranked(NamedTuple):
    """N targets with their ranks, in the order of sessions and positions, and N lists counted."""

    ranks: np.ndarray
    """(N,) 1-based; an unknown target is behind the whole catalogue."""
    targets: np.ndarray
    """(N,) item indices."""
    exposure: np.ndarray
    """(C, items) for each of C lengths, how many of the N lists hold the item."""


def ranking_metrics(ranks: np.ndarray, cutoffs: tuple[int, ...]) -> dict[str, float]:
    """(N,) ranks -> means by `metric@K`; NaN where there is no rank."""
    return ranking_metric.means(torch.from_numpy(ranks), cutoffs)


def list_metrics(
    exposure: np.ndarray, cutoffs: tuple[int, ...], targets: np.ndarray, popularity: np.ndarray
) -> dict[str, float | None]:
    """(C, items) exposure at each cutoff, (N,) targets -> figures of the lists by `metric@K`.

    `popularity`: (items,) training interactions of each. The bias is None where training saw none
    of the targets, and everything is where there is no list.
    """
    chosen = popularity[targets[targets >= FIRST_ITEM] - FIRST_ITEM].sum() / max(len(targets), 1)
    values: dict[str, float | None] = {}
    for cutoff, shown in zip(cutoffs, exposure, strict=True):
        total = int(shown.sum())
        mean = float(shown @ popularity / total) if total else None
        values[f"coverage@{cutoff}"] = float((shown > 0).mean()) if total else None
        values[f"popularity@{cutoff}"] = mean
        values[f"popularity_bias@{cutoff}"] = (
            float(mean / chosen) if mean is not None and chosen else None
        )
    return values
