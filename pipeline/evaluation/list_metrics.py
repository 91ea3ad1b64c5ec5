"""Metrics of top-K lists on request, beyond the accuracy of the next item.

Each is the mean over the lists of the targets, at a cutoff K; a list without an item is left out.
Definitions are those of RecTools 0.19 where it has them; a training session is its user.

novelty: mean of -log2(share of the training sessions that hold the item) over a list, in bits; an
item of no training session counts as one of a single session. RecTools' MeanInvUserFreq; the self-
information of Zhou et al. (PNAS 2010).
serendipity: of a list that holds the target at rank r, max(p - q, 0) / K, else 0, where p = (V + 1
- r) / V is how high the target ranks, and q = (V + 1 - its rank by popularity) / V, or 0 for a
target of no training session. Items that are equally popular share a rank, and the next one has the
following rank. RecTools' Serendipity; r counts ties against the target, as all ranks here.
diversity: mean of 1 - cosine over the pairs of a list, an item being the set of the training
sessions that hold it; 0 for a list of one item. Intra-list diversity (Ziegler et al., WWW 2005).
diversity:COLUMN: share of the pairs of a list whose items differ in a feature of items, without
pairs of an item that has none: RecTools' IntraListDiversity with its Hamming distance.
miscalibration: Jensen-Shannon divergence, 0 to 1 bits, between the shares of head, middle and tail
in a list and among the items before the target (Abdollahpouri et al., "User-centered evaluation of
popularity bias in recommender systems", UMAP 2021). Head and middle are the most popular items with
a third of the training interactions each. A target with no item of the catalogue before it is left
out.
debiased_recall, debiased_ndcg, debiased_mrr: metrics of ranks with fewer targets of popular items.
An item has at most b = int(Q3 + 1.5 (Q3 - Q1)) targets, by the quartiles of the number of targets
of an item. RecTools draws b targets of an item that has more (DebiasConfig); here each weighs b /
their number, which is the mean over all draws. A target that is not in the catalogue is an item of
its own, as nothing says which of them are equal.

Letters: N targets and their lists, K length of the lists, V items, M training sessions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import rel_entr

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.fitted import Fitted
from pipeline.data.sessions import Interactions
from pipeline.evaluation.breakdowns import Targets, popularity_bounds
from pipeline.evaluation.metrics import Ranked, behind_every_list, gains, weighted
from pipeline.model.counting.sessions import chunks, incidence
from pipeline.recipe.choices import METRICS_ON_REQUEST

Array = NDArray[Any]

DEBIASED = ("recall", "ndcg", "mrr")
_IQR_COEFFICIENT = 1.5
_PAIRS_AT_ONCE = 1 << 22
"""Pairs of items in one chunk of lists, about 60 bytes each."""


@dataclass(frozen=True)
class TrainingItems:
    """Statistics of the items of a catalogue in the training sessions."""

    incidence: sp.csr_array
    """(M, V) 1 where a session holds an item."""
    interactions: Array
    """(V,) interactions with each item."""
    attributes: dict[str, Array] = field(default_factory=dict)
    """(V,) codes by item feature, negative for an item without a value."""

    @property
    def num_sessions(self) -> int:
        """M."""
        return int(self.incidence.shape[0])

    @cached_property
    def holders(self) -> sp.csr_array:
        """(V, M) transposed `incidence`."""
        return self.incidence.T.tocsr()

    @cached_property
    def sessions(self) -> Array:
        """(V,) sessions that hold each item."""
        return np.bincount(self.incidence.indices, minlength=self.incidence.shape[1])

    @cached_property
    def novelty(self) -> Array:
        """(V,) novelty in bits."""
        return -np.log2(np.maximum(self.sessions, 1) / max(self.num_sessions, 1))

    @cached_property
    def popularity_rank(self) -> Array:
        """(V,) rank by popularity, 1 for the most popular items; 0 for items without a training
        session."""
        counts, inverse = np.unique(self.interactions, return_inverse=True)
        return np.where(self.interactions > 0, len(counts) - inverse, 0)

    @cached_property
    def popularity_group(self) -> Array:
        """(V,) 0 for the head, 1 for the middle, 2 for the tail."""
        head, middle = popularity_bounds(self.interactions)
        return np.where(self.interactions >= head, 0, np.where(self.interactions >= middle, 1, 2))


@dataclass(frozen=True)
class ListContext:
    """Inputs of the metrics that are common to all models."""

    items: TrainingItems
    targets: Array
    """(N,) item indices."""
    before: Array
    """(N, 3) items of the head, middle and tail before each target."""
    cutoffs: tuple[int, ...]
    metrics: tuple[str, ...]
    """Names, see `METRICS_ON_REQUEST`."""

    @cached_property
    def debias_weights(self) -> Array:
        """(N,) weights, see the function `debias_weights`."""
        return debias_weights(self.targets)


def check_metrics(metrics: tuple[str, ...], fitted: Fitted) -> tuple[str, ...]:
    """Distinct names of metrics on request; "all" stands for those without a column.

    ConfigError for an unknown name, and for a column that is not a categorical item feature.
    """
    columns = tuple(f"diversity:{name}" for name in item_categories(fitted))
    names: list[str] = []
    for metric in metrics:
        if metric not in ("all", *METRICS_ON_REQUEST, *columns):
            expected = ", ".join(("all", *METRICS_ON_REQUEST, *columns))
            raise ConfigError(f"There is no metric {metric!r} on request, expected {expected}.")
        names += METRICS_ON_REQUEST if metric == "all" else [metric]
    return tuple(dict.fromkeys(names))


def item_categories(fitted: Fitted) -> dict[str, Array]:
    """(V,) codes of the items by feature, -1 for none; only features with one value per item."""
    table = fitted.items
    names = [] if table is None else [f.name for f in fitted.categorical if f.of == "item"]
    return {
        name: _codes(table[name].combine_chunks().slice(0, len(fitted.item.values)))
        for name in names
        if table is not None and name in table.column_names
    }


def _codes(values: pa.Array) -> Array:
    return values.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)


def make_context(
    history: Interactions,
    interactions: Interactions,
    targets: Targets,
    num_rows: int,
    *,
    cutoffs: tuple[int, ...],
    metrics: tuple[str, ...],
    attributes: dict[str, Array],
) -> ListContext:
    """Context of the targets of `interactions`, with item statistics of training (`history`)."""
    counts = np.bincount(history.values, minlength=num_rows)[FIRST_ITEM:]
    sessions = incidence(history.values, history.offsets, num_rows)[:, FIRST_ITEM:]
    items = TrainingItems(sp.csr_array(sessions), counts, attributes)
    before = items_before(interactions, targets, items.popularity_group)
    return ListContext(items, targets.items, before, cutoffs, metrics)


def items_before(interactions: Interactions, targets: Targets, groups: Array) -> Array:
    """(V,) groups 0 to 2 -> (N, 3) items of each group before each target in its session."""
    values, offsets, _ = interactions
    group = np.where(values >= FIRST_ITEM, groups[np.maximum(values - FIRST_ITEM, 0)], -1)
    starts = offsets[targets.sessions]
    counts = [np.concatenate([[0], np.cumsum(group == each)]) for each in range(3)]
    return np.stack([each[starts + targets.num_before] - each[starts] for each in counts], 1)


def requested_metrics(ranked: Ranked, context: ListContext) -> dict[str, Array]:
    """(N,) values by `metric@K`, whose means are the metrics."""
    values: dict[str, Array] = {}
    for metric in context.metrics:
        name, _, column = metric.partition(":")
        if name == "debiased":
            values |= _debiased(ranked, context)
            continue
        assert ranked.lists is not None  # noqa: S101  kept if a metric reads them
        if name == "diversity":
            rows = _diversity(ranked.lists, context, column)
        else:
            rows = _METRICS[name](ranked.lists, ranked.ranks, context)  # (N, C)
        for cutoff, each in zip(context.cutoffs, rows.T, strict=True):
            values[f"{metric}@{cutoff}"] = weighted(each, ~np.isnan(each))
    return values


def debias_weights(targets: Array) -> Array:
    """(N,) item indices -> (N,) expected share of the item's targets in a debiased sample."""
    items, inverse, counts = np.unique(
        # each unknown target is a separate item
        np.where(targets >= FIRST_ITEM, targets, -1 - np.arange(len(targets))),
        return_inverse=True,
        return_counts=True,
    )
    if not len(items):
        return np.ones(0)
    first, third = np.quantile(counts, [0.25, 0.75])
    most = int(third + _IQR_COEFFICIENT * (third - first))
    return np.minimum(1, most / counts)[inverse]


