"""Ragged sessions in NumPy, the training data of counting models.

Sessions are `values` (item indices, oldest interaction first) and `offsets` (one more). Reserved
indices are dropped before anything is counted, so that the interactions on either side become
neighbours.

Letters: M training sessions, V rows of the item table.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM

Array = NDArray[np.int64]

ENTRIES_AT_ONCE = 1 << 22
"""Entries of sparse matrices per chunk of rows; ranking takes about 60 bytes each."""


def drop_reserved(values: Array, offsets: Array) -> tuple[Array, Array]:
    """Sessions without reserved indices; a session may become empty."""
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


def rows_of(matrix: sp.csr_array) -> Array:
    """Row of each stored entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def largest_of_rows(matrix: sp.csr_array, count: int) -> sp.csr_array:
    """Keep the `count` largest absolute values of each row; ties prefer the lower column."""
    longer = np.flatnonzero(np.diff(matrix.indptr) > count)
    if not len(longer):
        return matrix
    matrix.sort_indices()
    sizes = np.abs(matrix.data)
    kept = np.ones(matrix.nnz, bool)
    for row in longer:
        of_row = slice(*matrix.indptr[row : row + 2])
        order = np.argsort(-sizes[of_row], kind="stable")
        kept[of_row][order[count:]] = False
    entries = matrix.data[kept], (rows_of(matrix)[kept], matrix.indices[kept])
    return sp.csr_array(entries, shape=matrix.shape)


def chunks(costs: NDArray[Any], most: int | None = None) -> Iterator[slice]:
    """(R,) costs -> slices over 0..R-1 with a total cost of at most `most`, or of one row.

    `most` is ENTRIES_AT_ONCE by default.
    """
    most = ENTRIES_AT_ONCE if most is None else most
    ends = np.cumsum(costs)
    begin = 0
    while begin < len(ends):
        limit = ends[begin] - costs[begin] + most
        end = max(begin + 1, int(np.searchsorted(ends, limit, side="right")))
        yield slice(begin, end)
        begin = end
