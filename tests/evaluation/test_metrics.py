"""Metrics against numbers that a reader can work out, another library and plain sets."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import retrieval

from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY
from pipeline.evaluation import ranking
from pipeline.evaluation import targets as evaluation
from pipeline.evaluation.baselines import BASELINES, rank_by_baselines
from pipeline.evaluation.baselines import ranking as baseline_ranking
from pipeline.evaluation.metrics import list_metrics, margin, ranking_metrics
from pipeline.evaluation.result import Cost, Evaluation
from pipeline.evaluation.targets import rank_targets
from pipeline.model.counting import scorer as counting_scorer
from pipeline.recipe.choices import METRICS
from tests.evaluation.test_baselines import DENSE, NUM_ROWS, SAME, many_sessions, without_reserved
from tests.evaluation.test_baselines import ragged as ragged_arrays
from tests.evaluation.test_targets import MODELS, SESSIONS, V, ragged

INF, NAN = float("inf"), float("nan")
REFERENCES = {
    "recall": retrieval.RetrievalRecall,
    "ndcg": retrieval.RetrievalNormalizedDCG,
    "mrr": retrieval.RetrievalMRR,
    "map": retrieval.RetrievalMAP,
    "precision": retrieval.RetrievalPrecision,
}


def test_metrics_at_ranks_1_3_and_21() -> None:
    metrics = ranking_metrics(np.array([1, 3, 21]), (2, 20))
    third = 1 / 3
    assert metrics["recall@2"] == pytest.approx(third)
    assert metrics["recall@20"] == pytest.approx(2 * third)
    assert metrics["precision@20"] == pytest.approx(2 * third / 20)
    assert metrics["mrr@2"] == pytest.approx(third)
    assert metrics["mrr@20"] == metrics["map@20"] == pytest.approx((1 + third) / 3)
    assert metrics["ndcg@20"] == metrics["dcg@20"] == pytest.approx((1 + 1 / math.log2(4)) / 3)
    assert set(metrics) == {f"{metric}@{cutoff}" for metric in METRICS for cutoff in (2, 20)}


def test_without_a_rank_there_is_no_metric() -> None:
    assert math.isnan(ranking_metrics(np.empty(0, np.int64), (5,))["dcg@5"])


def test_a_margin_worked_out_by_hand() -> None:
    # four times sessions of (1, 0), (1) and (0, 0): mean .4, their sums less .4 each .2, .6, -.8;
    # variance 4 (.04 + .36 + .64) / 20^2 * 12 / 11 = .0113455, times t of 11 degrees, 2.200985
    values = np.tile([1.0, 0, 1, 0, 0], 4)
    sessions = np.repeat(np.arange(12) * 7, [2, 1, 2] * 4)
    assert margin(values, sessions) == pytest.approx(2.200985 * math.sqrt(0.0113455), rel=1e-5)


@pytest.mark.parametrize("values", [[1.0, 0.0], [0.0, 0.0], []])
def test_there_is_no_margin_of_few_sessions_or_of_equal_values(values: list[float]) -> None:
    assert margin(np.array(values), np.arange(len(values))) is None
    assert margin(np.full(30, 0.1), np.arange(30)) is None


def test_intervals_hold_the_truth_as_often_as_they_say_though_targets_of_a_session_agree() -> None:
    generator = np.random.default_rng(0)
    held = {"by session": 0, "as if independent": 0}
    rounds, num_sessions, truth = 600, 150, 0.3
    for _ in range(rounds):
        sizes = generator.geometric(0.2, num_sessions)
        sessions = np.repeat(np.arange(num_sessions), sizes)
        # each session has a chance of its own, .3 on average
        chances = generator.beta(0.6, 1.4, num_sessions)
        values = (generator.random(len(sessions)) < chances[sessions]).astype(np.float64)
        for name, clusters in (("by session", sessions), ("as if independent", None)):
            half = margin(values, np.arange(len(values)) if clusters is None else clusters)
            held[name] += abs(values.mean() - truth) <= half
    assert 0.92 <= held["by session"] / rounds <= 0.98
    assert held["as if independent"] / rounds < 0.8


@pytest.mark.parametrize(
    ("scores", "target", "rank"),
    [
        ([3.0, 2.0, 1.0], 0, 1),
        ([3.0, 2.0, 1.0], 2, 3),
        ([2.0, 2.0, 1.0], 0, 2),  # a tie counts against the target
        ([2.0, NAN, 1.0], 0, 2),  # and so does what is not a number
        ([NAN, 2.0, 1.0], 0, 3),
        ([3.0, 2.0, 1.0], -1, 4),  # none of them
        ([-INF, -INF, -INF, 7.0], 3, 1),  # reserved rows of the item table are never ahead
    ],
)
def test_rank_is_one_plus_the_other_items_with_a_score_not_below(
    scores: list[float], target: int, rank: int
) -> None:
    items = torch.tensor(scores).unsqueeze(1)  # (C, 1): each score is that of a query of 1
    result = ranking.rank_in_catalogue(torch.ones(1, 1), items, torch.tensor([target])).ranks
    assert result.tolist() == [rank]


@pytest.mark.parametrize("cutoff", [1, 5, 20])
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_equal_those_of_torchmetrics(metric: str, cutoff: int) -> None:
    generator = torch.Generator().manual_seed(cutoff)
    num_targets, num_items = 200, 60
    # a permutation a row: without ties, where libraries differ
    scores = torch.rand(num_targets, num_items, generator=generator).argsort(1).float()
    targets = torch.randint(num_items, (num_targets,), generator=generator)
    ranks = ranking.rank_in_catalogue(scores, torch.eye(num_items), targets).ranks
    result = ranking_metrics(ranks.numpy(), (cutoff,))
    relevant = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, targets.unsqueeze(1), True)
    rows = torch.arange(num_targets).unsqueeze(1).expand_as(scores)
    # DCG is NDCG times the best that is possible, 1 for one target
    reference = REFERENCES["ndcg" if metric == "dcg" else metric](top_k=cutoff)
    expected = reference(scores.flatten(), relevant.flatten(), rows.flatten())
    assert result[f"{metric}@{cutoff}"] == pytest.approx(float(expected), abs=1e-6)


def test_figures_of_the_lists_worked_out_by_hand() -> None:
    # four items, seen 6, 3, 1 and 0 times; lists [0, 1] and [0, 2]; targets 1 and an unknown one
    exposure = np.array([[2, 0, 0, 0], [2, 1, 1, 0]])
    targets = np.array([FIRST_ITEM + 1, OUT_OF_VOCABULARY])
    result = list_metrics(exposure, (1, 2), targets, np.array([6, 3, 1, 0]))
    assert result == {
        "coverage@1": 1 / 4,
        "popularity@1": 6,
        "popularity_bias@1": 6 / 1.5,
        "coverage@2": 3 / 4,
        "popularity@2": (6 + 3 + 6 + 1) / 4,
        "popularity_bias@2": 4 / 1.5,
    }


def test_there_is_no_bias_towards_targets_that_training_never_saw() -> None:
    targets = np.array([OUT_OF_VOCABULARY])
    result = list_metrics(np.array([[1, 0]]), (1,), targets, np.array([5, 1]))
    assert result == {"coverage@1": 0.5, "popularity@1": 5, "popularity_bias@1": None}
    ranked = ranking_metrics(np.array([3]), (1,))
    evaluation = Evaluation(
        part="test",
        positions="all",
        filter_seen=False,
        sessions=1,
        targets=1,
        unknown_targets=1,
        other_data=False,
        new_items=0,
        catalogue_items=2,
        results={"run": {**ranked, **result}},
        margins={"run": dict.fromkeys(ranked)},
        differences={},
        breakdowns={},
        tasks={},
        cost=Cost({"run": 0.1}, 10.0, 10.0, 100.0, "cpu"),
    )
    assert "  5.0       -\n" in str(evaluation)
    frame = evaluation.to_frame()
    assert frame.loc["run", "coverage@1"] == 0.5
    assert list(frame.columns) == [*ranked, *result]


@pytest.mark.parametrize("width", [2048, 4])
@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=15, deadline=None)
@given(sessions=SESSIONS, lengths=st.lists(st.integers(1, V), min_size=1, max_size=3))
def test_lists_of_a_model_are_counted_as_sets_count_them(
    name: str, width: int, sessions: list[list[int]], lengths: list[int]
) -> None:
    model = MODELS[name]
    num_items = V - FIRST_ITEM
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ranking._WIDTHS, "cpu", width)
        ranked = rank_targets(model, [ragged(sessions)], "all", list_lengths=tuple(lengths))
        with torch.no_grad():
            hidden, _ = evaluation.hidden_at_targets(model, ragged(sessions), "all")
            scores = model.scores(hidden)[:, FIRST_ITEM:]
    expected = np.zeros((len(lengths), num_items), np.int64)
    for row in scores.tolist():
        best = sorted(range(num_items), key=lambda item: -row[item])
        for at, length in enumerate(lengths):
            for item in best[:length]:
                expected[at, item] += 1
    assert ranked.exposure.tolist() == expected.tolist()
    assert ranked.ranks.tolist() == rank_targets(model, [ragged(sessions)], "all").ranks.tolist()


@settings(deadline=None)
@given(
    train=many_sessions,
    prefixes=many_sessions,
    lengths=st.lists(st.integers(1, NUM_ROWS), min_size=1, max_size=3),
)
def test_lists_of_baselines_are_counted_as_a_dense_loop_counts_them(
    train: list[list[int]], prefixes: list[list[int]], lengths: list[int]
) -> None:
    targets = np.full(len(prefixes), FIRST_ITEM)
    catalogue = range(FIRST_ITEM, NUM_ROWS)
    expected = {}
    for name, score in DENSE.items():
        counts = np.zeros((len(lengths), len(catalogue)), np.int64)
        for prefix in without_reserved(prefixes):
            chosen = score if prefix or name in SAME else DENSE["popularity"]
            scores = chosen(without_reserved(train), prefix)
            best = sorted(catalogue, key=lambda item: (-scores.get(item, 0), item))
            for at, length in enumerate(lengths):
                for item in best[:length]:
                    counts[at, item - FIRST_ITEM] += 1
        expected[name] = counts.tolist()
    for at_once in (1 << 22, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(baseline_ranking, "_SCORES_AT_ONCE", at_once)
            patch.setattr(counting_scorer, "_ENTRIES_AT_ONCE", at_once)
            ranked = rank_by_baselines(
                *ragged_arrays(train),
                NUM_ROWS,
                *ragged_arrays(prefixes),
                targets,
                list_lengths=tuple(lengths),
            )
            assert {name: result.exposure.tolist() for name, result in ranked} == expected
    assert list(expected) == list(BASELINES)