def _debiased(ranked: Ranked, context: ListContext) -> dict[str, Array]:
    ranks = behind_every_list(ranked.ranks, context.targets)
    own = gains(ranks, context.cutoffs, DEBIASED)
    weights = context.debias_weights
    return {f"debiased_{name}": weighted(each, weights) for name, each in own.items()}


def _novelty(lists: Array, _ranks: Array, context: ListContext) -> Array:
    novelty = np.where(lists >= 0, context.items.novelty[lists], 0)
    return _at(np.cumsum(novelty, 1), context.cutoffs) / _lengths(lists, context.cutoffs)


def _serendipity(lists: Array, ranks: Array, context: ListContext) -> Array:
    num_items = len(context.items.interactions)
    in_catalogue = context.targets >= FIRST_ITEM
    by_popularity = context.items.popularity_rank[np.maximum(context.targets - FIRST_ITEM, 0)]
    # an item without training sessions has no rank by popularity
    by_popularity = np.where(by_popularity > 0, by_popularity, num_items + 1)
    gain = np.maximum(by_popularity - ranks, 0) / num_items * in_catalogue  # (N,)
    hits = ranks[:, np.newaxis] <= np.array(context.cutoffs)  # (N, C)
    return gain[:, np.newaxis] * hits / _lengths(lists, context.cutoffs)


