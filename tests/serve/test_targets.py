"""Targets beside the next item, from the recipe to the server: every way gives the same numbers."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn
from typer.testing import CliRunner

import pipeline
from pipeline.cli.main import app
from pipeline.core.errors import ConfigError
from pipeline.data.sessions import session_ids
from pipeline.evaluation.predict import write_recommendations
from pipeline.evaluation.recommender import Recommender
from pipeline.evaluation.run import evaluate
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.in_process import open_run
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.async_client import AsyncClient
from pipeline.serve.client.client import Client
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from pipeline.training.incremental.run import train_windows
from pipeline.training.report.run import write_report
from pipeline.training.run import train
from tests.conftest import Shop
from tests.training.test_recipes import recipe

TARGETS = [
    {"feature": "device", "kind": "binary", "positive": ["phone"]},
    {"feature": "price", "kind": "regression", "weight": 0.5},
    {"feature": "action", "kind": "binary", "positive": ["cart"], "weight": 0.5},
]
NAMES = ["device", "price", "action"]


@dataclass(frozen=True)
class Runs:
    """A run of the next item with targets, and one of targets alone, in one server."""

    lists: Path
    alone: Path
    server: TritonServer


@pytest.fixture(scope="module")
def runs(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    directory = tmp_path_factory.mktemp("targets")
    for name, model, training in (
        ("lists", {"masking": "mlm", "architecture": "bert"}, {"metric": "device.auc"}),
        ("alone", {"next_item": False, "architecture": "xlnet", "masking": "clm"}, {}),
    ):
        chosen = recipe({**model, "targets": TARGETS}, **training)
        train(shop.data, chosen.model, chosen.train, directory / name)
        export(directory / name, directory / "repository", ExportOptions(name=name))
    with running_server(directory / "repository", ports=free_ports()) as server:
        yield Runs(directory / "lists", directory / "alone", server)


def labels(shop: Shop) -> pd.DataFrame:
    """Raw columns of the interactions of the test sessions, in the order of `predict`."""
    log = pd.read_csv(shop.clicks).sort_values("time", kind="stable")
    ids = session_ids(shop.data, "test")
    assert ids is not None
    by_session = {str(name): rows for name, rows in log.groupby("session")}
    return pd.concat([by_session[str(name)] for name in ids])


def predicted(run: Path, shop: Shop, out: Path) -> pd.DataFrame:
    write_recommendations(run, shop.data, "test", out)
    return pd.read_parquet(out)


@pytest.mark.parametrize("name", ["lists", "alone"])
def test_metrics_are_those_of_scikit_learn_on_the_predictions(
    shop: Shop, runs: Runs, tmp_path: Path, name: str
) -> None:
    run = getattr(runs, name)
    result = evaluate(run, shop.data, positions="last", cutoffs=(20,))
    assert bool(result.results) == (name == "lists")
    predictions = predicted(run, shop, tmp_path / "predictions.parquet")
    last = labels(shop).groupby("session", sort=False).last()
    assert predictions["session_id"].tolist() == last.index.tolist()
    for target, positive in (("device", "phone"), ("action", "cart")):
        values = result.tasks[target].results[name]
        truth = (last[target] == positive).to_numpy()
        chances = predictions[target].to_numpy(np.float64)
        assert result.tasks[target].targets == len(truth)
        assert values["auc"] == pytest.approx(sklearn.roc_auc_score(truth, chances), abs=1e-6)
        assert values["log_loss"] == pytest.approx(sklearn.log_loss(truth, chances), abs=1e-6)
        recall = sklearn.recall_score(truth, chances >= 0.5)
        assert values["recall"] == pytest.approx(recall, abs=1e-6)
        mean = result.tasks[target].results["training-mean"]
        assert mean["auc"] == 0.5
    prices = last["price"].to_numpy(np.float64), predictions["price"].to_numpy(np.float64)
    values = result.tasks["price"].results[name]
    assert values["rmse"] == pytest.approx(sklearn.root_mean_squared_error(*prices), rel=1e-4)
    assert values["mae"] == pytest.approx(sklearn.mean_absolute_error(*prices), rel=1e-4)


def test_numbers_that_stand_for_missing_ones_are_counted(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "session": np.repeat(np.arange(200), 4),
            "item": random.integers(0, 20, 800),
            "price": np.where(np.arange(800) % 8 == 7, np.nan, random.random(800)),
        }
    )
    settings: dict[str, Any] = {
        "session": "session",
        "item": "item",
        "timestamp": None,
        "split": {"valid": 0.2},
        "features": [{"name": "price", "kind": "continuous"}],
    }
    data = pipeline.Data.from_frame(log, Recipe.from_dict({"preprocess": settings}, "recipe"))
    model = {"d_model": 8, "n_head": 1, "targets": [{"feature": "price", "kind": "regression"}]}
    chosen = recipe(model, epochs=1)
    train(data.path, chosen.model, chosen.train, tmp_path / "run")
    result = evaluate(tmp_path / "run", data, part="valid", positions="last")
    price = result.tasks["price"]
    ids = session_ids(data.path, "valid")
    assert ids is not None
    # every other session ends with an interaction without a price
    assert price.filled == sum(int(name) % 2 for name in ids) > 0
    assert f"; {price.filled} are 0." in result.to_text()
    assert "as missing numbers are" in result.to_text()


def test_every_position_is_predicted_as_the_end_of_a_shorter_session(
    shop: Shop, runs: Runs
) -> None:
    from pipeline.data.directory import Data
    from pipeline.evaluation.target_predictions import predict_targets
    from pipeline.evaluation.targets import evaluation_loader

    for run in (runs.lists, runs.alone):
        model = Recommender.open(run).model
        loader = evaluation_loader(Data.open(shop.data).path, "test", model, 4096)
        every = predict_targets(model, loader, "all")
        last = predict_targets(model, loader, "last")
        lengths = labels(shop).groupby("session", sort=False).size().to_numpy()
        ends = np.cumsum(lengths) - 1
        assert len(every["action"].targets) == lengths.sum()
        at_ends = every["action"].predictions[ends]
        np.testing.assert_allclose(at_ends, last["action"].predictions, atol=1e-5)
        np.testing.assert_allclose(every["device"].predictions, last["device"].predictions)


def columns(shop: Shop, count: int) -> list[dict[str, Any]]:
    log = labels(shop)
    sessions = []
    for _, rows in log.groupby("session", sort=False):
        sessions.append(
            {
                "item_id": rows["product"].tolist(),
                "timestamp": rows["time"].tolist(),
                "category": rows["category"].tolist(),
            }
        )
    return [sessions[i % len(sessions)] for i in range(count)]


@pytest.mark.parametrize("name", ["lists", "alone"])
def test_server_file_and_python_agree(shop: Shop, runs: Runs, tmp_path: Path, name: str) -> None:
    run = getattr(runs, name)
    offline = predicted(run, shop, tmp_path / "predictions.parquet")
    sessions = columns(shop, 1_000)
    expected = offline[NAMES].to_numpy()[np.arange(1_000) % len(offline)]
    urls = f"http://{runs.server.http_url}", f"grpc://{runs.server.grpc_url}"
    with (
        open_run(run) as local,
        Client(urls[0], name=name) as http,
        Client(urls[1], name=name) as grpc,
    ):
        for client in (local, http, grpc):
            parts = [client.predict(sessions[i : i + 100]) for i in range(0, 1_000, 100)]
            values = pd.concat(parts)[NAMES].to_numpy()
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
        if name == "lists":
            both = grpc.recommend(sessions[:5], 3, targets=True)
            assert both.items.shape == (5, 3)
            np.testing.assert_allclose(both.targets["price"], expected[:5, 1], rtol=1e-4)
            plain = grpc.recommend(sessions[:5], 3)
            assert not plain.targets, "they come where they are asked for"
            assert (plain.items == both.items).all()
            return
        for client in (local, grpc):
            with pytest.raises(ConfigError, match="does not predict the next item"):
                client.recommend(sessions[:1], 3)

    async def ask() -> Any:
        async with AsyncClient(urls[1], name=name) as client:
            return await client.predict(sessions[:3])

    values = asyncio.run(ask())[NAMES].to_numpy()
    np.testing.assert_allclose(values, expected[:3], rtol=1e-4, atol=1e-4)


def test_command_line_has_the_targets(shop: Shop, runs: Runs, tmp_path: Path) -> None:
    def run(*words: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*map(str, words)])
        assert result.exit_code == code, result.output
        return result.output

    alone = run("evaluate", runs.alone, "--data", shop.data)
    assert "device: " in alone
    assert "recall@" not in alone
    printed = run("predict", runs.alone, "--data", shop.data, "--out", tmp_path / "p.parquet")
    assert "device and price and action" in printed
    assert {*NAMES} < {*pd.read_parquet(tmp_path / "p.parquet").columns}
    lists = run("recommend", runs.lists, "--items", "sku-00001", "--k", "2", "--targets")
    assert lists.count("sku-") == 2
    assert all(name in lists for name in NAMES)
    item = "--items", "sku-00001"
    assert "price" in run("recommend", runs.alone, *item, "--targets")
    page = write_report(runs.alone, shop.data, tmp_path / "report.html")["page"]
    text = Path(page).read_text(encoding="utf-8")
    assert "<h2>price</h2>" in text
    assert "Validation, device.auc" in text


def test_best_weights_are_those_of_the_metric_of_a_target(runs: Runs) -> None:
    from pipeline.model.run import Run

    facts = Run.open(runs.lists).facts
    assert 0 < facts["valid_device.auc"] <= 1
    assert Run.open(runs.alone).facts["train"]["metric"] == "device.auc"


@pytest.mark.parametrize(
    ("model", "training", "words"),
    [
        ({"next_item": False}, {}, "needs `targets`"),
        ({"next_item": False, "targets": TARGETS}, {"metric": "recall@5"}, "device.auc"),
        ({"next_item": False, "targets": TARGETS}, {"item_table": "sharded"}, "Leave it out"),
        ({"targets": TARGETS}, {"metric": "phone.auc"}, "no such target"),
        ({"targets": TARGETS}, {"metric": "price.auc"}, "price.rmse, price.mae"),
        ({"targets": [TARGETS[0], TARGETS[0]]}, {}, "twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    model: dict[str, Any], training: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(model, **training)


def test_a_metric_without_both_classes_ends_the_training(shop: Shop, tmp_path: Path) -> None:
    everything = ["view", "cart", "purchase"]
    target = {"feature": "action", "kind": "binary", "positive": everything}
    chosen = recipe({"next_item": False, "targets": [target]})
    with pytest.raises(ConfigError, match="which the validation sessions do not"):
        train(shop.data, chosen.model, chosen.train, tmp_path / "run")
    chosen = recipe({"next_item": False, "targets": [target]}, metric="action.log_loss")
    train(shop.data, chosen.model, chosen.train, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert "eval_action.log_loss" in lines
    assert "NaN" not in lines


def test_lists_are_not_asked_of_a_run_without_them(shop: Shop, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no lists to filter"):
        write_recommendations(
            runs.alone, shop.data, "test", tmp_path / "x.parquet", filter_seen=True
        )
    chosen = recipe({"next_item": False, "targets": TARGETS})
    with pytest.raises(ConfigError, match="evaluates the next item of each window"):
        train_windows(shop.data, chosen.model, chosen.train, tmp_path / "run", seconds=86_400)


def test_what_a_run_without_lists_cannot_do_is_refused(
    shop: Shop, runs: Runs, tmp_path: Path
) -> None:
    for words, message in (
        (
            ["export", runs.alone, "--scoring", "int8"],
            "int8 is for runs that predict the next item",
        ),
        (["predict", runs.alone, "--data", shop.data, "--embeddings", "items"], "nor vectors"),
    ):
        arguments = [*map(str, words), "--out", str(tmp_path / "out.parquet")]
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    exported = export(runs.alone, tmp_path / "repository")
    assert not exported.ranks_items
    assert exported.targets == NAMES
