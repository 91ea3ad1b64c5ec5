"""Features that operators of the user's own make."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.fitted import Fitted
from pipeline.exporting.run import export
from pipeline.in_process import open_run
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.training.run import train

OPERATORS = """
from nvtabular.ops import Clip, LambdaOp, Normalize, Operator, Rename


class PerKilo(Operator):
    def transform(self, col_selector, df):
        price, kilos = (df[name] for name in col_selector.names)
        return type(df)({"per_kilo": price / kilos})

    def column_mapping(self, col_selector):
        return {"per_kilo": col_selector.names}


per_kilo = PerKilo()
shortened = LambdaOp(lambda column: column.str[:2])
clipped = [Clip(max_value=3), LambdaOp(lambda column: column * 2)]
learned = Normalize()
shorter = LambdaOp(lambda column: column.head(1))
broken = LambdaOp(lambda column: column.no_such_thing)
split = LambdaOp(lambda column: column.str.split("-"))
number = 7
"""
PER_KILO = {
    "name": "per_kilo",
    "kind": "continuous",
    "of": "item",
    "operator": "per_kilo",
    "inputs": {"price": "number", "kilos": "number"},
}
SHORT = {
    "name": "short",
    "kind": "categorical",
    "operator": "shortened",
    "inputs": {"maker": "text"},
}


@pytest.fixture
def operators(tmp_path: Path) -> Path:
    path = tmp_path / "shop_operators.py"
    path.write_text(OPERATORS)
    return path


def recipe(*features: dict[str, Any], **more: Any) -> Preprocess:
    return Preprocess.from_dict({"session": "s", "item": "i", "features": features, **more}, "test")


def columns(rows: int = 60) -> dict[str, Any]:
    random = np.random.default_rng(4)
    items = random.integers(12, size=rows)
    return {
        "s": (np.arange(rows) // 4).tolist(),
        "i": items.tolist(),
        "price": [float(n) if n else None for n in items],
        "kilos": [n % 3 + 0.5 for n in items.tolist()],
        "maker": [f"{'abc'[n % 3]}{n % 2}-{n}" if n else None for n in items.tolist()],
    }


def log(folder: Path, values: dict[str, Any], name: str = "log.parquet") -> Path:
    pq.write_table(pa.table(values), folder / name)
    return folder / name


def sessions(data: Path, name: str) -> list:
    return pq.read_table(data / "sessions" / "train")[name].to_pylist()


@pytest.mark.parametrize("block_rows", [500_000, 7])
def test_operator_feature_equals_a_column_of_the_log(
    tmp_path: Path, operators: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr("pipeline.logs.files.BLOCK_ROWS", block_rows)
    monkeypatch.setattr(spill, "SHARD_ROWS", block_rows)
    values = columns()
    path = log(tmp_path, values)
    preprocess(recipe(PER_KILO, SHORT), [path], [], tmp_path / "made", operators=operators)
    pairs = zip(values["price"], values["kilos"], strict=True)
    values["per_kilo"] = [p and p / k for p, k in pairs]
    values["short"] = [m and m[:2] for m in values["maker"]]
    plain = [{"name": "per_kilo", "kind": "continuous", "of": "item"}]
    plain += [{"name": "short", "kind": "categorical"}]
    whole = log(tmp_path, values, "whole.parquet")
    preprocess(recipe(*plain), [whole], [], tmp_path / "held")
    for name in ("item_id", "per_kilo", "short"):
        assert sessions(tmp_path / "made", name) == sessions(tmp_path / "held", name)
    assert len({index for row in sessions(tmp_path / "made", "short") for index in row}) > 3
    files = sorted(p.relative_to(tmp_path / "made") for p in (tmp_path / "made").rglob("*"))
    assert files == sorted(p.relative_to(tmp_path / "held") for p in (tmp_path / "held").rglob("*"))


def test_operators_one_after_the_other_and_text_of_a_csv_file(
    tmp_path: Path, operators: Path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("s,i,price\n1,a,1\n1,b,9\n2,a,oops\n2,b,2.5\n")
    feature = {
        "name": "clip",
        "kind": "categorical",
        "operator": "clipped",
        "inputs": {"price": "number"},
        "values_per_interaction": 1,
    }
    facts = preprocess(recipe(feature), [path], [], tmp_path / "data", operators=operators)
    categories = pq.read_table(tmp_path / "data" / "fitted" / "categories" / "clip.parquet")
    assert sorted(categories["clip"].to_pylist()) == [2, 5, 6]
    repaired = facts["rows"]["input"]["repaired"]
    assert repaired == {"values of price, for clip, that are no usable number": 1}


def test_operator_reads_and_returns_lists(tmp_path: Path, operators: Path) -> None:
    feature = {**SHORT, "operator": "split", "values_per_interaction": 2, "inputs": {"m": "text"}}
    sessions = {"s": [1, 1, 2, 2], "i": list("uvuv")}
    tables = {
        "text": {**sessions, "m": ["a-b", "a", None, "c-a"]},
        "list": {**sessions, "m": [["a-b"], ["a"], [], ["c-a"]]},
    }
    for name, values in tables.items():
        path = log(tmp_path, values, f"{name}.parquet")
        preprocess(recipe(feature), [path], [], tmp_path / name, operators=operators)
    for name in tables:  # a is the most frequent, then b and c
        assert sessions_of(tmp_path / name) == ([[3, 3], [1, 5]], [[4, 0], [0, 3]])
    single = {**feature, "values_per_interaction": 1}
    with pytest.raises(DataError, match="expected text, numbers or times"):
        preprocess(
            recipe(single),
            [tmp_path / "text.parquet"],
            [],
            tmp_path / "single",
            operators=operators,
        )


def sessions_of(data: Path) -> tuple[list, list]:
    return sessions(data, "short_1"), sessions(data, "short_2")


def test_operator_file_runs_from_source_like_a_script(tmp_path: Path) -> None:
    path, clicks = tmp_path / "kilos.py", log(tmp_path, columns())
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from nvtabular.ops import LambdaOp\n\n@dataclass\nclass Factor:\n    by: float\n\n"
        "factor = Factor(FACTOR)\nper_kilo = LambdaOp(lambda column: column * factor.by)\n"
    )
    feature = {**PER_KILO, "inputs": {"price": "number"}}
    means = []
    for factor in ("1.0", "3.0"):
        path.write_text(source.replace("FACTOR", factor))
        os.utime(path, (1, 1))  # as archives have it
        preprocess(recipe(feature), [clicks], [], tmp_path / factor, operators=path)
        means.append(Fitted.read(tmp_path / factor).standardizations["per_kilo"].mean)
    assert means[1] == pytest.approx(3 * means[0])
    assert not (tmp_path / "__pycache__").exists()
    path.write_text("raise SystemExit(0)")
    with pytest.raises(ConfigError, match="SystemExit"):
        preprocess(recipe(feature), [clicks], [], tmp_path / "no", operators=path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("learned", "learns from all of a log"),
        ("shorter", "columns of 1 rows, expected one of 60"),
        ("broken", "broken.*in line 19: .*no_such_thing"),
        ("number", "no NVTabular operator 'number'.*It has: .*per_kilo"),
        ("absent", "no NVTabular operator 'absent'"),
    ],
)
def test_unsuitable_operator_reports_one_line(
    tmp_path: Path, operators: Path, name: str, said: str
) -> None:
    feature = {**PER_KILO, "operator": name, "inputs": {"price": "number"}}
    path = log(tmp_path, columns())
    with pytest.raises(ConfigError, match=said):
        preprocess(recipe(feature), [path], [], tmp_path / "data", operators=operators)
    assert not (tmp_path / "data").exists()


def test_failing_operator_file_reports_its_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nvtabular\n\nraise RuntimeError('what now')\n")
    path = log(tmp_path, columns())
    with pytest.raises(ConfigError, match=r"broken.py failed in line 3: RuntimeError: what now"):
        preprocess(recipe(PER_KILO), [path], [], tmp_path / "data", operators=broken)


def test_an_artifact_never_runs_an_operator(tmp_path: Path, operators: Path) -> None:
    """A recipe that names one is of no use without the file that the command line names."""
    path = log(tmp_path, columns())
    with pytest.raises(ConfigError, match="--operators"):
        preprocess(recipe(PER_KILO), [path], [], tmp_path / "data")
    with pytest.raises(ConfigError, match="Leave out --operators"):
        preprocess(recipe(), [path], [], tmp_path / "data", operators=operators)


def run_of(folder: Path, operators: Path, *features: dict[str, Any]) -> Path:
    preprocess(
        recipe(*features, max_sequence_length=3),
        [log(folder, columns(200))],
        [],
        folder / "data",
        operators=operators,
    )
    settings = Recipe.from_dict(
        {"model": {"d_model": 8, "n_head": 1, "n_layer": 1}, "train": {"epochs": 1}}, "test"
    )
    train(folder / "data", settings.model, settings.train, folder / "run")
    return folder / "run"


def test_a_server_fills_in_what_an_operator_made_of_items(tmp_path: Path, operators: Path) -> None:
    run = run_of(tmp_path, operators, PER_KILO)
    operators.unlink()
    export(run, tmp_path / "repository")
    with open_run(run) as client:
        unsent = client.recommend([{"item_id": [4, 5]}], 3)
        sent = client.recommend([{"item_id": [4, 5], "per_kilo": [4 / 1.5, 5 / 2.5]}], 3)
        other = client.recommend([{"item_id": [4, 5], "per_kilo": [400.0, 0.0]}], 3)
        assert unsent.scores == pytest.approx(sent.scores, abs=1e-5)
        assert unsent.scores != pytest.approx(other.scores, abs=1e-5)
        part = {name: values[:8] for name, values in columns().items() if name in ("s", "i")}
        assert len(list(client.recommend_log([log(tmp_path, part, "new.parquet")], 3))) == 2


def test_what_an_operator_makes_of_interactions_is_not_exported(
    tmp_path: Path, operators: Path
) -> None:
    run = run_of(tmp_path, operators, SHORT)
    with pytest.raises(ConfigError, match="of: item"):
        export(run, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def words(folder: Path) -> list[str]:
    config = folder / "recipe.yaml"
    config.write_text(json.dumps({"preprocess": recipe(PER_KILO).model_dump(mode="json")}))
    path = folder / "log.parquet"
    if not path.exists():
        log(folder, columns())
    return ["preprocess", str(path), "--recipe", str(config), "--out", str(folder / "data")]


def command(folder: Path, *more: str) -> Result:
    return CliRunner().invoke(app, [*words(folder), *more])


def test_a_changed_file_makes_the_data_anew(tmp_path: Path, operators: Path) -> None:
    arguments = ["--operators", str(operators), "--if-needed"]
    assert command(tmp_path, *arguments).exit_code == 0
    assert "is up to date" in command(tmp_path, *arguments).output
    operators.write_text(OPERATORS.replace("price / kilos", "price * kilos"))
    again = command(tmp_path, *arguments)
    assert again.exit_code == 0
    assert "is up to date" not in again.output


def test_a_process_of_its_own_has_what_operators_import(tmp_path: Path) -> None:
    """`pipeline preprocess` leaves out what Merlin alone would import for nothing."""
    path = tmp_path / "operators.py"
    path.write_text("import scipy.fftpack, torch, tritonclient.grpc\n" + OPERATORS)
    run = [sys.executable, "-m", "pipeline", *words(tmp_path), "--operators", str(path)]
    process = subprocess.run(run, capture_output=True, encoding="utf-8", check=False)
    assert process.returncode == 0, process.stderr


def test_command_reports_a_missing_operator_file(tmp_path: Path) -> None:
    result = command(tmp_path, "--operators", str(tmp_path / "none.py"))
    assert result.exit_code != 0
    assert isinstance(result.exception, ConfigError)
    assert "does not exist" in str(result.exception)
