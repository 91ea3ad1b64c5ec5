"""Runs with targets beside the next item in one comparison, with runs that rank and that do not."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ArtifactError
from pipeline.data.directory import Data
from pipeline.evaluation.comparison.files import write
from pipeline.evaluation.comparison.result import Comparison
from pipeline.evaluation.comparison.run import compare
from pipeline.evaluation.comparison.tables import latex, markdown
from pipeline.evaluation.metrics import margin
from pipeline.evaluation.result import TRAINING_MEAN
from pipeline.evaluation.run import Protocol, evaluate, predict_run_targets
from pipeline.evaluation.target_metrics import TargetPredictions, target_metrics, target_values
from pipeline.model.run import Run
from pipeline.training.run import train
from pipeline.training.seeds import train_seeds
from tests.conftest import Shop
from tests.training.test_recipes import recipe

CART = {"feature": "action", "kind": "binary", "positive": ["cart"]}
PRICE = {"feature": "price", "kind": "regression"}
DEVICE = {"feature": "device", "kind": "binary", "positive": ["phone"]}


class Runs(NamedTuple):
    lists: Path
    """Next item, action and device, each predicted by a bidirectional model."""
    alone: Path
    """Folder of two seeds: action and price, without the next item."""


@pytest.fixture(scope="module")
def runs(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("targets")
    both = recipe({"architecture": "bert", "masking": "mlm", "targets": [CART, DEVICE]})
    train(shop.data, both.model, both.train, folder / "lists")
    alone = recipe({"architecture": "gru", "next_item": False, "targets": [CART, PRICE]})
    train_seeds(shop.data, alone, folder / "alone", 2)
    return Runs(folder / "lists", folder / "alone")


@pytest.fixture(scope="module")
def comparison(shop: Shop, runs: Runs) -> Comparison:
    return compare([shop.run, runs.lists, runs.alone], shop.data, cutoffs=(5, 20))


def test_rows_have_the_metrics_that_evaluate_has(
    shop: Shop, runs: Runs, comparison: Comparison
) -> None:
    names = [name for name, row in comparison.rows.items() if row.runs]
    assert names == ["run", "lists", "alone"]
    assert list(comparison.rows)[-1] == TRAINING_MEAN
    single = evaluate(runs.lists, shop.data, cutoffs=(5, 20))
    row = comparison.rows["lists"]
    for task in ("action", "device"):
        own = {
            f"{task}.{name}": value for name, value in single.tasks[task].results["lists"].items()
        }
        assert {name: row.results[name] for name in own} == pytest.approx(own)
        margins = single.tasks[task].margins["lists"]
        assert {name: row.margins[f"{task}.{name}"] for name in margins} == pytest.approx(margins)
        mean = single.tasks[task].results[TRAINING_MEAN]
        baseline = comparison.rows[TRAINING_MEAN].results
        assert baseline[f"{task}.log_loss"] == pytest.approx(mean["log_loss"])
    assert row.results["recall@20"] == pytest.approx(single.results["lists"]["recall@20"])
    seeds = [evaluate(runs.alone / f"seed-{n}", shop.data).tasks["action"] for n in (0, 1)]
    losses = [seed.results[f"seed-{n}"]["log_loss"] for n, seed in enumerate(seeds)]
    alone = comparison.rows["alone"]
    assert alone.results["action.log_loss"] == pytest.approx(np.mean(losses))
    assert alone.deviations["action.log_loss"] == pytest.approx(np.std(losses, ddof=1))


def test_cells_of_what_a_run_does_not_predict_are_empty(comparison: Comparison) -> None:
    rows = comparison.rows
    assert "recall@20" not in rows["alone"].results
    assert "action.auc" not in rows["run"].results
    assert "price.rmse" not in rows["lists"].results
    assert "recall@20" not in rows[TRAINING_MEAN].results
    assert not comparison.is_best("recall@20", "alone")
    text = str(comparison)
    [line] = [line for line in text.split("\n") if line.startswith("alone (2 seeds)  -")][:1]
    assert set(line.split()[3:]) == {"-"}
    assert "price: " in text.split("\n")[0]
    assert "alone is " in text
    assert "| alone (2 seeds) | - |" in markdown(comparison)
    assert r"action.log\_loss" in latex(comparison)


def test_differences_are_paired_by_target(shop: Shop, runs: Runs, comparison: Comparison) -> None:
    tests = comparison.tests["action.log_loss"]
    values = {name: row.results.get("action.log_loss") for name, row in comparison.rows.items()}
    defined = {name: value for name, value in values.items() if value is not None}
    best = min(defined, key=lambda name: defined[name])
    assert set(tests) == {"lists", "alone", TRAINING_MEAN} - {best}
    for name, test in tests.items():
        assert (test.best, test.difference) == (best, pytest.approx(defined[name] - defined[best]))
    against = comparison.against_baseline["action.log_loss"]
    protocol = Protocol("test", "all", (20,), filter_seen=False, baselines=False)
    data = Data.open(shop.data)
    own = predict_run_targets(Run.open(runs.lists), data, protocol)["action"]
    assert own.sessions is not None
    assert len(own.targets) == comparison.tasks["action"].targets
    # a run of targets per interaction: several of one session
    assert len(np.unique(own.sessions)) < len(own.sessions)
    assert set(against) == {"lists", "alone"}
    assert comparison.against_baseline["price.rmse"].keys() == {"alone"}


def test_runs_without_a_next_item_are_compared(shop: Shop, runs: Runs, tmp_path: Path) -> None:
    seeds = [runs.alone / "seed-0", runs.alone / "seed-1"]
    alone = compare(seeds, shop.data)
    assert list(alone.rows) == ["alone", TRAINING_MEAN]
    assert (alone.cutoffs, alone.targets) == ([], 0)
    assert "action.auc" in str(alone)
    assert "recall@" not in str(alone)
    for ending in (".html", ".md", ".tex", ".csv", ".json", ".txt"):
        write(alone, tmp_path / f"table{ending}")
    assert "<th>action.log loss</th>" in (tmp_path / "table.html").read_text()
    assert Comparison.from_dict(json.loads((tmp_path / "table.json").read_text())) == alone
    arguments = [str(runs.alone), "--data", str(shop.data), "--figures", str(tmp_path / "figures")]
    done = CliRunner().invoke(app, ["compare", *arguments, "--no-baselines"])
    assert done.exit_code == 0, done.output
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert names == {f"{m}.{e}" for m in ("action-auc", "price-rmse") for e in ("svg", "png")}


def test_targets_of_one_name_and_two_meanings_are_refused(
    shop: Shop, runs: Runs, tmp_path: Path
) -> None:
    views = recipe({"next_item": False, "targets": [{**CART, "positive": ["view"]}]})
    train(shop.data, views.model, views.train, tmp_path / "views")
    with pytest.raises(ArtifactError, match=r"'action' of .*views is not that of .*lists"):
        compare([runs.lists, tmp_path / "views"], shop.data)


def test_ranks_of_a_run_that_does_not_rank_are_refused_before_it_is_evaluated(
    shop: Shop, runs: Runs, tmp_path: Path
) -> None:
    file = tmp_path / "ranks.parquet"
    arguments = [str(runs.alone / "seed-0"), "--data", str(shop.data), "--ranks", str(file)]
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert done.exit_code != 0
    assert done.stdout == ""
    assert "no ranks to write" in str(done.exception)
    assert not file.exists()


@st.composite
def predictions(draw: st.DrawFn) -> TargetPredictions:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, levels = draw(st.integers(1, 60)), draw(st.integers(1, 20))
    sessions = np.sort(random.integers(0, draw(st.integers(1, 30)), count))
    if draw(st.booleans()):
        values = (random.integers(0, levels + 1, count) / levels).astype(np.float32)
        labels = random.integers(0, 2, count).astype(np.float32)
        return TargetPredictions("binary", values, labels, sessions)
    values, labels = random.normal(0, 10, (2, count)).astype(np.float32)
    return TargetPredictions("regression", values, labels, sessions)


@settings(deadline=None)
@given(predictions())
def test_means_of_the_values_are_the_metrics(values: TargetPredictions) -> None:
    every = target_metrics(values)
    own = {metric: float(each.mean()) for metric, each in target_values(values).items()}
    assert own == pytest.approx({metric: every[metric] for metric in own}, nan_ok=True)
    assert every.keys() - own.keys() <= {"calibration", "calibration_error"}


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_intervals_are_those_of_a_bootstrap_over_sessions(kind: str) -> None:
    random = np.random.default_rng(0)
    sizes = random.geometric(0.3, 300)
    sessions = np.repeat(np.arange(300), sizes)
    # predictions and targets of a session agree
    effect = random.normal(size=300)[sessions]
    noise = random.normal(size=(3, len(sessions)))
    columns = effect + noise[0], effect + noise[1], 0.7 * effect + noise[2]
    if kind == "binary":
        chances = [1 / (1 + np.exp(-column)) for column in columns]
        columns = chances[0], (chances[1] > 0.5).astype(np.float64), chances[2]
    first, targets, second = (column.astype(np.float32) for column in columns)
    one = TargetPredictions(kind, first, targets, sessions)  # type: ignore[arg-type]
    other = one._replace(predictions=second)
    values, others = target_values(one), target_values(other)
    members = np.split(np.arange(len(sessions)), np.cumsum(sizes)[:-1])
    draws: dict[str, list[float]] = {}
    for _ in range(600):
        rows = np.concatenate([members[session] for session in random.integers(0, 300, 300)])
        drawn = [
            target_metrics(each._replace(predictions=each.predictions[rows], targets=targets[rows]))
            for each in (one, other)
        ]
        for metric in values:
            draws.setdefault(metric, []).append(drawn[0][metric])
            draws.setdefault(f"{metric} minus", []).append(drawn[0][metric] - drawn[1][metric])
    t = stats.t.ppf(0.975, 299)
    for metric, each in values.items():
        assert margin(each, sessions) == pytest.approx(t * np.std(draws[metric]), rel=0.1)
        paired = margin(each - others[metric], sessions)
        assert paired == pytest.approx(t * np.std(draws[f"{metric} minus"]), rel=0.1)
