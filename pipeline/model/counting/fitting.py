"""Fit counting models: one pass over the training sessions computes the tables of a `Scorer`.

Letters: M training sessions, V rows of the item table, R interactions that a scorer reads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.config import Config
from pipeline.core.errors import ConfigError
from pipeline.model.counting.scorer import (
    NeighbourScorer,
    PopularityScorer,
    Scorer,
    SessionKnnScorer,
)
from pipeline.model.counting.sessions import (
    Array,
    chunks,
    drop_reserved,
    incidence,
    largest_of_rows,
    rows_of,
    session_numbers,
)
from pipeline.recipe.counting import (
    MAX_EASE_ITEMS,
    CovisitationOptions,
    EaseOptions,
    ItemKnnOptions,
    PopularityOptions,
    RecentPopularityOptions,
    SequentialRulesOptions,
    SessionKnnOptions,
    Weighting,
)

_DAY = 86_400e6
"""Microseconds."""
_OLDEST = 80.0
"""Largest exponent of the recency of a session, so that no factor underflows in float64."""


@dataclass(frozen=True)
class TrainingSessions:
    """Ragged training sessions, oldest first."""

    values: Array
    """(interactions,) item indices."""
    offsets: Array
    """(M + 1,)"""
    num_rows: int
    """V"""
    longest: int
    """L, the newest interactions that a model reads."""
    ends: Array | None = None
    """(M,) microseconds since 1970 of the newest interactions, None without a timestamp."""
    by: Array | None = None
    """(interactions,) indices of the column of `PopularityOptions.by`."""
    num_values: int = 0
    """Rows of the table of that column."""


def position_weights(weighting: Weighting, count: int) -> NDArray[np.float64]:
    """(count,) weights of the distances from 1 on."""
    distance = np.arange(1, count + 1, dtype=np.float64)
    match weighting:
        case "same":
            return np.ones_like(distance)
        case "div":
            return 1 / distance
        case "linear":
            return np.maximum(1 - (distance - 1) / 10, 0)
        case "quadratic":
            return 1 / distance**2
        case "log":
            return 1 / np.log10(distance + 1.7)


def fit_popularity(sessions: TrainingSessions, options: PopularityOptions) -> Scorer:
    """Score = interactions of the item in training, or among those with a value of `by`."""
    popularity = _tensor(_counts(sessions.values, sessions.offsets, sessions.num_rows))
    if options.by is None:
        return PopularityScorer(popularity)
    assert sessions.by is not None  # noqa: S101
    values = sessions.values[sessions.offsets[0] : sessions.offsets[-1]]
    by = sessions.by[sessions.offsets[0] : sessions.offsets[-1]]
    kept = (values >= FIRST_ITEM) & (by >= FIRST_ITEM)
    entries = np.ones(int(kept.sum()), np.int64), (by[kept], values[kept])
    counts = sp.csr_array(entries, shape=(sessions.num_values, sessions.num_rows))
    return _neighbour_scorer(popularity, counts, np.ones(1))


def fit_recent_popularity(sessions: TrainingSessions, options: RecentPopularityOptions) -> Scorer:
    """Score = interactions in the newest sessions; ties are ordered by interactions in all."""
    values, offsets, num_rows = sessions.values, sessions.offsets, sessions.num_rows
    every = _counts(values, offsets, num_rows)
    first = math.floor((len(offsets) - 1) * (1 - options.recent))
    newest = _counts(values, offsets[first:], num_rows)
    return PopularityScorer(_tensor(newest + every / (every.sum() + 1)))


def fit_covisitation(sessions: TrainingSessions, options: CovisitationOptions) -> Scorer:
    """Score = training sessions that hold both the item and the newest item; 0 for the latter."""
    holds = incidence(sessions.values, sessions.offsets, sessions.num_rows)  # (M, V)
    return _neighbour_scorer(_popularity(sessions), _together(holds, options.pruning), np.ones(1))


def fit_sequential_rules(sessions: TrainingSessions, options: SequentialRulesOptions) -> Scorer:
    """Score = sum of weights of the distances at which the item followed the newest item.

    Distances are in interactions, up to `steps`. An item may follow itself.
    """
    items, offsets = drop_reserved(sessions.values, sessions.offsets)
    session = session_numbers(offsets)
    rules = sp.csr_array((sessions.num_rows, sessions.num_rows), dtype=np.float64)
    for distance, weight in enumerate(position_weights(options.weighting, options.steps), 1):
        inside = session[distance:] == session[:-distance]
        pairs = items[:-distance][inside], items[distance:][inside]
        rules += sp.csr_array((np.full(int(inside.sum()), weight), pairs), shape=rules.shape)
    # float32, so that sums that differ only by rounding are ties
    rules = largest_of_rows(rules.astype(np.float32), options.pruning)
    return _neighbour_scorer(_popularity(sessions), rules, np.ones(1))


def fit_item_knn(sessions: TrainingSessions, options: ItemKnnOptions) -> Scorer:
    """Score = weighted sum of the similarities of the session's items to the item."""
    holds = incidence(sessions.values, sessions.offsets, sessions.num_rows)  # (M, V)
    damped = np.maximum(holds.sum(0) + options.regularization, 1.0)  # 0 without a session
    similar = _together(
        holds, options.pruning, damped**-options.alpha, damped ** (options.alpha - 1)
    )
    return _neighbour_scorer(_popularity(sessions), similar, _item_weights(sessions, options))


