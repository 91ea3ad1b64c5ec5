"""Lists that are ranked by targets per item: every way of making one gives the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sklearn
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.evaluation.predict import write_recommendations
from pipeline.evaluation.recommender import Recommender
from pipeline.evaluation.run import evaluate
from pipeline.evaluation.targets import evaluation_loader, rank_targets
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.in_process import open_run
from pipeline.model.run import Run
from pipeline.model.tasks.item_output import ItemOutput
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.choices import ranking_expression
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.client.client import Client
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from pipeline.training.incremental.run import train_windows
from pipeline.training.report.run import write_report
from pipeline.training.run import train
from tests.conftest import Shop
from tests.serve.test_targets import columns
from tests.training.test_recipes import recipe

TARGETS = [
    {"feature": "action", "kind": "binary", "positive": ["cart", "purchase"], "per_item": True},
    {"feature": "price", "kind": "regression", "per_item": True, "weight": 0.5},
    {"feature": "device", "kind": "binary", "positive": ["phone"]},
]
RANK_BY = "next_item + 2 * log(action) - price / 100"
PER_ITEM = ["action", "price"]


@dataclass(frozen=True)
class Served:
    """A run that ranks by its targets, exported in one server."""

    run: Path
    server: TritonServer


@pytest.fixture(scope="module")
def served(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("rank_by")
    chosen = recipe({"architecture": "xlnet", "targets": TARGETS, "rank_by": RANK_BY}, epochs=2)
    train(shop.data, chosen.model, chosen.train, directory / "run")
    export(directory / "run", directory / "repository")
    with running_server(directory / "repository", ports=free_ports()) as server:
        yield Served(directory / "run", server)


def test_evaluation_ranks_as_prediction_without_the_last_item(shop: Shop, served: Served) -> None:
    recommender = Recommender.open(served.run)
    model = recommender.model
    loader = evaluation_loader(Data.open(shop.data).path, "test", model, 4096)
    for filter_seen in (False, True):
        ranked = rank_targets(model, loader, "last", filter_seen=filter_seen)
        [batch] = list(loader)
        rows = (batch.lengths > 1).nonzero()[:, 0]
        stops = batch.lengths[rows] - 1
        with torch.inference_mode():
            best = model.top_k(
                recommender.newest(batch, rows, stops),
                len(recommender.catalogue),
                excluded=recommender.items(batch, rows, stops) if filter_seen else None,
            )
        targets = torch.from_numpy(ranked.targets)[:, None]
        places = (best.items == targets).float()
        inside = places.any(1).numpy()
        ranks = places.argmax(1).numpy() + 1
        assert inside.sum() > 50
        np.testing.assert_array_equal(ranks[inside], ranked.ranks[inside])


def test_metrics_of_targets_are_at_the_true_next_item(shop: Shop, served: Served) -> None:
    result = evaluate(served.run, shop.data, positions="last", cutoffs=(20,))
    recommender = Recommender.open(served.run)
    model = recommender.model
    [batch] = list(evaluation_loader(Data.open(shop.data).path, "test", model, 4096))
    rows = (batch.lengths > 1).nonzero()[:, 0]
    stops = batch.lengths[rows] - 1
    last = batch.offsets[rows] + stops
    items = batch.sequences["item_id"][last].long()
    rows, stops, last, items = (x[items >= FIRST_ITEM] for x in (rows, stops, last, items))
    with torch.inference_mode():
        window = recommender.newest(batch, rows, stops)
        values = model.predict(window)
    chances, prices = (values[n].gather(1, items[:, None])[:, 0].numpy() for n in PER_ITEM)
    actions = recommender.fitted.vocabularies["action"].values.to_pylist()
    names = [actions[i - FIRST_ITEM] for i in batch.sequences["action"][last].tolist()]
    truth = np.isin(names, ["cart", "purchase"])
    task = result.tasks["action"]
    assert task.targets == len(truth)
    assert task.results["run"]["auc"] == pytest.approx(sklearn.roc_auc_score(truth, chances))
    assert task.results["training-mean"]["auc"] == 0.5
    assert task.results["training-mean"]["calibration"] == pytest.approx(1, abs=0.2)
    price = model.item_tasks[1].in_units(batch.sequences["price"][last]).numpy()
    rmse = result.tasks["price"].results["run"]["rmse"]
    assert rmse == pytest.approx(sklearn.root_mean_squared_error(price, prices), rel=1e-5)
    mean = result.tasks["price"].results["training-mean"]["rmse"]
    assert rmse < mean  # the price is the item's
    lines = (served.run / "metrics.jsonl").read_text(encoding="utf-8")
    assert "eval_action.auc" in lines
    assert "eval_price.rmse" in lines


def test_server_file_and_python_agree(shop: Shop, served: Served, tmp_path: Path) -> None:
    write_recommendations(served.run, shop.data, "test", tmp_path / "lists.parquet", k=10)
    offline = pd.read_parquet(tmp_path / "lists.parquet")
    rows = np.arange(1_000) % len(offline)
    expected = {
        name: np.stack(offline[name].to_list())[rows] for name in ("item_ids", "scores", *PER_ITEM)
    }
    combined = expected["scores"] - 2 * np.log(expected["action"]) + expected["price"] / 100
    assert (np.diff(expected["scores"]) <= 0).all()
    assert (np.diff(combined) > 0).any(), "other lists than those of the next item"
    sessions = columns(shop, 1_000)
    urls = f"http://{served.server.http_url}", f"grpc://{served.server.grpc_url}"
    with open_run(served.run) as local, Client(urls[0]) as http, Client(urls[1]) as grpc:
        for client in (local, http, grpc):
            answers = [
                client.recommend(sessions[i : i + 100], 10, targets=True)
                for i in range(0, 1_000, 100)
            ]
            scores = np.concatenate([answer.scores for answer in answers])
            np.testing.assert_allclose(scores, expected["scores"], atol=1e-4, rtol=1e-4)
            items = np.concatenate([answer.items for answer in answers])
            same = items == expected["item_ids"]
            assert same.mean() > 0.999  # others tie
            for name in PER_ITEM:
                values = np.concatenate([answer.item_targets[name] for answer in answers])
                np.testing.assert_allclose(values[same], expected[name][same], atol=1e-4, rtol=1e-4)
            device = np.concatenate([answer.targets["device"] for answer in answers])
            np.testing.assert_allclose(
                device, offline["device"].to_numpy()[rows], atol=1e-4, rtol=1e-4
            )
            plain = client.recommend(sessions[:5], 3)
            assert not plain.item_targets, "they come where they are asked for"
            assert (plain.items == items[:5, :3]).all()
            check_filters(client, sessions[:30])


def check_filters(client: Any, sessions: list[dict[str, Any]]) -> None:
    """Filters take items out of the ranking, and change nothing else."""
    num_items = client.served.max_k if isinstance(client, Client) else 150
    whole = client.recommend(sessions, num_items, targets=True)
    candidates = whole.items[0, 1:40:3].tolist()
    exclude = candidates[:2]
    some = client.recommend(
        sessions, 5, candidates=candidates, exclude=exclude, filter_seen=True, targets=True
    )
    for row, session in enumerate(sessions):
        allowed = [
            place
            for place, item in enumerate(whole.items[row].tolist())
            if item in candidates[2:] and item not in session["item_id"]
        ][:5]
        filled = np.isfinite(some.scores[row])
        count = min(len(allowed), int(filled.sum()))
        allowed = allowed[:count]
        np.testing.assert_allclose(some.scores[row][:count], whole.scores[row][allowed], atol=1e-4)
        for name in PER_ITEM:
            left, right = (answer.item_targets[name][row] for answer in (some, whole))
            np.testing.assert_allclose(left[:count], right[allowed], rtol=1e-4, atol=1e-4)


def test_targets_of_the_list_alone_need_a_list(served: Served, shop: Shop) -> None:
    with open_run(served.run) as client:
        frame = client.predict(columns(shop, 3))
    assert [*frame.columns] == ["session_id", "device"]


def test_next_item_alone_gives_the_lists_of_no_expression(shop: Shop, served: Served) -> None:
    outputs = []
    for rank_by in (None, "next_item", "0 * next_item + action"):
        recommender = Recommender(Run.open(served.run))
        expression = None if rank_by is None else ranking_expression(rank_by, PER_ITEM)
        recommender.model.rank_by = expression
        lists = list(recommender.recommend(shop.data, "test", 150, filter_seen=True))
        outputs.append([(x.items.tolist(), x.scores.tobytes()) for x in lists])
    assert outputs[0] == outputs[1]
    by_chance = np.concatenate([x.targets["action"] for x in lists])
    counts = np.concatenate([x.counts for x in lists])
    inside = np.arange(150) < counts[:, None]
    assert (np.diff(by_chance)[inside[:, 1:]] <= 0).all()


def test_int8_is_refused_and_onnx_agrees(shop: Shop, served: Served, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"int8 ranks by inner products, and the run by .*log"):
        export(served.run, tmp_path / "int8", ExportOptions(scoring="int8"))
    pytest.importorskip("onnxruntime")
    from pipeline.exporting.onnx_directory import export_onnx

    export_onnx(served.run, tmp_path / "onnx", ExportOptions(format="onnx"))


def test_command_line_and_report(shop: Shop, served: Served, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [*map(str, words)])
        assert result.exit_code == 0, result.output
        return result.output

    printed = run("evaluate", served.run, "--data", shop.data)
    assert "action: " in printed
    lists = run("recommend", served.run, "--items", "sku-00001", "--k", "2", "--targets")
    assert lists.count("  action 0.") == 2
    assert lists.count("  price ") == 2
    page = write_report(served.run, shop.data, tmp_path / "report.html")["page"]
    assert "<h2>action</h2>" in Path(page).read_text(encoding="utf-8")


def test_windows_keep_the_targets_of_items(shop: Shop, tmp_path: Path) -> None:
    chosen = recipe({"architecture": "gru", "targets": TARGETS[:2], "rank_by": RANK_BY})
    train_windows(shop.data, chosen.model, chosen.train, tmp_path / "run", seconds=86_400 * 7)
    model = Run.open(tmp_path / "run").model
    assert model.rank_by is not None
    for task in model.item_tasks:
        assert isinstance(task.output, ItemOutput)
        assert len(task.output.item_bias) == model.num_rows
        assert task.output.item_bias[FIRST_ITEM:].abs().min() > 0
    result = evaluate(tmp_path / "run", shop.data, baselines=False)
    assert result.tasks["action"].targets > 0


def test_lists_ranked_by_purchases_hold_more_of_them(tmp_path: Path) -> None:
    """Of items that follow equally often, a few are bought: lists have these first."""
    generator = np.random.default_rng(0)
    sessions, clicks, items = 1_500, 5, 60
    item = generator.integers(0, items, (sessions, clicks))
    chance = np.where(np.arange(items) % 6 == 0, 0.7, 0.05)
    bought = generator.random(item.shape) < chance[item]
    log = pd.DataFrame(
        {
            "session": np.arange(sessions).repeat(clicks),
            "item": item.ravel(),
            "time": np.arange(sessions * clicks),
            "event": np.where(bought.ravel(), "purchase", "view"),
        }
    )
    log.to_csv(tmp_path / "log.csv", index=False)
    chosen = Preprocess.from_dict(
        {
            "session": "session",
            "item": "item",
            "timestamp": {"column": "time", "unit": "s"},
            "features": [{"name": "event", "kind": "categorical"}],
            "split": {"valid": 0.1, "test": 0.1},
        },
        "test",
    )
    preprocess(chosen, [tmp_path / "log.csv"], [], tmp_path / "data")
    target = {"feature": "event", "kind": "binary", "positive": ["purchase"], "per_item": True}
    shares, recall = [], []
    for name, rank_by in (("plain", None), ("bought", "next_item + log(event)")):
        model = {"architecture": "gru", "targets": [target], "rank_by": rank_by}
        chosen_recipe = recipe(model, epochs=6, learning_rate=0.01, batch_size=64)
        train(tmp_path / "data", chosen_recipe.model, chosen_recipe.train, tmp_path / name)
        [lists] = Recommender.open(tmp_path / name).recommend(
            tmp_path / "data", "test", 5, batch_size=1_000
        )
        shares.append(float(chance[lists.items].mean()))
        result = evaluate(tmp_path / name, tmp_path / "data", baselines=False)
        recall.append(result.tasks["event"].results[name]["auc"])
    assert min(recall) > 0.75  # type: ignore[type-var]
    assert shares[0] < 0.3
    assert shares[1] > 0.6


@pytest.mark.parametrize(
    ("model", "training", "words"),
    [
        ({"rank_by": "next_item"}, {}, "no target has `per_item`"),
        ({"targets": TARGETS, "rank_by": "next_item + device"}, {}, "no value for the name"),
        ({"targets": TARGETS, "rank_by": "next_item +"}, {}, "`rank_by`: .* is no expression"),
        ({"targets": TARGETS, "rank_by": "action.__class__"}, {}, "is not allowed"),
        ({"targets": TARGETS, "members": [{}]}, {}, "does not work with `members`"),
        ({"targets": TARGETS, "next_item": False}, {}, "does not work with `next_item: false`"),
        (
            {"targets": TARGETS, "masking": "rtd", "architecture": "xlnet"},
            {},
            "does not work with `masking: rtd`",
        ),
        ({"targets": TARGETS}, {"item_table": "sharded"}, "whole item table"),
        ({"targets": [{**TARGETS[0], "summary": "mean"}]}, {}, "not for `per_item`"),
        (
            {"targets": [{**TARGETS[1], "feature": "next_item"}]},
            {},
            "`next_item` is the next item's score",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    model: dict[str, Any], training: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(model, **training)


def test_a_feature_of_the_session_has_no_value_of_the_next_item(shop: Shop, tmp_path: Path) -> None:
    chosen = recipe({"targets": [{**TARGETS[2], "per_item": True}]})
    with pytest.raises(ConfigError, match="'device' is one value of a session"):
        train(shop.data, chosen.model, chosen.train, tmp_path / "run")
