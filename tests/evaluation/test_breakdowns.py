"""Groups of targets, worked out by hand."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY
from pipeline.data.sessions import Interactions
from pipeline.evaluation.breakdowns import break_down, describe_targets
from pipeline.evaluation.targets import prefixes

A, B, C, D = range(FIRST_ITEM, FIRST_ITEM + 4)
X = OUT_OF_VOCABULARY
DAY = 86_400_000_000
HOUR = DAY // 24
NEW_YEAR_2000 = 10_957 * DAY


def interactions(*sessions: list[int], times: list[int] | None = None) -> Interactions:
    values = np.array([item for session in sessions for item in session], np.int64)
    offsets = np.cumsum([0] + [len(session) for session in sessions])
    return Interactions(values, offsets, np.array(times or range(len(values)), np.int64))


def sizes(groups_by_name: dict[str, list], by: str) -> dict[str, int]:  # type: ignore[type-arg]
    return {group.label: int(group.members.sum()) for group in groups_by_name[by]}


def test_targets_are_described_by_their_prefix() -> None:
    targets = describe_targets(interactions([A, B, A, X, A], [C], [X, B]), "all")
    assert targets.items.tolist() == [B, A, X, A, B]
    assert targets.sessions.tolist() == [0, 0, 0, 0, 2]
    assert targets.num_before.tolist() == [1, 2, 3, 4, 1]
    assert targets.repeated.tolist() == [False, True, False, True, False]
    assert targets.after_unknown.tolist() == [False, False, False, True, True]
    last = describe_targets(interactions([A, B, A], [C], [X, B]), "last")
    assert last.items.tolist() == [A, B]
    assert last.num_before.tolist() == [2, 1]


def test_groups_by_length_novelty_and_repetition() -> None:
    targets = describe_targets(interactions([A, B, A, X, A], [B, D], [B, C]), "all")
    groups_by_name = break_down(targets, np.array([9, 5, 0, 1]), by_time=False)
    assert sizes(groups_by_name, "interactions before the target") == {
        "1": 3,
        "2": 1,
        "3": 1,
        "4 to 5": 1,
    }
    assert sizes(groups_by_name, "target") == {
        "seen in training": 4,
        "in the catalogue, in no training session": 1,
        "unknown": 1,
    }
    assert sizes(groups_by_name, "items before") == {"all known": 5, "one or more unknown": 1}
    # an unknown item may or may not be one of those before it
    assert sizes(groups_by_name, "known target") == {
        "first time in the session": 3,
        "seen before in the session": 2,
    }
    assert "day (UTC)" not in groups_by_name


def test_head_middle_and_tail_hold_a_third_of_the_training_interactions_each() -> None:
    # 4 + 4 of 24 end in the third, so do 4s and 2s in two thirds: equal counts stay together
    counts = np.array([4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    every = list(range(FIRST_ITEM, FIRST_ITEM + len(counts)))
    targets = describe_targets(interactions([every[0], *every]), "all")
    groups_by_name = break_down(targets, counts, by_time=False)
    assert sizes(groups_by_name, "popularity of the target") == {
        "head: 2 items seen 4 times or more": 2,
        "middle: 4 items seen 2 to 3 times": 4,
        "tail: 8 items seen once": 8,
    }


def test_groups_by_hour_and_day_are_those_of_utc() -> None:
    steps = [DAY - 1, DAY, DAY + 5 * HOUR, DAY + 6 * HOUR, 3 * DAY - 1]
    times = [NEW_YEAR_2000 + step for step in steps]
    targets = describe_targets(interactions([A, B, A, B, A], times=times), "all")
    groups_by_name = break_down(targets, np.array([1, 1]), by_time=True)
    assert sizes(groups_by_name, "day (UTC)") == {"2000-01-02": 3, "2000-01-03": 1}
    assert sizes(groups_by_name, "hour of the day (UTC)") == {
        "00:00 to 05:59": 2,
        "06:00 to 11:59": 1,
        "18:00 to 23:59": 1,
    }
    counters = describe_targets(interactions([A, B, A, B, A], times=steps), "all")
    groups_by_name = break_down(counters, np.array([1, 1]), by_time=True)
    assert not {"day (UTC)", "hour of the day (UTC)"} & groups_by_name.keys(), "no dates"


@settings(deadline=None)
@given(
    sessions=st.lists(st.lists(st.integers(1, 12), max_size=30), max_size=8),
    counts=st.lists(st.integers(0, 5), min_size=10, max_size=10),
    positions=st.sampled_from(["all", "last"]),
)
def test_each_target_is_in_one_group_of_each_kind(
    sessions: list[list[int]], counts: list[int], positions: str
) -> None:
    sample = interactions(*sessions)
    targets = describe_targets(sample, positions)  # type: ignore[arg-type]
    expected = prefixes(sample.values, sample.offsets, positions, 99)  # type: ignore[arg-type]
    assert targets.items.tolist() == expected.targets.tolist()
    assert targets.num_before.tolist() == np.diff(expected.offsets).tolist()
    in_catalogue = targets.items >= FIRST_ITEM
    seen = in_catalogue & (np.append(counts, 0)[targets.items - FIRST_ITEM] > 0)
    whole = {"popularity of the target": seen, "known target": in_catalogue}
    for by, groups in break_down(targets, np.array(counts), by_time=True).items():
        total = sum(group.members.astype(int) for group in groups)
        assert np.array_equal(total, whole.get(by, np.ones_like(in_catalogue)).astype(int)), by


def test_breakdowns_of_a_single_group_are_left_out() -> None:
    targets = describe_targets(interactions([A, B], [A, B]), "all")
    assert break_down(targets, np.array([1, 1]), by_time=False) == {}
