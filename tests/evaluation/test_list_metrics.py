"""Metrics of ranks and lists equal RecTools' and torchmetrics' on random lists and histories."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rectools import metrics as rectools
from rectools.metrics.debias import debias_interactions
from rectools.metrics.distances import PairwiseDistanceCalculator
from scipy.spatial.distance import jensenshannon
from torchmetrics import retrieval

from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY
from pipeline.data.sessions import Interactions
from pipeline.evaluation import list_metrics
from pipeline.evaluation.breakdowns import describe_targets
from pipeline.evaluation.list_metrics import (
    ListContext,
    debias_weights,
    make_context,
    requested_metrics,
)
from pipeline.evaluation.metrics import Ranked, gains, margin, weighted
from pipeline.evaluation.metrics import list_metrics as metrics_of_exposure
from pipeline.evaluation.run import gains_of

NUM_ITEMS = 9
CUTOFFS = (1, 3, 12)
"""The last is longer than the catalogue."""
MANY = settings(max_examples=25, deadline=None)


class Sample(NamedTuple):
    """Training sessions, test sessions and a ranking of the catalogue for each target."""

    history: list[list[int]]
    sessions: list[list[int]]
    orders: np.ndarray
    """(N, NUM_ITEMS) items from 0, best first."""
    lengths: np.ndarray
    """(N,) items of each list that filters leave."""
    codes: np.ndarray
    """(NUM_ITEMS,) category of each item, -1 for none."""


@st.composite
def samples(draw: st.DrawFn, *, unknown: bool = True, shortest: int = 0) -> Sample:
    indices = st.integers(OUT_OF_VOCABULARY if unknown else FIRST_ITEM, FIRST_ITEM + NUM_ITEMS - 1)
    session = st.lists(indices, min_size=1, max_size=6)
    history = draw(st.lists(session, min_size=1, max_size=12))
    sessions = draw(st.lists(st.lists(indices, min_size=2, max_size=6), min_size=1, max_size=8))
    count = sum(len(each) - 1 for each in sessions)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    orders = np.stack([random.permutation(NUM_ITEMS) for _ in range(count)])
    lengths = random.integers(shortest, NUM_ITEMS + 1, count)
    return Sample(history, sessions, orders, lengths, random.integers(-1, 3, NUM_ITEMS))


def interactions(sessions: list[list[int]]) -> Interactions:
    values = np.array([item for session in sessions for item in session], np.int64)
    offsets = np.cumsum([0] + [len(session) for session in sessions])
    return Interactions(values, offsets, np.arange(len(values)))


def targets_of(sample: Sample) -> np.ndarray:
    return np.array([item for session in sample.sessions for item in session[1:]])


def ranked(sample: Sample) -> Ranked:
    """What `rank_targets` would return."""
    targets = targets_of(sample)
    # a target of the catalogue that is in no list stands behind every cutoff of these tests
    behind = np.where(targets < FIRST_ITEM, NUM_ITEMS + 1, 100)
    lists = sample.orders.astype(np.int32).copy()
    lists[np.arange(NUM_ITEMS) >= sample.lengths[:, np.newaxis]] = -1
    position = (lists == targets[:, np.newaxis] - FIRST_ITEM).argmax(1) + 1
    in_list = (lists == targets[:, np.newaxis] - FIRST_ITEM).any(1)
    ranks = np.where(in_list, position, behind)
    shown = [[(lists[:, :cutoff] == item).sum() for item in range(NUM_ITEMS)] for cutoff in CUTOFFS]
    return Ranked(ranks, targets, np.array(shown), lists)


def context(sample: Sample, *metrics: str) -> ListContext:
    history, sessions = interactions(sample.history), interactions(sample.sessions)
    return make_context(
        history,
        sessions,
        describe_targets(sessions, "all"),
        FIRST_ITEM + NUM_ITEMS,
        cutoffs=CUTOFFS,
        metrics=metrics,
        attributes={"category": sample.codes},
    )


def values_of(sample: Sample, *metrics: str) -> dict[str, float]:
    values = requested_metrics(ranked(sample), context(sample, *metrics))
    return {name: float(each.mean()) for name, each in values.items()}


def reco(sample: Sample) -> pd.DataFrame:
    lists = ranked(sample).lists
    assert lists is not None
    rows, positions = np.nonzero(lists >= 0)
    items = lists[rows, positions] + FIRST_ITEM
    return pd.DataFrame({"user_id": rows, "item_id": items, "rank": positions + 1})


def truth(sample: Sample) -> pd.DataFrame:
    """A user for each target; unknown targets are different items."""
    targets = targets_of(sample)
    items = np.where(targets < FIRST_ITEM, -1 - np.arange(len(targets)), targets)
    return pd.DataFrame({"user_id": np.arange(len(targets)), "item_id": items})


def previous(sample: Sample) -> pd.DataFrame:
    """Training interactions with items of the catalogue."""
    rows = [(user, item) for user, session in enumerate(sample.history) for item in session]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"])
    return frame[frame.item_id >= FIRST_ITEM]


CATALOGUE = list(range(FIRST_ITEM, FIRST_ITEM + NUM_ITEMS))


def check(values: dict[str, float], name: str, expected: dict[int, float]) -> None:
    """At each cutoff; where no list has an item, RecTools has NaN as well."""
    for cutoff, value in expected.items():
        assert values[f"{name}@{cutoff}"] == pytest.approx(value, nan_ok=True), cutoff


@MANY
@given(samples())
def test_ranks_are_measured_as_rectools_does(sample: Sample) -> None:
    lists, interacted = reco(sample), truth(sample)
    own = gains_of(ranked(sample), CUTOFFS, None)
    values = {name: float(each.mean()) for name, each in own.items()}
    for k in CUTOFFS:
        # by default RecTools divides by the DCG of K true items, and not by the best for one
        ideal = sum(1 / math.log2(1 + rank) for rank in range(1, k + 1))
        expected = {
            "recall": rectools.Recall(k=k),
            "precision": rectools.Precision(k=k),
            "mrr": rectools.MRR(k=k),
            "map": rectools.MAP(k=k),
        }
        for name, metric in expected.items():
            assert values[f"{name}@{k}"] == pytest.approx(metric.calc(lists, interacted)), name
        hit_rate = rectools.HitRate(k=k).calc(lists, interacted)
        assert values[f"recall@{k}"] == pytest.approx(hit_rate)
        by_k = rectools.MAP(k=k, divide_by_k=True).calc(lists, interacted)
        assert values[f"map@{k}"] / k == pytest.approx(by_k)
        ndcg = rectools.NDCG(k=k).calc(lists, interacted)
        assert values[f"ndcg@{k}"] / ideal == pytest.approx(ndcg)
        for base in (2, 3):
            achievable = rectools.NDCG(k=k, log_base=base, divide_by_achievable=True)
            assert values[f"ndcg@{k}"] == pytest.approx(achievable.calc(lists, interacted))


@MANY
@given(samples(unknown=False, shortest=NUM_ITEMS))
def test_ranks_are_measured_as_torchmetrics_does(sample: Sample) -> None:
    targets = torch.from_numpy(targets_of(sample)) - FIRST_ITEM
    scores = torch.empty(sample.orders.shape)
    falling = NUM_ITEMS - torch.arange(NUM_ITEMS, dtype=torch.float32).expand_as(scores)
    scores.scatter_(1, torch.from_numpy(sample.orders), falling)
    relevant = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, targets[:, None], True)
    rows = torch.arange(len(scores))[:, None].expand_as(scores)
    own = gains(ranked(sample).ranks, CUTOFFS)
    references: dict[str, Any] = {
        "recall": retrieval.RetrievalRecall,
        "ndcg": retrieval.RetrievalNormalizedDCG,
        "mrr": retrieval.RetrievalMRR,
        "map": retrieval.RetrievalMAP,
        "precision": retrieval.RetrievalPrecision,
    }
    for name, reference in references.items():
        for k in CUTOFFS:
            expected = reference(top_k=k)(scores.flatten(), relevant.flatten(), rows.flatten())
            assert own[f"{name}@{k}"].mean() == pytest.approx(float(expected), abs=1e-6)


@MANY
@given(samples(shortest=NUM_ITEMS))
def test_coverage_and_popularity_are_those_of_rectools(sample: Sample) -> None:
    items = context(sample).items
    own = metrics_of_exposure(
        ranked(sample).exposure, CUTOFFS, targets_of(sample), items.interactions
    )
    for k in CUTOFFS:
        coverage = rectools.CatalogCoverage(k=k, normalize=True).calc(reco(sample), CATALOGUE)
        assert own[f"coverage@{k}"] == pytest.approx(coverage)
        popularity = rectools.AvgRecPopularity(k=k).calc(reco(sample), previous(sample))
        assert own[f"popularity@{k}"] == pytest.approx(popularity)


@MANY
@given(samples())
def test_novelty_is_that_of_rectools(sample: Sample) -> None:
    rows = [(user, item) for user, session in enumerate(sample.history) for item in session]
    history = pd.DataFrame(rows, columns=["user_id", "item_id"])
    expected = {k: rectools.MeanInvUserFreq(k=k).calc(reco(sample), history) for k in CUTOFFS}
    check(values_of(sample, "novelty"), "novelty", expected)


@MANY
@given(samples())
def test_serendipity_is_that_of_rectools(sample: Sample) -> None:
    arguments = reco(sample), truth(sample), previous(sample), CATALOGUE
    expected = {k: rectools.Serendipity(k=k).calc(*arguments) for k in CUTOFFS}
    check(values_of(sample, "serendipity"), "serendipity", expected)


@MANY
@given(samples())
@pytest.mark.filterwarnings("ignore:Some items has absent feature values")
def test_diversity_by_a_category_is_that_of_rectools(sample: Sample) -> None:
    codes = pd.DataFrame({"category": sample.codes.astype(float)}, index=CATALOGUE)
    distances = rectools.PairwiseHammingDistanceCalculator(codes.where(codes >= 0))
    metric = {k: rectools.IntraListDiversity(k=k, distance_calculator=distances) for k in CUTOFFS}
    expected = {k: each.calc(reco(sample)) for k, each in metric.items()}
    check(values_of(sample, "diversity:category"), "diversity:category", expected)


class Cosine(PairwiseDistanceCalculator):
    """1 - cosine of the sets of sessions of two items, counted one by one."""

    def __init__(self, history: list[list[int]]) -> None:
        self.sessions = {
            item: {user for user, session in enumerate(history) if item in session}
            for item in CATALOGUE
        }

    def _get_distances_for_item_pairs(self, items_0: Any, items_1: Any) -> np.ndarray:
        sets = [(self.sessions[a], self.sessions[b]) for a, b in zip(items_0, items_1, strict=True)]
        return np.array(
            [1 - len(a & b) / math.sqrt(len(a) * len(b)) if a and b else 1.0 for a, b in sets]
        )


@pytest.mark.parametrize("chunk", [1, 1 << 22])
@MANY
@given(sample=samples())
def test_diversity_by_sessions_is_that_of_rectools(sample: Sample, chunk: int) -> None:
    distances = Cosine(sample.history)
    metric = {k: rectools.IntraListDiversity(k=k, distance_calculator=distances) for k in CUTOFFS}
    expected = {k: each.calc(reco(sample)) for k, each in metric.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_metrics, "_PAIRS_AT_ONCE", chunk)
        check(values_of(sample, "diversity"), "diversity", expected)


@MANY
@given(samples())
def test_miscalibration_is_the_divergence_of_shares(sample: Sample) -> None:
    groups = context(sample).items.popularity_group
    lists = ranked(sample).lists
    assert lists is not None
    before = [session[:n] for session in sample.sessions for n in range(1, len(session))]
    for k in CUTOFFS:
        divergences = []
        for row, prefix in zip(lists[:, :k].tolist(), before, strict=True):
            of_list = np.bincount([groups[item] for item in row if item >= 0], minlength=3)
            items = [groups[item - FIRST_ITEM] for item in prefix if item >= FIRST_ITEM]
            if of_list.sum() and items:
                of_items = np.bincount(items, minlength=3)
                divergences.append(jensenshannon(of_list, of_items, base=2) ** 2)
        expected = {k: float(np.mean(divergences)) if divergences else math.nan}
        check(values_of(sample, "miscalibration"), "miscalibration", expected)


@MANY
@given(samples())
def test_a_debiased_sample_has_the_targets_that_rectools_keeps(sample: Sample) -> None:
    interacted = truth(sample)
    kept = debias_interactions(interacted, rectools.DebiasConfig(random_state=0))
    weights = pd.Series(debias_weights(targets_of(sample))).groupby(interacted.item_id).sum()
    pd.testing.assert_series_equal(
        weights[weights > 0].round(9).astype(int),
        kept.item_id.value_counts().sort_index(),
        check_names=False,
        check_dtype=False,
    )


@MANY
@given(samples())
def test_debiased_metrics_are_the_mean_over_the_draws_of_rectools(sample: Sample) -> None:
    # a list that depends on the target alone, so that every draw has the same metric
    targets = targets_of(sample)
    first = dict(zip(targets, sample.orders, strict=True))
    orders = np.stack([first[target] for target in targets])
    sample = sample._replace(orders=orders, lengths=np.full(len(targets), NUM_ITEMS))
    values = values_of(sample, "debiased")
    config = rectools.DebiasConfig(random_state=3)
    for k in CUTOFFS:
        references = {
            "debiased_recall": rectools.Recall(k=k, debias_config=config),
            "debiased_mrr": rectools.MRR(k=k, debias_config=config),
            "debiased_ndcg": rectools.NDCG(k=k, divide_by_achievable=True, debias_config=config),
        }
        for name, reference in references.items():
            expected = reference.calc(reco(sample), truth(sample))
            assert values[f"{name}@{k}"] == pytest.approx(expected, nan_ok=True)


def test_weights_are_the_mean_over_all_draws() -> None:
    # item 3 has four targets, the others one: at most one is kept, of any of the four
    targets = np.array([FIRST_ITEM] * 4 + [FIRST_ITEM + item for item in range(1, 5)])
    assert debias_weights(targets).tolist() == [0.25] * 4 + [1.0] * 4
    hits = np.array([1.0, 0, 1, 0, 0, 1, 0, 0])
    draws = [np.mean([hits[kept], *hits[4:]]) for kept in range(4)]
    assert weighted(hits, debias_weights(targets)).mean() == pytest.approx(np.mean(draws))


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=10, max_size=50))
def test_margin_of_a_weighted_mean_is_that_of_repeated_values(
    pairs: list[tuple[float, int]],
) -> None:
    # a session whose values weigh 2 is one in which each stands twice
    values, weights = np.array([v for v, _ in pairs]), np.array([w for _, w in pairs])
    result = weighted(values, weights)
    if not weights.sum():
        assert np.isnan(result).all()
        return
    assert result.mean() == pytest.approx(np.average(values, weights=weights), abs=1e-9)
    half = margin(result, np.arange(len(values)))
    sessions = np.repeat(np.arange(len(values)), weights)
    if len(set(sessions.tolist())) == len(values):
        repeated = margin(np.repeat(values, weights), sessions)
        assert half == pytest.approx(repeated, abs=1e-7)


def test_figures_worked_out_by_hand() -> None:
    # items a, b, c in 3, 1 and 0 of four training sessions; lists [a b], [c]; both targets are b
    history = [[3, 3, 4], [3], [3], [2]]
    sample = Sample(
        history,
        [[3, 4], [4, 4]],
        np.array([[0, 1, 2, *range(3, 9)], [2, *range(2), *range(3, 9)]]),
        np.array([2, 1]),
        np.zeros(NUM_ITEMS, np.int64),
    )
    values = values_of(sample, "novelty", "serendipity", "diversity", "miscalibration")
    novelty = -math.log2(3 / 4), 2.0, 2.0
    assert values["novelty@3"] == pytest.approx((np.mean(novelty[:2]) + novelty[2]) / 2)
    # the target is second in the first list, and second by popularity: (2 - 2) / 9
    assert values["serendipity@3"] == 0
    # a and b share one of 3 and 1 sessions; a list of one item has no pair
    assert values["diversity@3"] == pytest.approx((1 - 1 / math.sqrt(3)) / 2)
