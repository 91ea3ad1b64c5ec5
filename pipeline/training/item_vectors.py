"""Co-visitation vectors: initial item vectors from co-occurrence in sessions.

They are a closed form of word2vec's skip-gram: a factorization of the positive pointwise mutual
information of items, with counts that decay with distance and smoothed contexts (Levy et al.,
"Improving distributional similarity with lessons learned from word embeddings", TACL 2015), by a
few steps of subspace iteration from random vectors (Halko et al., "Finding structure with
randomness", SIAM Review 2011).
"""

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM

WINDOW = 5
"""Maximum distance between neighbours, in interactions."""
_CONTEXT_POWER = 0.75
"""Exponent that smooths the counts of contexts, without which rare items dominate."""
_OVERSAMPLING = 16
"""Additional dimensions of the iteration, which improve its accuracy."""
_ITERATIONS = 4


def co_visitation_vectors(
    values: NDArray[np.int64],
    offsets: NDArray[np.int64],
    num_rows: int,
    width: int,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Ragged sessions -> vectors (V, width) of length 1, or 0 for an item without neighbours.

    Rows of the reserved indices are 0, and so are dimensions beyond the number of items.
    """
    information = _information(_neighbours(values, offsets, num_rows))
    generator = np.random.default_rng(seed)
    rank = min(width + _OVERSAMPLING, num_rows)
    basis = generator.standard_normal((num_rows, rank), dtype=np.float32)
    for _ in range(_ITERATIONS):
        basis, _ = np.linalg.qr(information @ basis)
    sizes, directions = np.linalg.eigh(basis.T @ (information @ basis))
    largest = np.argsort(-sizes)[:width]
    # the square root splits each eigenvalue between items and contexts
    scale = np.sqrt(np.maximum(sizes[largest], 0))
    vectors = np.zeros((num_rows, width), np.float32)
    vectors[:, : len(largest)] = (basis @ directions[:, largest]) * scale
    has_neighbour = np.diff(information.indptr) > 0
    vectors[~has_neighbour] = 0
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _neighbours(
    values: NDArray[np.int64], offsets: NDArray[np.int64], num_rows: int
) -> sp.csr_array:
    """Symmetric counts (V, V) of items within WINDOW of each other, weighted by 1 / distance."""
    session = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    counts = sp.csr_array((num_rows, num_rows), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        before, after = values[:-distance], values[distance:]
        together = session[:-distance] == session[distance:]
        together &= (before >= FIRST_ITEM) & (after >= FIRST_ITEM) & (before != after)
        weights = np.full(int(together.sum()), 1 / distance, np.float32)
        pairs = (before[together], after[together])
        counts = counts + sp.coo_array((weights, pairs), (num_rows, num_rows)).tocsr()
    return sp.csr_array(counts + counts.T)


def _information(counts: sp.csr_array) -> sp.csr_array:
    """Counts -> symmetrized positive pointwise mutual information."""
    totals = np.asarray(counts.sum(1)).ravel()
    contexts = totals**_CONTEXT_POWER
    contexts /= max(contexts.sum(), np.finfo(np.float32).tiny)
    pairs = counts.tocoo()
    rows, columns = pairs.coords
    values = np.log(pairs.data / (totals[rows] * contexts[columns]))
    positive = values > 0
    information = sp.csr_array(
        (values[positive], (rows[positive], columns[positive])), counts.shape, dtype=np.float32
    )
    return sp.csr_array((information + information.T) / 2)
