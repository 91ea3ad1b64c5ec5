"""Baselines that count: popularity, and item rules, scored by the last item of a prefix."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipeline.evaluation.baselines.ranking import (
    Array,
    Scores,
    chunks,
    drop_reserved,
    incidence,
    session_numbers,
)


@dataclass(frozen=True)
class Popularity:
    """The same scores for every prefix."""

    counts: sp.csr_array
    """(1, V) interactions of each item."""

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:  # noqa: ARG002
        """Ragged prefixes, (N + 1,) offsets -> all N prefixes on one row."""
        yield self.of_prefixes(np.arange(len(offsets) - 1))

    def of_prefixes(self, prefixes: Array) -> Scores:
        """(b,) prefixes -> their scores."""
        return Scores(self.counts, np.zeros_like(prefixes), prefixes)


def popularity(values: Array, offsets: Array, num_rows: int) -> Popularity:
    """Score = interactions of the item in training."""
    values, _ = drop_reserved(values, offsets)
    ones = np.ones_like(values)
    return Popularity(sp.csr_array((ones, (np.zeros_like(values), values)), shape=(1, num_rows)))


def recent_popularity(
    values: Array, offsets: Array, num_rows: int, recent: float = 0.1
) -> Popularity:
    """Score = interactions in the newest tenth of the training sessions; of equals, in all.

    Training sessions stand oldest first. After Ji et al., "A re-visit of the popularity baseline
    in recommender systems" (SIGIR 2020), which counts what is recent alone.
    """
    every = popularity(values, offsets, num_rows).counts
    first = math.floor((len(offsets) - 1) * (1 - recent))
    newest = popularity(values, offsets[first:], num_rows).counts
    # whole numbers, so that equal counts are ties
    counts = newest * (int(every.sum()) + 1) + every
    return Popularity(sp.csr_array(counts))


@dataclass(frozen=True)
class ItemRules:
    """Scores that depend only on the last item of the prefix."""

    rows_of: Callable[[Array], sp.csr_array]
    """(R,) item indices -> (R, V) scores."""
    costs: Array
    """(V,) upper bound of the stored scores in the row of each item."""
    fallback: Popularity

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks with one row for each distinct last item."""
        values, offsets = drop_reserved(values, offsets)
        yield self.fallback.of_prefixes(np.flatnonzero(np.diff(offsets) == 0))
        prefixes = np.flatnonzero(np.diff(offsets))
        items, inverse = np.unique(values[offsets[prefixes + 1] - 1], return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(items) + 1))
        for chunk in chunks(self.costs[items]):
            members = order[bounds[chunk.start] : bounds[chunk.stop]]
            scores = self.rows_of(items[chunk])  # (R, V)
            yield Scores(scores, inverse[members] - chunk.start, prefixes[members])


def covisitation(values: Array, offsets: Array, num_rows: int) -> ItemRules:
    """Score = training sessions that hold the item and the last item of the prefix.

    An item is not its own neighbour. Association rules (AR) in the paper.
    """
    sessions = incidence(values, offsets, num_rows)  # (M, V)
    holders = sessions.T.tocsr()  # (V, M)

    def rows_of(items: Array) -> sp.csr_array:
        counts = holders[items] @ sessions  # (R, V)
        is_itself = counts.indices == np.repeat(items, np.diff(counts.indptr))
        counts.data[is_itself] = 0
        counts.eliminate_zeros()
        return counts

    # Rows are counted on demand: a single session of n items has n * n counts
    costs = holders @ np.diff(sessions.indptr)
    return ItemRules(rows_of, costs, popularity(values, offsets, num_rows))


def sequential_rules(
    values: Array, offsets: Array, num_rows: int, max_distance: int = 10
) -> ItemRules:
    """Score = sum of 1 / distance over the times the item came after the last item of the prefix.

    Distances in interactions, up to `max_distance`. An item may follow itself. SR in the paper,
    first in Kamehkhosh, Jannach & Ludewig, "A comparison of frequent pattern techniques and a
    deep learning method for session-based recommendation" (RecTemp 2017).
    """
    items, item_offsets = drop_reserved(values, offsets)
    session = session_numbers(item_offsets)
    # Counted in units that every distance divides: integers, so that equal sums are ties
    unit = math.lcm(*range(1, max_distance + 1))
    rules = sp.csr_array((num_rows, num_rows), dtype=np.float64)
    for distance in range(1, max_distance + 1):
        inside = session[distance:] == session[:-distance]
        pairs = items[:-distance][inside], items[distance:][inside]
        rules += sp.csr_array((np.full(inside.sum(), unit / distance), pairs), shape=rules.shape)
    rules /= unit
    fallback = popularity(values, offsets, num_rows)
    return ItemRules(rules.__getitem__, np.diff(rules.indptr), fallback)
