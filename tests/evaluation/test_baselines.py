"""Baselines against numbers that a reader can work out, and against loops that a reader can see."""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.columns import FIRST_ITEM, NULL, OUT_OF_VOCABULARY, PADDING
from pipeline.evaluation.baselines import fit_baseline, rank_by_baselines
from pipeline.evaluation.baselines.ranking import Baseline, rank_by_baseline
from pipeline.model.counting import scorer as counting_scorer
from pipeline.model.counting.sessions import Array

A, B, C, D, E = range(FIRST_ITEM, FIRST_ITEM + 5)
NUM_ROWS = FIRST_ITEM + 5
CATALOGUE = [A, B, C, D, E]
LAST = 5
SHOP = [[A, B, C], [A, C], [A, C], [B, D]]

Sessions = list[list[int]]
Fit = Callable[..., Baseline]
popularity = partial(fit_baseline, "popularity")
recent_popularity = partial(fit_baseline, "recent-popularity")
covisitation = partial(fit_baseline, "co-visitation")
sequential_rules = partial(fit_baseline, "sequential-rules")
session_knn = partial(fit_baseline, "session-knn")
ALL: list[Fit] = [popularity, covisitation, sequential_rules, session_knn]
EVERY = [*ALL, recent_popularity]


def ragged(sessions: Sessions) -> tuple[Array, Array]:
    values = np.array([item for session in sessions for item in session], np.int64)
    return values, np.cumsum([0] + [len(session) for session in sessions])


def ranks_after(
    baseline: Baseline, prefix: list[int], targets: list[int], num_items: int = LAST
) -> list[int]:
    prefixes = ragged([prefix] * len(targets))
    return rank_by_baseline(
        baseline, *prefixes, np.array(targets, np.int64), num_items=num_items
    ).ranks.tolist()


def test_popularity_counts_interactions_and_ties_count_against_it() -> None:
    # A 3, B 2, C 3, D 1, E 0
    baseline = popularity(*ragged(SHOP), NUM_ROWS)
    assert ranks_after(baseline, [D], CATALOGUE) == [2, 3, 2, 4, LAST]
    repeats = popularity(*ragged([[A, A, A], [B], [B]]), NUM_ROWS)
    assert ranks_after(repeats, [C], [A, B]) == [1, 2]


def test_recent_popularity_counts_the_newest_tenth_and_then_all() -> None:
    # The newest two of twenty: D 2, B 1; of the others A has more than C
    old = [[A, C], [A, B]] * 9
    baseline = recent_popularity(*ragged([*old, [D], [B, D]]), NUM_ROWS)
    assert ranks_after(baseline, [A], [D, B, A, C, E]) == [1, 2, 3, 4, LAST]
    # A and C are equal in both
    tied = recent_popularity(*ragged([[A], [C], *[[B]] * 18]), NUM_ROWS)
    assert ranks_after(tied, [D], [B, A, C]) == [1, 3, 3]


def test_covisitation_counts_sessions_shared_with_the_last_item() -> None:
    # With A: B once, C three times; A is not its own neighbour
    baseline = covisitation(*ragged(SHOP), NUM_ROWS)
    assert ranks_after(baseline, [D, A], [C, B, A, D, E]) == [1, 2, LAST, LAST, LAST]


def test_covisitation_looks_both_ways_and_counts_a_session_once() -> None:
    baseline = covisitation(*ragged([[B, A, A, B, B], [C, A], [A, C]]), NUM_ROWS)
    assert ranks_after(baseline, [A], [C, B]) == [1, 2]


def test_sequential_rules_sum_one_over_the_distance() -> None:
    baseline = sequential_rules(*ragged(SHOP), NUM_ROWS)
    # After A: C 1/2 + 1 + 1, B 1. After B: C 1, D 1. After C: nothing
    assert ranks_after(baseline, [A], [C, B, A]) == [1, 2, LAST]
    assert ranks_after(baseline, [B], [C, D, A]) == [2, 2, LAST]
    assert ranks_after(baseline, [C], [A, B, D]) == [LAST, LAST, LAST]


def test_sequential_rules_let_an_item_follow_itself() -> None:
    # After A: A 1, B 1/2 + 1
    baseline = sequential_rules(*ragged([[A, A, B]]), NUM_ROWS)
    assert ranks_after(baseline, [A], [B, A]) == [1, 2]


