"""What some requests asked, and what they were shown, compared with training.

Drift is measured as in the report of a data directory (`pipeline.preprocessing.report.drift`):
population stability index (N. Siddiqi, 2006) with its thresholds 0.1 and 0.25 on the part above
what the sample sizes alone make (B. Yurdakul, 2018), and Jensen-Shannon distance (J. Lin, 1991).
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
        """`sessions` hold item indices; those beyond `max_length` interactions count as it."""
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
    """What lists showed, over the catalogue of V items."""

    coverage: float
    """Share of the catalogue that some list holds."""
    gini: float | None
    """Of how often each item was shown, those never shown too: 0 if all are equal, 1 - 1 / V if one
    item is all that was shown."""
    top_1_percent: float | None
    """Share of what was shown that is of the one in a hundred items shown most."""
    outside: float
    """Share of what was shown that the training data lack: of a model of other data."""


@dataclass(frozen=True)
class GroupStatistics:
    """Requests of one version, on one day or all."""

    requests: int
    sessions: int
    """Sessions with a name, and requests without one."""
    unnamed: int
    """Requests without a session."""
    interactions: int
    """Of the longest request of each session."""
    unknown_items: float | None
    """Share of the interactions whose item is not in the catalogue of the training data."""
    without_known: float | None
    """Share of the sessions that have no item of it."""
    items: Drift | None
    """Drift of the popularity of items; None without two bins to compare."""
    lengths: Drift | None
    """Drift of the lengths of sessions."""
    exposure: Exposure


class Training:
    """Training sessions that served ones are compared with."""

    def __init__(self, data: Data) -> None:
        column = read_sessions(data.path, "train", [ITEM])[ITEM].combine_chunks()
        sessions = Ragged(column.flatten().to_numpy(), column.offsets.to_numpy())
        recipe = data.recipe
        self.num_rows = data.fitted.item.num_rows
        self.max_length = recipe.max_sequence_length
        self.min_length = recipe.min_session_length
        self.counts = SessionCounts(sessions, self.num_rows, self.max_length)


def describe_group(requests: Requests, rows: NDArray[Any], training: Training) -> GroupStatistics:
    """Statistics of some requests, by their (M,) numbers."""
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
    """(N,) positions of what was shown -> how it spreads over the catalogue."""
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
    """Return the numbers of the longest request of each session, the last of equal ones.

    A request without a session is one by itself.
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
    """Drift of the lengths that training keeps."""
    minimum = float(training.min_length)
    n, m = training.counts.sessions, served.lengths.at_least(minimum).count
    if min(n, m) == 0:
        return None
    bins = number_bins(training.counts.lengths, served.lengths, min(n, m), minimum)
    return measure_drift(bins, n, m)
