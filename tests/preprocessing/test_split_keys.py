"""Parts by chance, by user and by a column of the log, and parts with logs of their own."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ConfigError, DataError
from pipeline.preprocessing import blocks
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.split import split_sessions
from pipeline.recipe.preprocess import Preprocess


def write_log(path: Path, sessions: int = 400, *, first: int = 0) -> Path:
    """Sessions of three interactions of 50 users; a column names the part of each session."""
    chance = random.Random(7)
    rows = []
    for session in range(first, first + sessions):
        user = "" if session % 40 == 0 else f"u{session % 50}"
        part = ["train", "train", "dev", "holdout", ""][session % 5]
        rows += [
            (session, chance.randint(0, 9), session * 100 + step, user, part) for step in range(3)
        ]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("session_id", "item_id", "t", "user", "part"), *rows])
    return path


def parts_of(log: Path, out: Path, split: Any, **more: Any) -> dict[str, set[int | str]]:
    """Raw session ids of each part."""
    settings = {"timestamp": {"column": "t", "unit": "s"}, "split": split}
    preprocess(Preprocess.from_dict(settings | more, "test"), [log], [], out)
    return {
        folder.name: set(pq.read_table(folder)["session_id"].to_pylist())
        for folder in (out / "sessions").iterdir()
    }


def test_by_chance_parts_have_their_shares_and_stay_while_the_log_grows(tmp_path: Path) -> None:
    split = {"by": "random", "valid": 0.2, "test": 0.3}
    parts = parts_of(write_log(tmp_path / "a.csv"), tmp_path / "a", split)
    assert set().union(*parts.values()) == set(range(400))
    # binomial, four deviations
    assert len(parts["test"]) == pytest.approx(120, abs=37)
    assert len(parts["valid"]) == pytest.approx(56, abs=28)
    more = parts_of(write_log(tmp_path / "b.csv", 800), tmp_path / "b", split)
    for name, sessions in parts.items():
        assert sessions <= more[name]
    other = parts_of(tmp_path / "a.csv", tmp_path / "c", {**split, "seed": 1})
    assert len(other["test"] & parts["test"]) < 0.6 * len(parts["test"])


def test_sessions_of_a_user_are_in_one_part(tmp_path: Path) -> None:
    split = {"by": "user", "column": "user", "test": 0.4}
    parts = parts_of(write_log(tmp_path / "a.csv"), tmp_path / "a", split)
    users = {name: {s % 50 for s in ids if s % 40} for name, ids in parts.items()}
    assert not users["train"] & users["test"]
    assert 8 <= len(users["test"]) <= 32
    without = {name: {s for s in ids if s % 40 == 0} for name, ids in parts.items()}
    assert all(without.values()), "sessions without a user are not one user"


def test_visitors_cut_at_gaps_are_split_by_visitor(tmp_path: Path) -> None:
    split = {"by": "user", "valid": 0.3}
    log = write_log(tmp_path / "a.csv")
    parts = parts_of(log, tmp_path / "a", split, session="user", session_gap="10s")
    visitors = {name: {str(each).split("-")[0] for each in ids} for name, ids in parts.items()}
    assert not visitors["train"] & visitors["valid"]
    assert len(visitors["valid"]) >= 5
    assert len(parts["valid"]) > 2 * len(visitors["valid"])


def test_a_column_names_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = {"by": "column", "column": "part", "valid": "dev", "test": "holdout"}
    log = write_log(tmp_path / "a.csv")
    parts = parts_of(log, tmp_path / "a", split)
    assert parts["valid"] == {s for s in range(400) if s % 5 == 2}
    assert parts["test"] == {s for s in range(400) if s % 5 == 3}
    assert parts["train"] == {s for s in range(400) if s % 5 in (0, 1, 4)}
    monkeypatch.setattr(blocks.log_files, "BLOCK_ROWS", 100)
    assert parts_of(log, tmp_path / "b", split) == parts
    names = pq.read_schema(next((tmp_path / "a" / "sessions" / "train").iterdir())).names
    assert names == ["session_id", "item_id", "timestamp"]
    text = log.read_text().splitlines()
    text[3] = text[3].replace(",train", ",dev").replace(",part", ",dev")
    log.write_text("\n".join(text) + "\n")
    mixed = parts_of(log, tmp_path / "c", split)
    assert 0 in mixed["valid"]
    counted = read_manifest(tmp_path / "c", "data")["rows"]["input"]["counted"]
    assert counted == {"sessions with rows of several parts, of which the last counts": 1}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": "random"}, "set `valid`, `test` or both"),
        ({"by": "random", "test": "2d"}, "a fraction between 0 and 1"),
        ({"by": "user", "test": 0.1}, "needs `column`"),
        ({"by": "column", "test": "x"}, "needs `column`"),
        ({"by": "column", "column": "part"}, "values of the column"),
        ({"by": "column", "column": "part", "valid": "x", "test": "x"}, "the same value"),
        ({"by": "time", "column": "part", "test": 0.1}, "goes with `by: user`"),
        ({"seed": 3, "test": 0.1}, "goes with `by: random`"),
        ({"by": "leave-one-out", "test": 0.1}, "takes no `valid`"),
        ({"test": 1.5}, "a fraction between 0 and 1"),
        ({"test": "soon"}, "a fraction between 0 and 1"),
    ],
)
def test_splits_that_cannot_be(split: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess.from_dict({"split": split}, "test")


def test_a_part_without_a_session_is_an_error(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.csv")
    split = {"by": "column", "column": "part", "test": "nowhere"}
    with pytest.raises(DataError, match=r"No session of 400 is for `split\.test: nowhere`"):
        parts_of(log, tmp_path / "a", split)
    with pytest.raises(DataError, match="nickname"):
        parts_of(log, tmp_path / "b", {"by": "user", "column": "nickname", "test": 0.2})


def test_logs_of_their_own_for_validation_and_test(tmp_path: Path) -> None:
    logs = {
        name: write_log(tmp_path / f"{name}.csv", 20, first=100 * number)
        for number, name in enumerate(("train", "valid", "test"))
    }
    (tmp_path / "r.yaml").write_text("preprocess: {timestamp: {column: t, unit: s}}\nmodel:\n")
    arguments = ["preprocess", str(logs["train"]), "--recipe", str(tmp_path / "r.yaml")]
    arguments += ["--valid", str(logs["valid"]), "--test", str(logs["test"])]
    arguments += ["--out", str(tmp_path / "data"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    facts = read_manifest(tmp_path / "data", "data")
    assert list(facts["sessions"]) == ["train", "valid", "test"]
    valid = pq.read_table(tmp_path / "data" / "sessions" / "valid")["session_id"].to_pylist()
    assert valid == list(range(100, 120))
    again = CliRunner().invoke(app, [*arguments, "--if-needed"])
    assert "up to date" in again.output or again.exit_code == 0
    split = ["--set", "preprocess.split.valid=0.2"]
    wrong = CliRunner().invoke(app, [*arguments, *split])
    assert "Both --valid and `split.valid`" in str(wrong.exception or wrong.output)


def test_training_without_validation_says_so(tmp_path: Path) -> None:
    parts_of(write_log(tmp_path / "a.csv", 40), tmp_path / "data", {"test": 0.2})
    done = CliRunner().invoke(
        app,
        ["train", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
        + [f"--set={s}" for s in ("model.d_model=8", "model.n_head=1", "train.epochs=1")],
    )
    assert done.exit_code == 0, done.output
    assert "has no validation sessions" in done.stderr


def test_shares_follow_the_hash() -> None:
    keys = np.linspace(0, 1, 1001)[:-1]

    recipe = Preprocess.from_dict({"split": {"by": "random", "valid": 0.5, "test": 0.2}}, "test")
    part = split_sessions(recipe, np.zeros(1000), np.full(1000, 5), keys)
    assert np.bincount(part).tolist() == [400, 400, 200]


def test_parts_of_a_column_may_be_numbers_and_truth_values(tmp_path: Path) -> None:
    split = {"by": "column", "column": "fold", "valid": 1, "test": 2.0}
    log = tmp_path / "a.csv"
    log.write_text("session_id,item_id,t,fold\n1,a,1,0\n1,b,2,0\n2,a,3,1\n3,b,4,2\n")
    parts = parts_of(log, tmp_path / "a", split)
    assert parts == {"train": {1}, "valid": {2}, "test": {3}}
    flags = pa.table({"session_id": [1, 1, 2], "item_id": [5, 6, 5], "t": [1, 2, 3]})
    flags = flags.append_column("held", pa.array([False, False, True]))
    pq.write_table(flags, tmp_path / "b.parquet")
    parts = parts_of(
        tmp_path / "b.parquet", tmp_path / "b", {"by": "column", "column": "held", "test": True}
    )
    assert parts == {"train": {1}, "test": {2}}


def test_a_log_of_its_own_needs_no_column_of_the_split(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.csv", 100)
    (tmp_path / "b.csv").write_text("session_id,item_id,t\n900,1,1\n900,2,2\n")
    split = {"by": "user", "column": "user", "valid": 0.3}
    recipe = {"timestamp": {"column": "t", "unit": "s"}, "split": split}
    preprocess(Preprocess.from_dict(recipe, "test"), [log], [tmp_path / "b.csv"], tmp_path / "data")
    test = pq.read_table(tmp_path / "data" / "sessions" / "test")
    assert test["session_id"].to_pylist() == [900]
