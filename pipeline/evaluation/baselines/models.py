"""Baselines without a network, to stand beside every result of a model.

Popularity, co-visitation, sequential rules and session-kNN after Ludewig & Jannach, "Evaluation
of session-based recommendation algorithms" (UMUAI 2018). All count in sparse matrices, a bounded
number of stored scores at a time, so that no (N, V) array ever exists.

Sessions are ragged: `values` (item indices, oldest interaction first) and `offsets` (one more).
Reserved indices in them are dropped before anything is counted, so that the interactions on
either side become neighbours. A prefix without a known item is scored by popularity.

Letters: N prefixes, M training sessions, V rows of the item table, R rows of scores, b of a chunk.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipeline.core.columns import FIRST_ITEM
from pipeline.evaluation.baselines.ranking import Array, Baseline, Scores, chunks, rank_by_baseline
from pipeline.evaluation.metrics import Ranked

BASELINES = (
    *("popularity", "recent-popularity"),
    *("co-visitation", "sequential-rules", "session-knn"),
)


def rank_by_baselines(
    train_values: Array,
    train_offsets: Array,
    num_rows: int,
    prefix_values: Array,
    prefix_offsets: Array,
    targets: Array,
    *,
    list_lengths: tuple[int, ...] = (),
    seen: tuple[Array, Array] | None = None,
) -> Iterator[tuple[str, Ranked]]:
    """Fit every baseline in turn and give its name with what `rank_by_baseline` gives.

    `num_rows` is V; training sessions stand oldest first. `seen`, ragged, is what came before each
    target, where that is left out of the ranking.
    """
    from pipeline.evaluation.baselines.filter_seen import WithoutSeen

    for fit in (popularity, recent_popularity, covisitation, sequential_rules, session_knn):
        baseline: Baseline = fit(train_values, train_offsets, num_rows)
        if seen is not None:
            baseline = WithoutSeen(baseline, *seen)
        yield (
            baseline.name,
            rank_by_baseline(
                baseline,
                prefix_values,
                prefix_offsets,
                targets,
                num_items=num_rows - FIRST_ITEM,
                list_lengths=list_lengths,
            ),
        )


@dataclass(frozen=True)
class Popularity:
    """The same scores for every prefix."""

    counts: sp.csr_array
    """(1, V) interactions of each item."""
    name: str = "popularity"

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:  # noqa: ARG002
        """Ragged prefixes, (N + 1,) offsets -> all N prefixes on one row."""
        yield self.of_prefixes(np.arange(len(offsets) - 1))

    def of_prefixes(self, prefixes: Array) -> Scores:
        """(b,) prefixes -> their scores."""
        return Scores(self.counts, np.zeros_like(prefixes), prefixes)


@dataclass(frozen=True)
class ItemRules:
    """Scores that depend on the last known item of the prefix alone."""

    name: str
    rows_of: Callable[[Array], sp.csr_array]
    """(R,) item indices -> (R, V) scores."""
    costs: Array
    """(V,): at least the stored scores in the row of each item."""
    fallback: Popularity

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks with one row for each distinct last item."""
        values, offsets = _drop_reserved(values, offsets)
        yield self.fallback.of_prefixes(np.flatnonzero(np.diff(offsets) == 0))
        prefixes = np.flatnonzero(np.diff(offsets))
        items, inverse = np.unique(values[offsets[prefixes + 1] - 1], return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(items) + 1))
        for chunk in chunks(self.costs[items]):
            members = order[bounds[chunk.start] : bounds[chunk.stop]]
            scores = self.rows_of(items[chunk])  # (R, V)
            yield Scores(scores, inverse[members] - chunk.start, prefixes[members])