def fit_ease(sessions: TrainingSessions, options: EaseOptions) -> Scorer:
    """Score = sum of a linear model's weights over the session's items, weighted by distance.

    ConfigError for a catalogue above `MAX_EASE_ITEMS`.
    """
    num_items = sessions.num_rows - FIRST_ITEM
    if num_items > MAX_EASE_ITEMS:
        raise ConfigError(
            f"ease inverts a matrix of all pairs of items, and the data have {num_items:,}, "
            f"expected at most {MAX_EASE_ITEMS:,}. Drop rare items (`min_item_count`), or choose "
            "item-knn."
        )
    holds = incidence(sessions.values, sessions.offsets, sessions.num_rows)[:, FIRST_ITEM:]
    gram = np.empty((num_items, num_items), np.float64, order="F")
    for columns in chunks(np.full(num_items, num_items)):  # avoids a second matrix of this size
        gram[:, columns] = (holds.T @ holds[:, columns]).toarray()
    gram[np.diag_indices(num_items)] += options.regularization
    # in place, by the Cholesky factor of a positive definite matrix
    factor, _ = lapack.dpotrf(gram, lower=1, overwrite_a=1)
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    diagonal = inverse.diagonal().copy()
    parts = []
    for rows in chunks(np.full(num_items, num_items)):
        block = np.tril(inverse[rows], rows.start) + np.triu(inverse[:, rows].T, rows.start + 1)
        block /= -diagonal
        block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = 0
        parts.append(largest_of_rows(sp.csr_array(block), options.pruning))
    weights = sp.csr_array(sp.vstack(parts)) if parts else sp.csr_array((0, 0))
    return _scorer_of(_popularity(sessions), weights, _item_weights(sessions, options))


def _item_weights(
    sessions: TrainingSessions, options: ItemKnnOptions | EaseOptions
) -> NDArray[np.float64]:
    if options.weighting == "last":
        return np.ones(1)
    return position_weights(options.weighting, sessions.longest)


def fit_session_knn(sessions: TrainingSessions, options: SessionKnnOptions) -> Scorer:
    """Score = sum of the similarities of the nearest training sessions that hold the item."""
    # 1 / distance was chosen on the held-out ends of two training logs: it beats a linear decay,
    # which beats equal weights; more than 200 neighbours or 500 sessions per item gained nothing
    is_stan, reads = options.weights == "stan", sessions.longest
    numbers, items, positions, lengths = _distinct_items(sessions)
    counts = np.bincount(items, minlength=sessions.num_rows - FIRST_ITEM)
    factors = 1 / np.sqrt(np.maximum(lengths, 1))
    weights = position_weights(options.weighting, reads)
    if is_stan:
        factors *= _recency(sessions.ends, len(lengths), options.lambda_snh)
        weights = np.exp(-np.arange(reads) / options.lambda_spw)
    else:
        positions = np.empty(0, np.int64)
    # postings: only the newest sessions of each item are stored
    order = np.lexsort((numbers, items))
    order = order[np.cumsum(counts)[items[order]] - np.arange(len(order)) <= options.sample_size]
    used = np.unique(numbers[order])
    stored = np.flatnonzero(np.isin(numbers, used))
    tables = {
        "posting_offsets": _offsets(np.minimum(counts, options.sample_size)),
        "posting_sessions": np.searchsorted(used, numbers[order]).astype(np.int32),
        "posting_positions": positions[order if is_stan else ...].astype(np.int32),
        "session_offsets": _offsets(lengths[used]),
        "session_items": items[stored].astype(np.int32),
        "session_positions": positions[stored if is_stan else ...].astype(np.int32),
        "session_factors": factors[used],
        "item_factors": 1 + options.idf * np.log(max(1, len(lengths)) / np.maximum(counts, 1)),
        "position_weights": weights,
        "neighbour_weights": position_weights(options.weighting_score, reads),
    }
    return SessionKnnScorer(
        _popularity(sessions),
        {name: torch.from_numpy(table) for name, table in tables.items()},
        options.k,
        options.lambda_inh if is_stan else 0.0,
    )


