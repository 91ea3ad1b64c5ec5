"""Ranks of targets by the sparse scores of a baseline, a chunk of prefixes at a time.

Sessions are ragged: `values` (item indices, oldest interaction first) and `offsets` (one more).
Reserved indices are dropped before anything is counted, so that the interactions on either side
become neighbours.

Letters: N prefixes, V rows of the item table, R rows of scores, b of a chunk, C lengths of lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM
from pipeline.evaluation.metrics import Ranked

Array = NDArray[np.int64]

_SCORES_AT_ONCE = 1 << 22
"""Stored scores in one chunk; ranking them takes about 60 bytes each."""


class Scores(NamedTuple):
    """Scores of some prefixes. Prefixes may share a row; what is not stored scores 0."""

    matrix: sp.csr_array
    """(R, V) positive scores, none in a reserved column."""
    rows: Array
    """(b,): the row of each prefix."""
    prefixes: Array
    """(b,): which prefixes these are, 0..N-1."""


class Baseline(Protocol):
    """A fitted baseline that scores the catalogue for every prefix."""

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks that hold every prefix once."""


def rank_by_baseline(
    baseline: Baseline,
    values: Array,
    offsets: Array,
    targets: Array,
    *,
    num_items: int,
    list_lengths: tuple[int, ...] = (),
    keep_lists: bool = False,
) -> Ranked:
    """Rank each target among all items; count how many lists of `list_lengths` hold each item.

    A rank is the number of items that score at least what the target scores: ties count against
    the baseline, and a target without a score is last. A reserved target (out of the vocabulary)
    ranks behind the catalogue, at `num_items` + 1. A list holds the best scores, of equal ones the
    lower index; items without a score only where those with one are too few. With `keep_lists`
    the longest lists are kept. ValueError unless each prefix has a target.
    """
    if len(offsets) != len(targets) + 1:
        raise ValueError(f"{len(offsets) - 1} prefixes but {len(targets)} targets")
    ranks = np.empty(len(targets), np.int64)
    exposure = np.zeros((len(list_lengths), num_items), np.int64)
    longest = min(max(list_lengths, default=0), num_items)
    lists = np.empty((len(targets), longest), np.int32) if keep_lists else None
    for matrix, rows, prefixes in baseline.scores(values, offsets):
        if not len(prefixes):
            continue  # scipy returns a sparse array for an empty look-up
        order = _best_first(matrix)
        chunk_targets = targets[prefixes]
        # (b,), 0 for a target without a score
        stored = _ranks_in_row(matrix, order)[rows, chunk_targets]
        ranks[prefixes] = np.select(
            [chunk_targets < FIRST_ITEM, stored == 0], [num_items + 1, num_items], stored
        )
        if list_lengths:
            num_lists = np.bincount(rows, minlength=matrix.shape[0])
            best = _best_items(matrix, order, longest)
            exposure += _exposure(best, num_lists, list_lengths, num_items)
            if lists is not None:
                lists[prefixes] = best[rows]
    return Ranked(ranks, targets, exposure, lists)


@dataclass(frozen=True)
class WithoutSeen:
    """A baseline without scores for the items of the prefix, for logs in which no item comes twice.

    The published metrics of the leave-one-out data sets are measured so. A target that is in its
    own prefix cannot be hit then, as it would never be recommended.
    """

    baseline: Baseline
    seen: sp.csr_array
    """(N, V) 1 for the items of the whole prefixes, also of what the baseline does not read."""

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks with one row for each prefix."""
        for matrix, rows, prefixes in self.baseline.scores(values, offsets):
            for chunk in chunks(np.diff(matrix.indptr)[rows]):
                own = matrix[rows[chunk]]  # (b, V)
                kept = own - own.multiply(self.seen[prefixes[chunk]]).tocsr()
                yield Scores(kept, np.arange(own.shape[0]), prefixes[chunk])


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


def chunks(costs: NDArray[Any]) -> Iterator[slice]:
    """(R,) costs -> slices over 0..R-1 of at most _SCORES_AT_ONCE together, or of one row."""
    ends = np.cumsum(costs)
    begin = 0
    while begin < len(ends):
        limit = ends[begin] - costs[begin] + _SCORES_AT_ONCE
        end = max(begin + 1, int(np.searchsorted(ends, limit, side="right")))
        yield slice(begin, end)
        begin = end


def _rows(matrix: sp.csr_array) -> Array:
    """Row of each stored entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _best_first(matrix: sp.csr_array) -> Array:
    """Positions of the stored entries row by row, best first, of equal ones the lower index."""
    matrix.sort_indices()
    return np.lexsort((-matrix.data, _rows(matrix)))


