"""Ids that move a terminal's cursor or forge a line: escaped in text, exact in files and JSON."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.text import shown
from pipeline.serve.proxy.experiment import Arm, Experiment
from pipeline.serve.request_log.exchange import Row
from pipeline.serve.request_log.files import to_batch, write_file
from pipeline.serve.request_log.options import EXPERIMENT_KEY

EVIL = "x\x1b]0;title\x07\x1b[2J\r\u202e\u200b\x9b\nforged  1.0000"
ESCAPED = shown(EVIL)
RECIPE = """
preprocess:
  timestamp: {column: at, unit: s}
  split: {valid: 0.2, test: 0.3}
  features: [{name: category, kind: categorical}]
"""
START = 1_700_000_000


def command(*arguments: object) -> str:
    """Text of a command on stdout and stderr."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def check_text(text: str) -> None:
    """The id is in one line, escaped, and no letter of it acts."""
    assert ESCAPED in text
    assert not any(line.startswith("forged") for line in text.splitlines())
    assert {letter for letter in EVIL if not letter.isprintable()} & set(text) <= {"\n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data whose ids and categories are hostile, and a counting model of them."""
    path = tmp_path_factory.mktemp("evil")
    rows = [
        {
            "session_id": f"{n // 5}{EVIL}",
            "item_id": f"{EVIL}{n * n % 7}",
            "category": EVIL if n % 2 else "plain",
            "at": START + 60 * n,
        }
        for n in range(1_500)
    ]
    (path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (path / "recipe.yaml").write_text(RECIPE)
    recipe = ("--recipe", path / "recipe.yaml")
    command("preprocess", path / "log.jsonl", *recipe, "--out", path / "data")
    model = ("--set", "model.architecture=popularity")
    command("train", path / "data", *model, "--out", path / "run")
    return path


def test_groups_of_evaluate(folder: Path, tmp_path: Path) -> None:
    ranks = tmp_path / "ranks.parquet"
    evaluate = ("evaluate", folder / "run", "--data", folder / "data", "--by", "category")
    check_text(command(*evaluate, "--ranks", ranks))
    result = json.loads(command(*evaluate, "--json"))
    groups = [group["group"] for group in result["breakdowns"]["category"]]
    assert sorted(groups) == sorted([EVIL, "plain"])
    sessions = pq.read_table(ranks)["session_id"].to_pylist()
    assert sessions
    assert all(session.endswith(EVIL) for session in sessions)


def test_names_of_compared_runs(folder: Path, tmp_path: Path) -> None:
    """The names are those of directories, which hold any letter but a slash."""
    name = EVIL.replace("/", "")
    other = tmp_path / "other"
    for path in (tmp_path / name, other):
        shutil.copytree(folder / "run", path)
    compare = ("compare", tmp_path / name, other, "--data", folder / "data", "--no-baselines")
    check_text(command(*compare, "--out", tmp_path / "table.csv"))
    assert name in json.loads(command(*compare, "--json"))["rows"]
    with (tmp_path / "table.csv").open(newline="") as stream:
        assert name in {cell for row in csv.reader(stream) for cell in row}


def test_versions_and_arms_of_a_request_log(folder: Path, tmp_path: Path) -> None:
    arms = (Arm(name=EVIL, model="model", share=0.5), Arm(name="b", model="model", share=0.5))
    experiment = Experiment(name=EVIL, control="model", arms=arms)
    rows = [
        Row(
            (START + n) * 10**6, f"s{n}{EVIL}", EVIL, 1, EVIL, (EVIL, "b")[n % 2], 2, [f"{EVIL}1"],
            [f"{EVIL}2", "unknown"],
        )
        for n in range(40)
    ]  # fmt: skip
    (tmp_path / "log").mkdir()
    metadata = {EXPERIMENT_KEY: json.dumps(experiment.to_dict()).encode()}
    write_file(tmp_path / "log", [to_batch(rows)], metadata)
    monitor = ("monitor", tmp_path / "log", "--data", folder / "data")
    check_text(command(*monitor))
    result = json.loads(command(*monitor, "--json"))
    assert result["versions"][0]["version"] == f"{EVIL} v1"
    assert result["experiments"][0]["name"] == EVIL
    assert EVIL in {arm["name"] for arm in result["experiments"][0]["arms"]}
