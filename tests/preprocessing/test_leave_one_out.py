"""The last interactions of each session are held out: on their way from the log to the metrics."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError, DataError
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig
from tests.preprocessing.split_frames import split_frame

LINES = """\
u1 a b c d
u2 b c e
u3 a b
u4 c
u5 a b c d f g
"""


def recipe(**more: object) -> Preprocess:
    values = {"format": "sequences", "split": "leave-one-out", "max_sequence_length": 2}
    return Preprocess.from_dict(values | more, "recipe")


def written(directory: Path, text: str = LINES, **more: object) -> tuple[Path, dict]:
    (directory / "log.txt").write_text(text)
    facts = preprocess(recipe(**more), [directory / "log.txt"], [], directory / "data")
    return directory / "data", facts


def raw(data: Path, part: str) -> dict[str, str]:
    """Items of each session as text."""
    names = ["", "", "", *Fitted.read(data).item.values.to_pylist()]
    table = pq.read_table(data / "sessions" / part / "part-0.parquet").to_pydict()
    lists = ["".join(names[index] for index in indices) for indices in table["item_id"]]
    return dict(zip(table["session_id"], lists, strict=True))


def test_the_last_is_the_test_the_one_before_validation_and_training_ends_before_both(
    tmp_path: Path,
) -> None:
    data, facts = written(tmp_path)
    # u2 has one interaction left, too short to train on; u3 and u4 have no target to spare
    assert raw(data, "train") == {"u1": "ab", "u3": "ab", "u5": "bcd"}  # the newest L and a target
    assert raw(data, "valid") == {"u1": "abc", "u2": "bc", "u5": "abcdf"}
    assert raw(data, "test") == {"u1": "abcd", "u2": "bce", "u5": "abcdfg"}
    assert facts["sessions"]["train"]["interactions"] == 8


def test_without_validation_all_but_the_last_are_for_training(tmp_path: Path) -> None:
    data, facts = written(tmp_path, split="leave-last-out", max_sequence_length=9)
    assert raw(data, "train") == {"u1": "abc", "u2": "bc", "u5": "abcdf"}
    assert raw(data, "test") == {"u1": "abcd", "u2": "bce", "u3": "ab", "u5": "abcdfg"}
    assert facts["sessions"].keys() == {"train", "test"}


def test_the_catalogue_holds_all_items_those_that_training_never_saw_last(tmp_path: Path) -> None:
    data, facts = written(tmp_path)
    items = Fitted.read(data).item.values.to_pylist()
    assert sorted(items[:4]) == ["a", "b", "c", "d"]
    assert items[4:] == ["e", "f", "g"]
    assert facts["catalogue_items"] == 7


def test_other_statistics_come_from_training_alone(tmp_path: Path) -> None:
    rows = [(1, "a", 1.0, "x"), (1, "b", 3.0, "x"), (1, "c", 50.0, "y"), (1, "d", 70.0, "z")]
    frame = pd.DataFrame(rows, columns=["session_id", "item_id", "price", "brand"])
    frame.to_parquet(tmp_path / "log.parquet")
    features = [
        {"name": "price", "kind": "continuous"},
        {"name": "brand", "kind": "categorical"},
    ]
    chosen = recipe(format="auto", features=features)
    preprocess(chosen, [tmp_path / "log.parquet"], [], tmp_path / "data")
    fitted = Fitted.read(tmp_path / "data")
    assert fitted.standardizations["price"].mean == 2.0
    assert fitted.vocabularies["brand"].values.to_pylist() == ["x"]
    assert fitted.item.values.to_pylist() == ["a", "b", "c", "d"]


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    data, _ = written(tmp_path, "7 10 20 30 40\n8 10 20 9 11\n")
    assert Fitted.read(data).item.values.to_pylist() == [10, 20, 9, 11, 30, 40]


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=3, max_size=40),
    shortest=st.integers(2, 4),
    split=st.sampled_from(["leave-one-out", "leave-last-out"]),
)
@settings(deadline=None)
def test_every_part_is_the_beginning_of_the_session_in_time(
    rows: list[tuple[int, int]], shortest: int, split: str
) -> None:
    frame = pd.DataFrame(rows, columns=["session_id", "timestamp"])
    frame["row"] = np.arange(len(frame))
    try:
        parts = split_frame(recipe(min_session_length=shortest, split=split), frame)
    except DataError:
        return
    whole = frame.sort_values(["timestamp", "row"]).groupby("session_id")["row"].agg(list)
    held = {"leave-one-out": {"train": 2, "valid": 1}, "leave-last-out": {"train": 1}}[split]
    assert parts.keys() == {*held, "test"}
    for name, missing in {**held, "test": 0}.items():
        rows = parts[name].sort_values(["timestamp", "row"]).groupby("session_id")["row"].agg(list)
        expected = {}
        for session, all_rows in whole.items():
            held_out = len(all_rows) > held["train"]
            kept = all_rows[: len(all_rows) - missing] if held_out else all_rows
            if len(kept) >= shortest if name == "train" else held_out:
                expected[session] = kept
        assert rows.to_dict() == expected


@pytest.mark.parametrize(
    ("text", "shortest", "expected"),
    [
        ("1 5 6\n2 7\n", 2, "needs sessions of 3 interactions; the longest of 2 has 2."),
        ("1 5 6 7\n", 2, "the longest of 1 has 3 interactions, and 2 must be left"),
        ("1 5 6 7 8\n", 3, "the longest of 1 has 4 interactions, and 3 must be left"),
    ],
)
def test_log_of_short_sessions_is_refused(
    tmp_path: Path, text: str, shortest: int, expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        written(tmp_path, text, min_session_length=shortest)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"split": {"by": "leave-one-out", "test": 0.1}}, "takes no `valid` and no `test`"),
        ({"split": "leave-two-out"}, "'column', 'leave-one-out' or 'leave-last-out'"),
        ({"min_item_count": 2}, "ranks the items of all interactions"),
    ],
)
def test_conflicting_settings_are_refused(more: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        recipe(**more)


def test_test_files_are_refused_with_held_out_interactions(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text(LINES)
    with pytest.raises(ConfigError, match="Leave out --test"):
        preprocess(recipe(), [file], [file], tmp_path / "data")


def test_validation_and_evaluation_look_at_the_last_interaction_alone(tmp_path: Path) -> None:
    from pipeline.evaluation.run import evaluate
    from pipeline.training.run import train

    data, _ = written(tmp_path)
    model = ModelConfig(architecture="gru", d_model=8, n_layer=1)
    chosen = TrainConfig(epochs=1, batch_size=4, metric="ndcg@10")
    facts = train(data, model, chosen, tmp_path / "run")
    evaluation = evaluate(tmp_path / "run", data)
    assert (evaluation.positions, evaluation.targets, evaluation.catalogue_items) == ("last", 3, 7)
    assert evaluation.unknown_targets == 0
    valid = {
        positions: evaluate(tmp_path / "run", data, part="valid", positions=positions).results
        for positions in (None, "all")
    }
    assert facts["valid_ndcg@10"] == pytest.approx(valid[None]["run"]["ndcg@10"])
    assert facts["valid_ndcg@10"] != pytest.approx(valid["all"]["run"]["ndcg@10"])