def test_sequential_rules_see_equal_sums_of_fractions_as_ties() -> None:
    # After A: B 1 once, C 1/6 six times, which is less than 1 when floats are added; D more
    baseline = sequential_rules(*ragged([[A, B], *[[A, *[D] * 5, C]] * 6]), NUM_ROWS)
    assert ranks_after(baseline, [A], [D, B, C]) == [1, 3, 3]


def test_sequential_rules_stop_at_ten_steps() -> None:
    baseline = sequential_rules(*ragged([[A, *[D] * 9, B, C]]), NUM_ROWS)
    assert ranks_after(baseline, [A], [B, C]) == [2, LAST]


def test_session_knn_sums_the_similarities_of_its_neighbours() -> None:
    # Weights B 1, A 1/2: A B C 1.5/sqrt(3) = .87, B D 1/sqrt(2) = .71, A C .5/sqrt(2) = .35
    # Two neighbours: B .87 + .71, A and C .87, D .71
    baseline = session_knn(*ragged(SHOP), NUM_ROWS, k=2)
    assert ranks_after(baseline, [A, B], [B, A, C, D, E]) == [1, 3, 3, 4, LAST]


def test_session_knn_weighs_an_item_by_its_newest_interaction() -> None:
    # A 1, B 1/2 whether or not A came before
    baseline = session_knn(*ragged([[A, C], [B, D]]), NUM_ROWS)
    assert ranks_after(baseline, [B, A], [C, D]) == [2, 4]
    assert ranks_after(baseline, [A, B, A], [C, D]) == [2, 4]


def test_session_knn_prefers_the_newer_of_equally_similar_sessions() -> None:
    train = ragged([[A, B], [A, C]])
    for k, sample_size in ((1, 1000), (200, 1)):
        baseline = session_knn(*train, NUM_ROWS, k=k, sample_size=sample_size)
        assert ranks_after(baseline, [A], [A, C, B]) == [2, 2, LAST]


def test_session_knn_sees_sums_added_in_another_order_as_ties() -> None:
    # After A: B and C 1/sqrt(2) + 1/sqrt(3) + 1/sqrt(5), from either end, which floats tell apart
    b_first = [[A, B], [A, B, 50], [A, B, 51, 52, 53]]
    c_last = [[A, C, 51, 52, 53], [A, C, 50], [A, C]]
    baseline = session_knn(*ragged(b_first + c_last), num_rows=60)
    assert ranks_after(baseline, [A], [A, B, C], num_items=57) == [1, 3, 3]


@pytest.mark.parametrize("fit", EVERY)
def test_a_target_outside_the_vocabulary_ranks_behind_the_catalogue(fit: Fit) -> None:
    baseline = fit(*ragged([[A, OUT_OF_VOCABULARY, B]]), NUM_ROWS)
    targets = [PADDING, NULL, OUT_OF_VOCABULARY]
    assert ranks_after(baseline, [A], targets) == [LAST + 1] * 3


@pytest.mark.parametrize("fit", EVERY)
def test_unknown_items_of_a_prefix_are_ignored(fit: Fit) -> None:
    baseline = fit(*ragged(SHOP), NUM_ROWS)
    unknown = [PADDING, A, OUT_OF_VOCABULARY, B, NULL, OUT_OF_VOCABULARY]
    assert ranks_after(baseline, unknown, CATALOGUE) == ranks_after(baseline, [A, B], CATALOGUE)


@pytest.mark.parametrize("fit", ALL)
@pytest.mark.parametrize("prefix", [[], [OUT_OF_VOCABULARY, PADDING]])
def test_a_prefix_without_a_known_item_is_scored_by_popularity(fit: Fit, prefix: list[int]) -> None:
    baseline = fit(*ragged(SHOP), NUM_ROWS)
    assert ranks_after(baseline, prefix, CATALOGUE) == [2, 3, 2, 4, LAST]


@pytest.mark.parametrize("fit", ALL[1:])
def test_an_item_that_training_never_saw_leaves_every_target_last(fit: Fit) -> None:
    baseline = fit(*ragged(SHOP), NUM_ROWS)
    assert ranks_after(baseline, [E], [A, E]) == [LAST, LAST]


