"""Ranks of targets by the sparse scores of a baseline, in chunks of prefixes.

Letters: N prefixes, b of them in a chunk, V rows of the item table, R rows of scores, C cutoffs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.evaluation.metrics import Ranked
from pipeline.model.counting.scorer import Scorer, newest_values
from pipeline.model.counting.sessions import Array, chunks, drop_reserved, rows_of

_SCORES_AT_ONCE = 1 << 22
"""Stored scores per chunk; ranking takes about 60 bytes each."""


class Scores(NamedTuple):
    """Sparse scores of prefixes, which may share a row; items that are not stored score 0."""

    matrix: sp.csr_array
    """(R, V) positive scores; reserved columns are empty."""
    rows: Array
    """(b,) row of each prefix."""
    prefixes: Array
    """(b,) numbers of the prefixes, 0..N-1."""


class Baseline(Protocol):
    """A fitted baseline that scores the catalogue for every prefix."""

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks that together hold each prefix once."""


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
    """Rank each target among all items; count the lists of each of `list_lengths` with each item.

    A rank is the number of items that score at least as high as the target: ties count against the
    baseline, and a target without a score is last. A reserved target (out of vocabulary) has rank
    `num_items` + 1. Lists are ordered by score, ties by index, and filled up with items without a
    score. `keep_lists` keeps the longest lists. ValueError unless each prefix has a target.
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
    """A baseline that never recommends items of the prefix, for logs without repeated items.

    Published metrics of leave-one-out data sets use this protocol. A target in its own prefix
    cannot be hit.
    """

    baseline: Baseline
    seen: sp.csr_array
    """(N, V) 1 for the items of whole prefixes, including those that the baseline does not read."""

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks with one row per prefix."""
        for matrix, rows, prefixes in self.baseline.scores(values, offsets):
            for chunk in chunks(np.diff(matrix.indptr)[rows], _SCORES_AT_ONCE):
                own = matrix[rows[chunk]]  # (b, V)
                kept = own - own.multiply(self.seen[prefixes[chunk]]).tocsr()
                yield Scores(kept, np.arange(own.shape[0]), prefixes[chunk])


@dataclass(frozen=True, eq=False)
class FittedBaseline:
    """A counting model as a baseline, with the entries of its scorer computed in chunks."""

    scorer: Scorer

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks; prefixes with equal newest values share a
        row."""
        newest = _newest_values(*drop_reserved(values, offsets), self.scorer.reads)
        is_read = (newest > 0).any(1).numpy()
        unread = np.flatnonzero(~is_read)
        popularity = np.pad(self.scorer.popularity.numpy(), (FIRST_ITEM, 0))[np.newaxis]
        yield Scores(sp.csr_array(popularity), np.zeros_like(unread), unread)
        prefixes = np.flatnonzero(is_read)
        if self.scorer.reads == 1:  # many prefixes share few values
            queries, rows = torch.unique(newest[prefixes], dim=0, return_inverse=True)
        else:
            queries, rows = newest[prefixes], torch.arange(len(prefixes))
        order = np.argsort(rows.numpy(), kind="stable")
        bounds = np.searchsorted(rows.numpy()[order], np.arange(len(queries) + 1))
        for begin in range(0, len(queries), self.scorer.rows_at_once):
            part = queries[begin : begin + self.scorer.rows_at_once]
            members = order[bounds[begin] : bounds[begin + len(part)]]
            matrix = self._matrix(part)
            yield Scores(matrix, rows.numpy()[members] - begin, prefixes[members])

    @torch.inference_mode()
    def _matrix(self, queries: Tensor) -> sp.csr_array:
        """(R, reads) newest values -> (R, V) scores."""
        rows, items, scores = (column.numpy() for column in self.scorer.entries(queries))
        shape = len(queries), len(self.scorer.popularity) + FIRST_ITEM
        matrix = sp.csr_array((scores, (rows, items + FIRST_ITEM)), shape=shape)
        # float32 as in `Scorer.forward`
        matrix = matrix.astype(np.float32)
        matrix.eliminate_zeros()
        return matrix


def _newest_values(values: Array, offsets: Array, reads: int) -> Tensor:
    """Ragged prefixes without reserved indices -> (N, reads) `newest_values`."""
    lengths = np.minimum(np.diff(offsets), reads)
    columns = np.arange(reads)
    inside = columns < lengths[:, np.newaxis]
    positions = (offsets[1:] - lengths)[:, np.newaxis] + columns
    matrix = np.zeros(inside.shape, np.int64)
    matrix[inside] = values[positions[inside]]
    return newest_values(torch.from_numpy(matrix), reads)


def _best_first(matrix: sp.csr_array) -> Array:
    """Positions of the stored entries row by row, best first, ties by index."""
    matrix.sort_indices()
    return np.lexsort((-matrix.data, rows_of(matrix)))


def _ranks_in_row(matrix: sp.csr_array, order: Array) -> sp.csr_array:
    """Matrix of the same structure: number of entries of the row that are at least as large."""
    rows, values = rows_of(matrix), matrix.data[order]
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
    """(R, longest) items, (R,) number of lists per row -> (C, items) number of lists per item."""
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
        # the 2 * `count` lowest indices hold enough items without a score for a short row
        width = min(2 * count, matrix.shape[1] - FIRST_ITEM)
        lowest = matrix[rows[short]][:, FIRST_ITEM : FIRST_ITEM + width]
        free = lowest.toarray() == 0  # (r, width)
        free &= np.cumsum(free, axis=1) <= (count - stored[short])[:, np.newaxis]
        missing = np.zeros_like(filled)
        missing[short] = ~filled[short]
        best[missing] = np.nonzero(free)[1] + FIRST_ITEM
    return best