def _distinct_items(sessions: TrainingSessions) -> tuple[Array, Array, Array, Array]:
    """Session, item (0 to V - 4) and newest position of the distinct items of each session.

    The last array is (M,), the number of distinct items per session.
    """
    items, offsets = drop_reserved(sessions.values, sessions.offsets)
    numbers = session_numbers(offsets)
    _, from_end = np.unique((numbers * sessions.num_rows + items)[::-1], return_index=True)
    newest = np.sort(len(items) - 1 - from_end)
    numbers = numbers[newest]
    lengths = np.bincount(numbers, minlength=len(offsets) - 1)
    return numbers, items[newest] - FIRST_ITEM, newest - offsets[:-1][numbers], lengths


FITTED: dict[type[Config], Callable[[TrainingSessions, Any], Scorer]] = {
    PopularityOptions: fit_popularity,
    RecentPopularityOptions: fit_recent_popularity,
    CovisitationOptions: fit_covisitation,
    ItemKnnOptions: fit_item_knn,
    EaseOptions: fit_ease,
    SequentialRulesOptions: fit_sequential_rules,
    SessionKnnOptions: fit_session_knn,
}
"""Function that fits a counting model, by the class of its options."""


def fit_scorer(sessions: TrainingSessions, options: Config) -> Scorer:
    """Fit the counting model of these options. ValueError for an index outside the item table."""
    return FITTED[type(options)](sessions, options).eval()


def _counts(values: Array, offsets: Array, num_rows: int) -> Array:
    """Ragged sessions -> (V - 3,) interactions of each item. ValueError for an index above V -
    1."""
    values, _ = drop_reserved(values, offsets)
    counts = np.bincount(values, minlength=num_rows)
    if len(counts) > num_rows:
        raise ValueError(f"item index {len(counts) - 1} in a table of {num_rows} rows")
    return counts[FIRST_ITEM:]


def _popularity(sessions: TrainingSessions) -> Tensor:
    return _tensor(_counts(sessions.values, sessions.offsets, sessions.num_rows))


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _together(
    holds: sp.csr_array,
    pruning: int,
    row_factors: NDArray[np.float64] | None = None,
    factors: NDArray[np.float64] | None = None,
) -> sp.csr_array:
    """(M, V) incidence -> (V, V) sessions that hold both items, the `pruning` largest of each row.

    Counts are multiplied by the (V,) factors of row and column. An item is not its own neighbour.
    """
    holders = holds.T.tocsr()  # (V, M)
    costs = holders @ np.diff(holds.indptr)
    parts = []
    # in chunks of rows, as a session of n items has n * n counts
    for rows in chunks(costs):
        counts = sp.csr_array(holders[rows] @ holds, dtype=np.float64)
        items = rows_of(counts) + rows.start
        counts.data[counts.indices == items] = 0
        if row_factors is not None and factors is not None:
            counts.data *= row_factors[items] * factors[counts.indices]
        counts.eliminate_zeros()
        # float32, so that counts that differ only by rounding are ties
        parts.append(largest_of_rows(counts.astype(np.float32), pruning))
    return sp.csr_array(sp.vstack(parts)) if parts else sp.csr_array(holders.shape)


def _neighbour_scorer(
    popularity: Tensor, matrix: sp.csr_array, weights: NDArray[np.float64]
) -> NeighbourScorer:
    """(rows, V) matrix -> scorer, without the reserved rows and columns."""
    return _scorer_of(popularity, sp.csr_array(matrix[FIRST_ITEM:, FIRST_ITEM:]), weights)


def _scorer_of(
    popularity: Tensor, matrix: sp.csr_array, weights: NDArray[np.float64]
) -> NeighbourScorer:
    matrix.sort_indices()
    return NeighbourScorer(
        popularity,
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy(matrix.indices.astype(np.int32)),
        _tensor(matrix.data),
        torch.from_numpy(weights),
    )


def _recency(ends: Array | None, count: int, days: float) -> NDArray[np.float64]:
    """(M,) factors by the age of a session relative to the newest one; 1 without a timestamp.

    STAN measures age from the scored session, which multiplies all neighbours by one factor.
    """
    if ends is None or not count:
        return np.ones(count)
    return np.exp(-np.minimum((ends.max() - ends) / (days * _DAY), _OLDEST))
