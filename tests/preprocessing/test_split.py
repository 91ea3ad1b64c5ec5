"""Held-out sessions are newer than what training sees."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DataError
from pipeline.recipe.preprocess import Preprocess
from tests.preprocessing.split_frames import split_frame

HOUR = 3_600 * 1_000_000


def recipe(valid: object = None, test: object = None, shortest: int = 2) -> Preprocess:
    split = {"valid": valid, "test": test}
    values = {"split": split, "min_session_length": shortest}
    return Preprocess.from_dict(values, "recipe")


def log(*sessions: tuple[int, ...]) -> pd.DataFrame:
    """Session n has interactions at these hours."""
    rows = [(number, hour * HOUR) for number, hours in enumerate(sessions) for hour in hours]
    return pd.DataFrame(rows, columns=["session_id", "timestamp"])


def parts(frame: pd.DataFrame, **more: object) -> dict[str, list[int]]:
    frames = split_frame(recipe(**more), frame)
    return {name: sorted(set(part["session_id"])) for name, part in frames.items()}


DAYS = log((0, 1), (24, 25), (30, 50), (49, 49), (60, 72))  # they end at 1, 25, 50, 49, 72


def test_without_a_split_all_is_training() -> None:
    assert parts(DAYS) == {"train": [0, 1, 2, 3, 4]}


def test_days_count_back_from_the_last_session_end() -> None:
    assert parts(DAYS, test="1d") == {"train": [0, 1], "test": [2, 3, 4]}  # they end after hour 48
    assert parts(DAYS, test="0.5d") == {"train": [0, 1, 2, 3], "test": [4]}


def test_session_end_exactly_at_the_cut_belongs_to_training() -> None:
    assert parts(DAYS, test="22h") == {"train": [0, 1, 2, 3], "test": [4]}
    assert parts(DAYS, test="23h") == {"train": [0, 1, 3], "test": [2, 4]}


def test_validation_is_the_newest_of_what_test_leaves() -> None:
    frames = parts(DAYS, test="12h", valid="12h")
    assert frames == {"train": [0, 1], "valid": [2, 3], "test": [4]}
    frames = parts(DAYS, test=0.2, valid=0.25)
    assert frames == {"train": [0, 1, 3], "valid": [2], "test": [4]}


def test_a_fraction_takes_at_least_one_session() -> None:
    assert parts(DAYS, test=0.01)["test"] == [4]


def test_short_sessions_leave_training_alone() -> None:
    frame = log((0,), (1, 2), (3,), (4, 5, 6), (7,))
    assert parts(frame, test=0.2) == {"train": [1, 3], "test": [4]}
    assert parts(frame, test=0.2, shortest=3) == {"train": [3], "test": [4]}
    assert parts(frame) == {"train": [1, 3]}


@pytest.mark.parametrize(
    ("frame", "asked", "expected"),
    [
        (DAYS, {"test": "99d"}, "`split.test: 99d` takes every session: sessions end between "
         "1970-01-01T01:00:00 and 1970-01-04T00:00:00. Choose another share, or leave"),
        (DAYS, {"test": 0.99}, "takes every session"),
        (log((0, 1)), {"valid": 0.5}, "takes every session"),
        (log((0, 1), (2, 3)), {"test": 0.5, "valid": 0.5}, "`split.valid: 0.5` takes every"),
        (DAYS, {"shortest": 3}, "No session for training: none of 5 has 3 interactions or more"),
        (log((0,), (1, 2)), {"test": 0.5}, "none of 1 has 2 interactions or more"),
    ],
)  # fmt: skip
def test_a_split_that_leaves_a_part_empty_is_refused(
    frame: pd.DataFrame, asked: dict, expected: str
) -> None:
    with pytest.raises(DataError) as caught:
        parts(frame, **asked)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


SHARES = st.one_of(
    st.none(),
    st.floats(0.01, 0.99),
    st.integers(1, 40).map(lambda n: f"{n}h"),
    st.sampled_from(["0.5h", "1d", "1.5d"]),
)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 60).map(lambda hour: hour * HOUR)),
        min_size=1,
        max_size=40,
    ),
    valid=SHARES,
    test=SHARES,
)
@settings(deadline=None)
def test_training_sessions_end_before_held_out_sessions(
    rows: list[tuple[int, int]], valid: object, test: object
) -> None:
    frame = pd.DataFrame(rows, columns=["session_id", "timestamp"])
    frame["row"] = np.arange(len(frame))
    try:
        frames = split_frame(recipe(valid, test), frame)
    except DataError:
        return
    asked = {"valid": valid, "test": test}
    assert set(frames) == {"train"} | {name for name, share in asked.items() if share is not None}
    ends = {name: part.groupby("session_id")["timestamp"].max() for name, part in frames.items()}
    for older, newer in (("train", "valid"), ("train", "test"), ("valid", "test")):
        if older in frames and newer in frames:
            assert frames[older]["timestamp"].max() <= ends[newer].min()
    # every row is in one part, or in a session too short for training
    taken = pd.concat(frames.values())
    assert taken["row"].is_unique
    lengths = frame.groupby("session_id").size()
    left = frame[~frame["row"].isin(taken["row"])]
    assert (lengths[left["session_id"]] < 2).all()
    for part in frames.values():
        assert part["row"].is_monotonic_increasing
        assert part.index.tolist() == list(range(len(part)))
        whole = lengths[part["session_id"].unique()]
        assert part.groupby("session_id").size().sort_index().equals(whole.sort_index())
