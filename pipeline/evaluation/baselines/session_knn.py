"""Session-kNN: items of the training sessions that are most similar to the prefix."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipeline.evaluation.baselines.item_rules import Popularity, popularity
from pipeline.evaluation.baselines.ranking import (
    Array,
    Scores,
    chunks,
    drop_reserved,
    incidence,
    session_numbers,
)


@dataclass(frozen=True)
class SessionKnn:
    """Scores by the training sessions that are most similar to the prefix."""

    postings: sp.csr_array
    """(V, M): the newest training sessions of each item, as 1 / the session's norm."""
    sessions: sp.csr_array
    """(M, V): 1 where a training session holds an item."""
    num_neighbours: int
    fallback: Popularity

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks with one row for each prefix."""
        values, offsets = drop_reserved(values, offsets)
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


def session_knn(
    values: Array, offsets: Array, num_rows: int, num_neighbours: int = 200, num_newest: int = 1000
) -> SessionKnn:
    """Score = sum of similarities of the nearest training sessions that hold the item.

    Similarity is the cosine of the prefix, each item weighted by 1 / its distance from the end,
    and a training session as a set: V-SkNN in the paper, where the weights fall linearly. Only the
    `num_newest` training sessions of each item are compared, as in VMIS-kNN (Kersbergen et al.,
    "Serenade", SIGMOD 2022). Training sessions are oldest first; of equally similar ones the
    newer is nearer.
    """
    # Chosen on the held-out ends of two training logs: 1 / distance beats a linear decay, and that
    # equal weights; more neighbours than 200 or more sessions an item than 500 gained nothing
    sessions = incidence(values, offsets, num_rows)  # (M, V)
    norms = np.sqrt(np.maximum(np.diff(sessions.indptr), 1))
    postings = sp.csr_array(sp.diags_array(1 / norms) @ sessions).T.tocsr()  # (V, M)
    postings.sort_indices()
    from_end = np.repeat(postings.indptr[1:], np.diff(postings.indptr)) - np.arange(postings.nnz)
    postings.data[from_end > num_newest] = 0
    postings.eliminate_zeros()
    return SessionKnn(postings, sessions, num_neighbours, popularity(values, offsets, num_rows))


def _weigh_prefixes(values: Array, offsets: Array, num_rows: int) -> sp.csr_array:
    """Ragged prefixes -> (N, V): 1 / distance from the end, of an item's newest interaction.

    Not divided by the norm of the prefix, which is the same for all of its neighbours.
    """
    prefix = session_numbers(offsets)
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
