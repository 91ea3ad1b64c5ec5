"""Ragged sessions as the baselines count them.

Sessions are `values` (item indices, oldest interaction first) and `offsets` (one more). Reserved
indices are dropped before anything is counted, so that the interactions on either side become
neighbours.
"""

import numpy as np
import scipy.sparse as sp

from pipeline.core.columns import FIRST_ITEM
from pipeline.evaluation.baselines.ranking import Array


def drop_reserved(values: Array, offsets: Array) -> tuple[Array, Array]:
    """The same sessions without reserved indices; a session may end up empty."""
    values, offsets = values[offsets[0] : offsets[-1]], offsets - offsets[0]  # a slice starts later
    kept = values >= FIRST_ITEM
    return values[kept], np.concatenate([[0], np.cumsum(kept)])[offsets]


def session_numbers(offsets: Array) -> Array:
    """(M + 1,) offsets -> number of the session of each value."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def incidence(values: Array, offsets: Array, num_rows: int) -> sp.csr_array:
    """Ragged sessions -> (M, V) with 1 where a session holds an item."""
    values, offsets = drop_reserved(values, offsets)
    entries = np.ones(len(values), np.int64), (session_numbers(offsets), values)
    matrix = sp.csr_array(entries, shape=(len(offsets) - 1, num_rows))
    matrix.data[:] = 1  # repeated items were summed
    return matrix
