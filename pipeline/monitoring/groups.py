"""Statistics of groups of requests and their recommendations, compared with training.

Drift is measured as in the report of a data directory (`pipeline.preprocessing.report.drift`):
population stability index (N. Siddiqi, 2006), with thresholds 0.1 and 0.25 on its excess over the
expectation from sample sizes (B. Yurdakul, 2018), and Jensen-Shannon distance (J. Lin, 1991).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM, ITEM, OUT_OF_VOCABULARY
from pipeline.data.directory import Data
from pipeline.data.sessions import read_sessions
from pipeline.monitoring.requests import NO_SESSION, Ragged, Requests
from pipeline.preprocessing.report.counts import CategoryTotals, count_categories
from pipeline.preprocessing.report.drift import (
    Drift,
    category_bins,
    measure_drift,
    number_bins,
)
from pipeline.preprocessing.report.histogram import Histogram


class SessionCounts:
    """Items and lengths of sessions, of training or of a server."""

    def __init__(self, sessions: Ragged, num_rows: int, max_length: int) -> None:
        """`sessions` hold item indices; lengths above `max_length` count as `max_length`."""
        lengths = sessions.lengths
        owner = np.repeat(np.arange(len(lengths)), lengths)
        self.items = CategoryTotals(num_rows)
        self.items.add(count_categories(sessions.values, owner, num_rows))
        self.lengths = Histogram.of(np.minimum(lengths, max_length).astype(np.float64))
        self.sessions = len(lengths)
        self.interactions = int(lengths.sum())
        squares = int((lengths**2).sum())
        self.effective_sessions = self.interactions**2 // squares if squares else 0
        """Kish's effective sample size: interactions of one session resemble each other."""


@dataclass(frozen=True)
class Exposure:
    """Exposure of a catalogue of V items in recommended lists."""

    coverage: float
    """Share of the catalogue in at least one list."""
    gini: float | None
    """Gini coefficient of the items' numbers of recommendations: 0 if all are equal, 1 - 1 / V if
    all recommendations are of one item."""
    top_1_percent: float | None
    """Share of the recommendations in the 1 % most recommended items."""
    outside: float
    """Share of the recommendations outside the training data, made by a model of other data."""


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of the requests of one version, on one day or all days."""

    requests: int
    sessions: int
    """Number of named sessions plus requests without a session."""
    unnamed: int
    """Requests without a session."""
    interactions: int
    """Interactions in the longest request of each session."""
    unknown_items: float | None
    """Share of the interactions with an item outside the training catalogue."""
    without_known: float | None
    """Share of the sessions without an item of the training catalogue."""
    items: Drift | None
    """Drift of the popularity of items; None without two bins to compare."""
    lengths: Drift | None
    """Drift of the lengths of sessions."""
    exposure: Exposure


class Training:
    """Training sessions as reference for served sessions."""

    def __init__(self, data: Data) -> None:
        column = read_sessions(data.path, "train", [ITEM])[ITEM].combine_chunks()
        sessions = Ragged(column.flatten().to_numpy(), column.offsets.to_numpy())
        recipe = data.recipe
        self.num_rows = data.fitted.item.num_rows
        self.max_length = recipe.max_sequence_length
        self.min_length = recipe.min_session_length
        self.counts = SessionCounts(sessions, self.num_rows, self.max_length)


def describe_group(requests: Requests, rows: NDArray[Any], training: Training) -> GroupStatistics:
    """Statistics of the requests at (M,) `rows`."""
    served = _longest(requests, rows)
    sessions = requests.items.take(served)
    in_catalogue = sessions.values < requests.num_catalogue
    indices = np.where(in_catalogue, sessions.values + FIRST_ITEM, OUT_OF_VOCABULARY)
    counts = SessionCounts(
        Ragged(indices, sessions.offsets), training.num_rows, training.max_length
    )
    num_known = np.add.reduceat(np.append(in_catalogue, 0), sessions.offsets[:-1])
    num_known[sessions.lengths == 0] = 0
    named = requests.sessions[rows] != NO_SESSION
    return GroupStatistics(
        requests=len(rows),
        sessions=len(served),
        unnamed=int((~named).sum()),
        interactions=counts.interactions,
        unknown_items=float(1 - in_catalogue.mean()) if len(in_catalogue) else None,
        without_known=float((num_known == 0).mean()),
        items=_item_drift(training.counts, counts),
        lengths=_length_drift(training, counts),
        exposure=describe_lists(requests.lists.take(rows).values, requests.num_catalogue),
    )


def describe_lists(items: NDArray[Any], num_catalogue: int) -> Exposure:
    """(N,) positions of recommended items -> exposure of the catalogue."""
    inside = items[items < num_catalogue]
    shown = np.sort(np.bincount(inside, minlength=num_catalogue))
    total, gini, top = int(shown.sum()), None, None
    if total:
        ranks = np.arange(1, num_catalogue + 1)
        gini = float(2 * (ranks * shown).sum() / (num_catalogue * total)) - 1 - 1 / num_catalogue
        top = float(shown[-math.ceil(num_catalogue / 100) :].sum() / total)
    return Exposure(
        coverage=float((shown > 0).mean()),
        gini=gini,
        top_1_percent=top,
        outside=1 - len(inside) / max(len(items), 1),
    )


def _longest(requests: Requests, rows: NDArray[Any]) -> NDArray[Any]:
    """Return the number of the longest request of each session, the last one for ties.

    A request without a session counts as a session.
    """
    sessions, lengths = requests.sessions[rows], requests.items.lengths[rows]
    named = sessions != NO_SESSION
    order = np.lexsort((rows, lengths, sessions))
    order = order[named[order]]
    ends = np.flatnonzero(np.diff(sessions[order], append=NO_SESSION))
    return np.sort(np.concatenate([rows[order[ends]], rows[~named]]))


def _item_drift(training: SessionCounts, served: SessionCounts) -> Drift | None:
    n, m = training.effective_sessions, served.effective_sessions
    if min(n, m) == 0:
        return None
    return measure_drift(category_bins(training.items, served.items, min(n, m)), n, m)


def _length_drift(training: Training, served: SessionCounts) -> Drift | None:
    """Drift of session lengths, cut as in training."""
    minimum = float(training.min_length)
    n, m = training.counts.sessions, served.lengths.at_least(minimum).count
    if min(n, m) == 0:
        return None
    bins = number_bins(training.counts.lengths, served.lengths, min(n, m), minimum)
    return measure_drift(bins, n, m)