def _ranks_in_row(matrix: sp.csr_array, order: Array) -> sp.csr_array:
    """The same structure, each entry the number of entries in its row that are at least it."""
    rows, values = _rows(matrix), matrix.data[order]
    ends_tie = np.ones(matrix.nnz, bool)
    ends_tie[:-1] = (np.diff(values) != 0) | (np.diff(rows) != 0)
    last = np.flatnonzero(ends_tie)
    ranks = np.empty(matrix.nnz, np.int64)
    ranks[order] = np.repeat(last + 1, np.diff(last, prepend=-1)) - matrix.indptr[rows]
    return sp.csr_array((ranks, matrix.indices, matrix.indptr), shape=matrix.shape)


def _best_items(matrix: sp.csr_array, order: Array, longest: int) -> NDArray[np.int32]:
    """(R, V) scores -> (R, longest) items from 0, best first."""
    best = np.empty((matrix.shape[0], longest), np.int32)
    step = max(1, _SCORES_AT_ONCE // longest)
    for first in range(0, matrix.shape[0], step):
        rows = np.arange(first, min(first + step, matrix.shape[0]))
        best[rows] = _best_in_rows(matrix, order, rows, longest) - FIRST_ITEM
    return best


def _exposure(
    best: NDArray[np.int32], num_lists: Array, lengths: tuple[int, ...], num_items: int
) -> Array:
    """(R, longest) items, (R,) lists made of each row -> (C, items): lists that hold each item."""
    counts = np.zeros((len(lengths), num_items), np.int64)
    step = max(1, _SCORES_AT_ONCE // best.shape[1])
    for first in range(0, len(best), step):
        rows = slice(first, first + step)
        for counted, length in zip(counts, lengths, strict=True):
            shown = best[rows, :length]
            times = np.repeat(num_lists[rows], shown.shape[1])
            counted += np.bincount(shown.ravel(), times, num_items).astype(np.int64)
    return counts


def _best_in_rows(matrix: sp.csr_array, order: Array, rows: Array, count: int) -> Array:
    """(R, V), (r,) rows -> (r, count) columns, best first.

    A row with fewer scores continues with the lowest indices without a score.
    """
    stored = np.diff(matrix.indptr)[rows]
    nth = np.arange(count)
    best = np.zeros((len(rows), count), np.int64)
    filled = nth < stored[:, np.newaxis]
    best[filled] = matrix.indices[order[(matrix.indptr[rows, np.newaxis] + nth)[filled]]]
    short = np.flatnonzero(stored < count)
    if len(short):
        # among twice `count` of the lowest indices a short row has enough without a score
        width = min(2 * count, matrix.shape[1] - FIRST_ITEM)
        lowest = matrix[rows[short]][:, FIRST_ITEM : FIRST_ITEM + width]
        free = lowest.toarray() == 0  # (r, width)
        free &= np.cumsum(free, axis=1) <= (count - stored[short])[:, np.newaxis]
        missing = np.zeros_like(filled)
        missing[short] = ~filled[short]
        best[missing] = np.nonzero(free)[1] + FIRST_ITEM
    return best