@dataclass(frozen=True)
class SessionKnn:
    """Scores by the training sessions that resemble the prefix."""

    postings: sp.csr_array
    """(V, M): the newest training sessions of each item, as 1 / the session's norm."""
    sessions: sp.csr_array
    """(M, V): 1 where a training session holds an item."""
    num_neighbours: int
    fallback: Popularity
    name: str = "session-knn"

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks with one row for each prefix."""
        values, offsets = _drop_reserved(values, offsets)
        yield self.fallback.of_prefixes(np.flatnonzero(np.diff(offsets) == 0))
        prefixes = np.flatnonzero(np.diff(offsets))
        weights = _weigh_prefixes(values, offsets, self.sessions.shape[1])[prefixes]
        candidates = weights.sign() @ np.diff(self.postings.indptr)
        lengths = np.diff(self.sessions.indptr).astype(np.float64)
        # A session of many items is a neighbour more often: its length counts by its length
        length = (lengths**2).sum() / max(lengths.sum(), 1)
        costs = candidates + np.minimum(candidates, self.num_neighbours) * length
        for chunk in chunks(costs):
            similarities = weights[chunk] @ self.postings  # (b, M)
            scores = _keep_largest(similarities, self.num_neighbours) @ self.sessions  # (b, V)
            # float32 so that sums which differ by their order of addition alone are ties
            yield Scores(scores.astype(np.float32), np.arange(scores.shape[0]), prefixes[chunk])


def popularity(values: Array, offsets: Array, num_rows: int) -> Popularity:
    """Score = interactions of the item in training."""
    values, _ = _drop_reserved(values, offsets)
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
    return Popularity(sp.csr_array(counts), "recent-popularity")


def covisitation(values: Array, offsets: Array, num_rows: int) -> ItemRules:
    """Score = training sessions that hold the item and the last item of the prefix.

    An item is not its own neighbour. Association rules (AR) in the paper.
    """
    sessions = _incidence(values, offsets, num_rows)  # (M, V)
    holders = sessions.T.tocsr()  # (V, M)

    def rows_of(items: Array) -> sp.csr_array:
        together = holders[items] @ sessions  # (R, V)
        itself = together.indices == np.repeat(items, np.diff(together.indptr))
        together.data[itself] = 0
        together.eliminate_zeros()
        return together

    # Rows are made when asked for: a single session of n items makes n * n counts
    costs = holders @ np.diff(sessions.indptr)
    return ItemRules("co-visitation", rows_of, costs, popularity(values, offsets, num_rows))


def sequential_rules(
    values: Array, offsets: Array, num_rows: int, max_distance: int = 10
) -> ItemRules:
    """Score = sum of 1 / distance over the times the item came after the last item of the prefix.

    Distances in interactions, up to `max_distance`. An item may follow itself. SR in the paper,
    first in Kamehkhosh, Jannach & Ludewig, "A comparison of frequent pattern techniques and a
    deep learning method for session-based recommendation" (RecTemp 2017).
    """
    known, known_offsets = _drop_reserved(values, offsets)
    session = _session_of(known_offsets)
    # Counted in units that every distance divides: integers, so that equal sums are ties
    unit = math.lcm(*range(1, max_distance + 1))
    rules = sp.csr_array((num_rows, num_rows), dtype=np.float64)
    for distance in range(1, max_distance + 1):
        inside = session[distance:] == session[:-distance]
        pairs = known[:-distance][inside], known[distance:][inside]
        rules += sp.csr_array((np.full(inside.sum(), unit / distance), pairs), shape=rules.shape)
    rules /= unit
    fallback = popularity(values, offsets, num_rows)
    return ItemRules("sequential-rules", rules.__getitem__, np.diff(rules.indptr), fallback)


def session_knn(
    values: Array, offsets: Array, num_rows: int, num_neighbours: int = 200, num_newest: int = 1000
) -> SessionKnn:
    """Score = sum of similarities of the nearest training sessions that hold the item.

    Similarity is the cosine of the prefix, each item weighted by 1 / its distance from the end,
    and a training session as a set: V-SkNN in the paper, where the weights fall linearly. Only the
    `num_newest` training sessions of each item are compared, as in VMIS-kNN (Kersbergen et al.,
    "Serenade", SIGMOD 2022). Training sessions stand oldest first; of equally similar ones the
    newer is nearer.
    """
    # Chosen on the held-out ends of two training logs: 1 / distance beats a linear decay, and that
    # equal weights; more neighbours than 200 or more sessions an item than 500 gained nothing
    sessions = _incidence(values, offsets, num_rows)  # (M, V)
    norms = np.sqrt(np.maximum(np.diff(sessions.indptr), 1))
    postings = sp.csr_array(sp.diags_array(1 / norms) @ sessions).T.tocsr()  # (V, M)
    postings.sort_indices()
    from_end = np.repeat(postings.indptr[1:], np.diff(postings.indptr)) - np.arange(postings.nnz)
    postings.data[from_end > num_newest] = 0
    postings.eliminate_zeros()
    return SessionKnn(postings, sessions, num_neighbours, popularity(values, offsets, num_rows))


def _drop_reserved(values: Array, offsets: Array) -> tuple[Array, Array]:
    """The same sessions without reserved indices; a session may end up empty."""
    values, offsets = values[offsets[0] : offsets[-1]], offsets - offsets[0]  # a slice starts later
    known = values >= FIRST_ITEM
    return values[known], np.concatenate([[0], np.cumsum(known)])[offsets]


def _session_of(offsets: Array) -> Array:
    """(M + 1,) -> the session of each value."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _incidence(values: Array, offsets: Array, num_rows: int) -> sp.csr_array:
    """Ragged sessions -> (M, V) with 1 where a session holds an item."""
    values, offsets = _drop_reserved(values, offsets)
    entries = np.ones(len(values), np.int64), (_session_of(offsets), values)
    matrix = sp.csr_array(entries, shape=(len(offsets) - 1, num_rows))
    matrix.data[:] = 1  # repeated items were summed
    return matrix


def _weigh_prefixes(values: Array, offsets: Array, num_rows: int) -> sp.csr_array:
    """Ragged prefixes -> (N, V): 1 / distance from the end, of an item's newest interaction.

    Not divided by the norm of the prefix, which is the same for all of its neighbours.
    """
    prefix = _session_of(offsets)
    distance = offsets[prefix + 1] - np.arange(len(values))
    order = np.lexsort((distance, values, prefix))
    same = (np.diff(prefix[order]) == 0) & (np.diff(values[order]) == 0)
    newest = order[np.concatenate([[True], ~same])] if len(order) else order
    entries = 1 / distance[newest], (prefix[newest], values[newest])
    return sp.csr_array(entries, shape=(len(offsets) - 1, num_rows))


def _keep_largest(matrix: sp.csr_array, count: int) -> sp.csr_array:
    """Keep the `count` largest entries of each row; of equal ones those furthest right."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.indices, -matrix.data.astype(np.float32), rows))
    kept = order[np.arange(matrix.nnz) - matrix.indptr[rows] < count]
    entries = matrix.data[kept], (rows[kept], matrix.indices[kept])
    return sp.csr_array(entries, shape=matrix.shape)