@pytest.mark.parametrize("fit", EVERY)
def test_nothing_to_learn_from_and_nothing_to_rank_are_no_errors(fit: Fit) -> None:
    assert ranks_after(fit(*ragged([]), NUM_ROWS), [A], [A, B]) == [LAST, LAST]
    assert ranks_after(fit(*ragged(SHOP), NUM_ROWS), [A], []) == []


@pytest.mark.parametrize("fit", EVERY)
def test_an_index_outside_the_item_table_is_an_error(fit: Fit) -> None:
    with pytest.raises(ValueError):
        fit(*ragged([[A, NUM_ROWS]]), NUM_ROWS)
    with pytest.raises(IndexError):
        ranks_after(fit(*ragged(SHOP), NUM_ROWS), [A], [NUM_ROWS])


def test_each_prefix_needs_a_target() -> None:
    with pytest.raises(ValueError, match="2 prefixes but 1 targets"):
        rank_by_baseline(
            popularity(*ragged(SHOP), NUM_ROWS),
            *ragged([[A], [B]]),
            np.array([A]),
            num_items=LAST,
        )


def test_a_slice_of_sessions_counts_as_those_sessions_alone() -> None:
    values, offsets = ragged([[D, E], *SHOP, [D, E]])
    prefixes, targets = ragged([[A], [B, C]]), np.array([C, B])
    sliced = rank_by_baselines(values, offsets[1:-1], NUM_ROWS, *prefixes, targets)
    alone = rank_by_baselines(*ragged(SHOP), NUM_ROWS, *prefixes, targets)
    for (name, ranked_prefixes), (_, expected) in zip(sliced, alone, strict=True):
        np.testing.assert_array_equal(ranked_prefixes.ranks, expected.ranks, err_msg=name)


many_sessions = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=13), max_size=12)


@settings(deadline=None)
@given(train=many_sessions, prefixes=many_sessions, seed=st.integers(0, 99))
def test_ranks_equal_those_of_a_dense_loop_however_they_are_cut_into_chunks(
    train: Sessions, prefixes: Sessions, seed: int
) -> None:
    targets = np.random.default_rng(seed).integers(0, NUM_ROWS, len(prefixes))
    expected = {
        name: [
            dense_rank(
                (score if prefix or name in SAME else count)(without_reserved(train), prefix),
                target,
            )
            for prefix, target in zip(without_reserved(prefixes), targets, strict=True)
        ]
        for name, score in DENSE.items()
    }
    for entries_at_once in (1 << 22, 20, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counting_scorer, "_ENTRIES_AT_ONCE", entries_at_once)
            ranked_prefixes = rank_by_baselines(
                *ragged(train), NUM_ROWS, *ragged(prefixes), targets
            )
            assert {name: ranked.ranks.tolist() for name, ranked in ranked_prefixes} == expected


@settings(deadline=None)
@given(train=many_sessions, prefix=st.lists(st.integers(A, E), min_size=1, max_size=6))
def test_session_knn_equals_a_dense_loop_when_neighbours_are_left_out(
    train: Sessions, prefix: list[int]
) -> None:
    scores = sum_neighbours(without_reserved(train), prefix, num_neighbours=3, num_newest=4)
    baseline = session_knn(*ragged(train), NUM_ROWS, k=3, sample_size=4)
    expected = [dense_rank(scores, target) for target in CATALOGUE]
    assert ranks_after(baseline, prefix, CATALOGUE) == expected


@settings(deadline=None)
@given(train=many_sessions, prefixes=many_sessions)
def test_each_prefix_is_scored_once_nothing_reserved(train: Sessions, prefixes: Sessions) -> None:
    for fit in ALL:
        chunks = list(fit(*ragged(train), NUM_ROWS).scores(*ragged(prefixes)))
        scored = [prefix for chunk in chunks for prefix in chunk.prefixes]
        assert sorted(scored) == list(range(len(prefixes)))
        for chunk in chunks:
            assert (chunk.matrix.indices >= FIRST_ITEM).all()
            assert (chunk.matrix.data > 0).all()


def without_reserved(sessions: Sessions) -> Sessions:
    return [[item for item in session if item >= FIRST_ITEM] for session in sessions]


