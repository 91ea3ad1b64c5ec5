"""Item vectors to begin training with, from which items stand near each other in sessions.

They are what word2vec's skip-gram would learn, in closed form: positive pointwise mutual
information of items, with counts that fall with the distance and smoothed contexts, factorised
(Levy et al., "Improving distributional similarity with lessons learned from word embeddings",
TACL 2015), by a few steps of subspace iteration from random vectors (Halko et al., "Finding
structure with randomness", SIAM Review 2011).
"""

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM

WINDOW = 5
"""Interactions between which items count as neighbours."""
_CONTEXT_POWER = 0.75
"""Of how often an item is a neighbour: rare ones would otherwise have the largest information."""
_OVERSAMPLING = 16
"""Dimensions more than wanted, which make the wanted ones accurate."""
_ITERATIONS = 4


def co_visitation_vectors(
    values: NDArray[np.int64],
    offsets: NDArray[np.int64],
    num_rows: int,
    width: int,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Ragged sessions -> (V, width) vectors of length 1; 0 of an item without neighbours.

    Rows of the reserved indices are 0 too. Where there are fewer dimensions than `width`, the
    last ones are 0.
    """
    information = _information(_neighbours(values, offsets, num_rows))
    generator = np.random.default_rng(seed)
    rank = min(width + _OVERSAMPLING, num_rows)
    basis = generator.standard_normal((num_rows, rank), dtype=np.float32)
    for _ in range(_ITERATIONS):
        basis, _ = np.linalg.qr(information @ basis)
    sizes, directions = np.linalg.eigh(basis.T @ (information @ basis))
    largest = np.argsort(-sizes)[:width]
    # half of each eigenvalue belongs to an item, half to its neighbours
    scale = np.sqrt(np.maximum(sizes[largest], 0))
    vectors = np.zeros((num_rows, width), np.float32)
    vectors[:, : len(largest)] = (basis @ directions[:, largest]) * scale
    known = np.diff(information.indptr) > 0
    vectors[~known] = 0
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _neighbours(
    values: NDArray[np.int64], offsets: NDArray[np.int64], num_rows: int
) -> sp.csr_array:
    """(V, V) symmetric: how often two items stand within WINDOW, by 1 / distance."""
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
    """Counts -> positive pointwise mutual information, made symmetric."""
    totals = np.asarray(counts.sum(1)).ravel()
    contexts = totals**_CONTEXT_POWER
    contexts /= max(contexts.sum(), np.finfo(np.float32).tiny)
    pairs = counts.tocoo()
    rows, columns = pairs.coords
    found = np.log(pairs.data / (totals[rows] * contexts[columns]))
    positive = found > 0
    information = sp.csr_array(
        (found[positive], (rows[positive], columns[positive])), counts.shape, dtype=np.float32
    )
    return sp.csr_array((information + information.T) / 2)