def _miscalibration(lists: Array, _ranks: Array, context: ListContext) -> Array:
    groups = np.where(lists >= 0, context.items.popularity_group[lists], -1)
    in_list = np.stack([np.cumsum(groups == group, 1) for group in range(3)], -1)  # (N, K, 3)
    totals = context.before.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        before = (context.before / totals)[:, np.newaxis]  # (N, 1, 3)
    shares = _at(in_list, context.cutoffs) / _lengths(lists, context.cutoffs)[..., None]
    middle = (before + shares) / 2  # (N, C, 3)
    divergence = rel_entr(shares, middle) + rel_entr(before, middle)
    return divergence.sum(-1) / 2 / np.log(2)


def _diversity(lists: Array, context: ListContext, column: str) -> Array:
    length = lists.shape[1]
    first, second = np.triu_indices(length, 1)
    # pairs sorted by their second position: those below K come first
    order = np.argsort(second, kind="stable")
    first, second = first[order], second[order]
    result = np.empty((len(lists), len(context.cutoffs)))
    step = max(1, _PAIRS_AT_ONCE // max(1, len(first)))
    for begin in range(0, len(lists), step):
        chunk = lists[begin : begin + step]
        one, other = chunk[:, first], chunk[:, second]  # (n, pairs)
        is_pair = (one >= 0) & (other >= 0)
        distances = np.full(one.shape, np.nan)
        pairs = one[is_pair], other[is_pair]
        distances[is_pair] = (
            hamming_distances(*pairs, context.items.attributes[column])
            if column
            else cooccurrence_distances(*pairs, context.items)
        )
        for at, cutoff in enumerate(context.cutoffs):
            # K (K - 1) / 2 pairs
            kept = min(cutoff, length) * (min(cutoff, length) - 1) // 2
            result[begin : begin + step, at] = _mean_distances(
                distances[:, :kept], is_pair[:, :kept], chunk[:, 0] >= 0
            )
    return result


def _mean_distances(distances: Array, is_pair: Array, is_list: Array) -> Array:
    """(n, pairs) -> (n,) means without NaN; 0 for a list of one item, NaN for an empty list."""
    has_value = ~np.isnan(distances)
    with np.errstate(invalid="ignore"):
        means = np.where(has_value, distances, 0).sum(1) / has_value.sum(1)
    means = np.where(is_pair.any(1), means, 0)
    return np.where(is_list, means, np.nan)


def hamming_distances(one: Array, other: Array, codes: Array) -> Array:
    """(P,) and (P,) items -> (P,) 1 where their (V,) codes differ, NaN if one has no code."""
    left, right = codes[one], codes[other]
    return np.where((left < 0) | (right < 0), np.nan, left != right)


def cooccurrence_distances(one: Array, other: Array, items: TrainingItems) -> Array:
    """(P,) and (P,) items -> (P,) 1 - shared sessions / root of the product of their sessions."""
    num_items = items.incidence.shape[1]
    low, high = np.minimum(one, other).astype(np.int64), np.maximum(one, other)
    keys, inverse = np.unique(low * num_items + high, return_inverse=True)
    low, high = keys // num_items, keys % num_items
    shared = np.empty(len(keys))
    starts = np.flatnonzero(np.diff(low, prepend=-1))
    bounds = np.append(starts, len(keys))
    for rows, counts in _shared_sessions(low[starts], items):
        pairs = slice(bounds[rows.start], bounds[rows.stop])
        row = np.repeat(np.arange(rows.stop - rows.start), np.diff(bounds)[rows])
        shared[pairs] = counts[row, high[pairs]]
    product = items.sessions[low].astype(np.float64) * items.sessions[high]
    distances = 1 - shared / np.sqrt(np.maximum(product, 1))
    return distances[inverse]


def _shared_sessions(rows: Array, items: TrainingItems) -> Iterator[tuple[slice, sp.csr_array]]:
    """(R,) items -> slices of them with (r, V) numbers of sessions shared with each item."""
    holders = items.holders[rows]
    for chunk in chunks(holders @ np.diff(items.incidence.indptr)):
        counts = holders[chunk] @ items.incidence
        counts.sort_indices()  # a look-up is then a binary search
        yield chunk, counts


def _lengths(lists: Array, cutoffs: tuple[int, ...]) -> Array:
    """(N, K) lists -> (N, C) number of items at each cutoff, NaN for an empty list."""
    lengths = _at(np.cumsum(lists >= 0, 1), cutoffs).astype(np.float64)
    return np.where(lengths > 0, lengths, np.nan)


def _at(cumulative: Array, cutoffs: tuple[int, ...]) -> Array:
    """(N, K, ...) cumulative sums -> (N, C, ...) at each cutoff; lists may be shorter."""
    return cumulative[:, np.minimum(np.array(cutoffs), cumulative.shape[1]) - 1]


_METRICS: dict[str, Callable[[Array, Array, ListContext], Array]] = {
    "novelty": _novelty,
    "serendipity": _serendipity,
    "miscalibration": _miscalibration,
}
