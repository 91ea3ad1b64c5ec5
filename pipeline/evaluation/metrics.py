"""Figures of an evaluation: from ranks, how well; from top-K lists, what is recommended at all.

The gains of a rank stand in `pipeline/model/ranking_metric.py`. Of the lists, at a cutoff K:

coverage: share of the catalogue that stands in at least one list (catalogue coverage; Ge,
Delgado-Battenfeld and Jannach, RecSys 2010).
popularity: mean number of training interactions of the items of a list, averaged over lists:
average recommendation popularity, ARP (Yin et al., "Challenging the long tail recommendation",
VLDB 2012; Abdollahpouri et al., "Managing popularity bias with personalized re-ranking", 2019).
popularity_bias: that over the mean number of the targets; 1 is as popular as what people chose,
above 1 leans to popular items. A target that training never saw has 0.

How sure a mean is: targets of one session are not independent, so the session is what counts.
The margin of a mean is half its 95 % interval by the cluster-robust variance (Liang and Zeger
1986; Cameron and Miller, "A practitioner's guide to cluster-robust inference", 2015), with
Student's t for as many sessions. It holds for other sessions of the same kind and for the model
as it is; another seed of training varies on top of it.
"""

import math
import re
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.model import ranking_metric
from pipeline.model.ranking_metric import METRICS as METRICS

LOWER_IS_BETTER = ("loss",)
LIST_METRICS = ("coverage", "popularity", "popularity_bias")
DEFAULT_CUTOFFS = (5, 10, 20)


_FEWEST_SESSIONS = 10
"""With fewer, an interval of gains between 0 and 1 is wider than what there is."""
_OTHER_NAMES = {"hr": "recall", "hit": "recall", "hit_rate": "recall"}
"""With one target each they are the same."""


class Metric(NamedTuple):
    """A ranking metric with its cutoff."""

    name: str
    """One of METRICS."""
    cutoff: int

    def __str__(self) -> str:
        return f"{self.name}@{self.cutoff}"


def parse_metric(text: str, where: str = "The metric") -> Metric:
    """`ndcg@20`, `hr@5` (which is recall@5) -> name and cutoff. ConfigError that begins by `where`
    if it is none.
    """
    found = re.fullmatch(r"([a-z_]+)@([1-9][0-9]*)", text.strip().lower())
    name = _OTHER_NAMES.get(found[1], found[1]) if found else None
    if found is None or name not in METRICS:
        known = ", ".join(f"{metric}@K" for metric in METRICS)
        raise ConfigError(
            f"{where} is {text!r}, expected one of {known} with a cutoff K from 1, such as ndcg@20 "
            "(hr@K is recall@K)."
        )
    return Metric(name, int(found[2]))


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


def gains(
    ranks: np.ndarray, cutoffs: tuple[int, ...], metrics: tuple[str, ...] = METRICS
) -> dict[str, np.ndarray]:
    """(N,) ranks -> (N,) what each is worth by `metric@K`; their means are the metrics."""
    found: dict[str, np.ndarray] = {}
    for cutoff in cutoffs:
        of_each = ranking_metric.gains_at(torch.from_numpy(ranks), cutoff)
        found |= {f"{metric}@{cutoff}": of_each[metric].numpy() for metric in metrics}
    return found


def margin(values: np.ndarray, sessions: np.ndarray) -> float | None:
    """(N,) gains or differences of gains, (N,) sessions in rising order -> half a 95 % interval.

    None where it cannot be told: with fewer than 10 sessions, or where all values are equal, as
    where nothing was hit.
    """
    starts = np.flatnonzero(np.diff(sessions, prepend=-1))
    if len(starts) < _FEWEST_SESSIONS:
        return None
    # what a session adds to the sum beyond what its number of targets would
    sums = np.add.reduceat(values - values.mean(), starts)
    variance = (sums**2).sum() / len(values) ** 2 * len(starts) / (len(starts) - 1)
    if variance <= np.finfo(np.float64).eps ** 2:
        return None
    return float(stdtrit(len(starts) - 1, 0.975) * math.sqrt(variance))


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