def dense_rank(scores: dict[int, float], target: int) -> int:
    if target < FIRST_ITEM:
        return LAST + 1
    return sum(scores.get(i, 0) >= scores.get(target, 0) for i in range(FIRST_ITEM, NUM_ROWS))


def count(train: Sessions, prefix: list[int]) -> dict[int, float]:
    return dict(Counter(item for session in train for item in session))


def count_recent(train: Sessions, prefix: list[int]) -> dict[int, float]:
    newest, every = count(train[math.floor(len(train) * 0.9) :], []), count(train, [])
    return {item: newest.get(item, 0) * 1000 + number for item, number in every.items()}


def count_together(train: Sessions, prefix: list[int]) -> dict[int, float]:
    sessions = [set(session) for session in train if prefix[-1] in session]
    return dict(Counter(i for session in sessions for i in session - {prefix[-1]}))


def sum_rules(train: Sessions, prefix: list[int]) -> dict[int, float]:
    scores: dict[int, float] = {}
    for session in train:
        for at, item in enumerate(session):
            for distance, later in enumerate(session[at + 1 : at + 11], start=1):
                if item == prefix[-1]:
                    scores[later] = scores.get(later, 0) + 2520 // distance
    return scores


def sum_neighbours(
    train: Sessions, prefix: list[int], num_neighbours: int = 200, num_newest: int = 1000
) -> dict[int, float]:
    weights = {item: 1 / (len(prefix) - at) for at, item in enumerate(prefix)}
    newest = {i: [at for at, s in enumerate(train) if i in s][-num_newest:] for i in weights}
    similarities = []
    for at, session in enumerate(train):
        shared = sum(weight for item, weight in weights.items() if at in newest[item])
        if shared:
            similarity = shared / len(set(session)) ** 0.5
            similarities.append((round(similarity, 6), at, similarity))
    scores: dict[int, float] = {}
    for _, at, similarity in sorted(similarities, reverse=True)[:num_neighbours]:
        for item in set(train[at]):
            scores[item] = scores.get(item, 0) + similarity
    return {item: round(score, 6) for item, score in scores.items()}


DENSE: dict[str, Callable[[Sessions, list[int]], dict[int, float]]] = {
    "popularity": count,
    "recent-popularity": count_recent,
    "co-visitation": count_together,
    "sequential-rules": sum_rules,
    "session-knn": sum_neighbours,
}
SAME = ("recent-popularity",)
"""Whatever the prefix, an empty one too."""


def test_figures_on_real_clicks_stay_what_was_measured(real_data: Path) -> None:
    """HR@20 and MRR@20 of every position but the first of the day after, 10,152 targets."""
    train_items, train_offsets = read_clicks(real_data, "train")
    test_items, test_offsets = read_clicks(real_data, "test")
    catalogue, train = np.unique(train_items, return_inverse=True)
    assert np.isin(test_items, catalogue).all()
    test = np.searchsorted(catalogue, test_items) + FIRST_ITEM
    sessions = [s.tolist() for s in np.split(test, test_offsets[1:-1])]
    prefixes = ragged([s[:end] for s in sessions for end in range(1, len(s))])
    targets = np.array([target for s in sessions for target in s[1:]])
    assert len(targets) == 10_152
    num_rows = len(catalogue) + FIRST_ITEM
    ranked = rank_by_baselines(train + FIRST_ITEM, train_offsets, num_rows, *prefixes, targets)
    measured = [(0.089, 0.026), (0.093, 0.027), (0.387, 0.172), (0.615, 0.343), (0.682, 0.354)]
    for (name, ranked_prefixes), figures in zip(ranked, measured, strict=True):
        hits = ranked_prefixes.ranks <= 20
        assert (hits.mean(), (hits / ranked_prefixes.ranks).mean()) == pytest.approx(
            figures, abs=0.01
        ), name


def read_clicks(real_data: Path, part: str) -> tuple[Array, Array]:
    """(clicks,) raw ids by session and time, and (sessions + 1,) offsets."""
    clicks = np.loadtxt(real_data / "rsc15-100k" / f"{part}.tsv.gz", delimiter="\t", skiprows=1)
    clicks = clicks[np.lexsort((clicks[:, 2], clicks[:, 0]))]
    _, starts = np.unique(clicks[:, 0], return_index=True)
    return clicks[:, 1].astype(np.int64), np.append(starts, len(clicks))
