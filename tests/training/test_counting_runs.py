"""Counting models through every stage: trained, evaluated, exported and served as any other run."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.directory import Data
from pipeline.evaluation.baselines import BASELINES
from pipeline.evaluation.recommender import Recommender
from pipeline.evaluation.run import evaluate
from pipeline.evaluation.targets import evaluation_loader, rank_targets
from pipeline.exporting.onnx_directory import export_onnx
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export, load_served
from pipeline.exporting.torchscript import example_request, pack_request, prove_parity, trace
from pipeline.in_process import open_run
from pipeline.model.model_files import WEIGHTS_FILE, load_model
from pipeline.model.run import Run
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.synthetic import synthesize
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.search_space import Range, read_space
from pipeline.serve.client.client import Client
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.training.counting import fit_model
from pipeline.training.incremental.run import train_windows
from pipeline.training.run import train
from pipeline.training.seeds import train_seeds
from pipeline.training.tune import tune
from pipeline.updating.run import UpdateJob, update_model
from tests.conftest import ROOT

MODELS: dict[str, dict[str, Any]] = {
    **{name: {"architecture": name} for name in BASELINES},
    "item-knn": {"architecture": "item-knn"},
    "item-knn-of-all": {"architecture": "item-knn", "options": {"weighting": "div"}},
    "ease": {"architecture": "ease", "options": {"regularization": 10}},
    "popularity-by": {"architecture": "popularity", "options": {"by": "category"}},
    "popularity-by-device": {"architecture": "popularity", "options": {"by": "device"}},
    "v-sknn": {
        "architecture": "session-knn",
        "options": {"weighting": "linear", "weighting_score": "div", "idf": 2, "k": 50},
    },
    "stan": {"architecture": "session-knn", "options": {"weights": "stan"}},
}
"""`model` section by the name of a run."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counting")
    synthesize(folder / "clicks.csv.gz", sessions=600, items=80, seed=2)
    recipe = Recipe.load(ROOT / "configs" / "demo.yaml")
    preprocess(recipe.preprocess, [folder / "clicks.csv.gz"], [], folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Path]:
    paths = {}
    for name, model in MODELS.items():
        recipe = Recipe.from_dict({"model": model}, "recipe")
        paths[name] = data.parent / f"run-{name}"
        train(data, recipe.model, recipe.train, paths[name])
    return paths


@pytest.mark.parametrize("name", BASELINES)
def test_run_has_the_metrics_of_the_baseline(name: str, runs: dict[str, Path], data: Path) -> None:
    lists = ("cov", "pop")  # metrics of whole lists
    for filter_seen in (False, True):
        result = evaluate(runs[name], data, filter_seen=filter_seen)
        assert result.targets > 100
        own, baseline = (
            # a short list of a baseline ends in items of the prefix, though they are filtered
            {k: v for k, v in result.results[row].items() if not filter_seen or k[:3] not in lists}
            for row in (f"run-{name}", name)
        )
        assert len(own) > 9
        assert own == pytest.approx(baseline, abs=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_equals_prediction_without_the_last_item(
    name: str, runs: dict[str, Path], data: Path
) -> None:
    recommender = Recommender.open(runs[name])
    model = recommender.model
    loader = evaluation_loader(Data.open(data).path, "test", model, 4096)
    [batch] = list(loader)
    rows = (batch.lengths > 1).nonzero()[:, 0]
    stops = batch.lengths[rows] - 1
    for filter_seen in (False, True):
        ranked = rank_targets(model, loader, "last", filter_seen=filter_seen)
        with torch.inference_mode():
            best = model.top_k(
                recommender.newest(batch, rows, stops),
                len(recommender.catalogue),
                excluded=recommender.items(batch, rows, stops) if filter_seen else None,
            )
        places = best.items == torch.from_numpy(ranked.targets)[:, None]
        inside = places.any(1)
        own = torch.where(places, best.scores, -torch.inf).amax(1, keepdim=True)
        ranks = (best.scores >= own).sum(1)[inside]  # ties count against the model
        assert int(inside.sum()) > 20
        assert ranks.tolist() == ranked.ranks[inside.numpy()].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_program_equals_the_model_for_shapes_that_were_not_traced(
    name: str, runs: dict[str, Path]
) -> None:
    _, model = load_served(Run.open(runs[name]))
    model.eval()
    program = trace(model, 20)
    assert prove_parity(model, program, 20, tolerance=1e-5) <= 1e-5
    for seed, (sessions, length, k) in enumerate([(1, 3, 80), (7, 20, 5), (40, 11, 12), (2, 1, 1)]):
        packed = example_request(model, length, sessions, seed, k).packed(model)
        with torch.no_grad():
            assert torch.equal(program(packed), model(packed))


@pytest.mark.parametrize("name", MODELS)
def test_server_in_the_process_recommends_as_the_run(
    name: str, runs: dict[str, Path], data: Path
) -> None:
    lists = next(Recommender.open(runs[name]).recommend(data, "test", k=7))
    clicks = data.parent / "clicks.csv.gz"
    with open_run(runs[name]) as client:
        records = client.recommend_log([clicks], 7)
        by_session = {record["session_id"]: record["recommendations"] for record in records}
    from pipeline.data.sessions import session_ids

    ids = session_ids(data, "test")
    assert ids is not None
    assert len(ids) > 20
    for session, items, scores in zip(ids.tolist(), lists.items, lists.scores, strict=False):
        answer = by_session[session]
        assert [entry["item_id"] for entry in answer] == items.tolist()
        np.testing.assert_allclose([entry["score"] for entry in answer], scores, rtol=1e-5)


@pytest.mark.slow
def test_triton_serves_a_counting_model(runs: dict[str, Path], tmp_path: Path) -> None:
    result = export(runs["stan"], tmp_path / "repository")
    assert result.largest_score_difference <= 1e-5
    beside = ExportOptions(name="similar-items", similar=True)
    export(runs["stan"], tmp_path / "repository", beside)
    sessions = [{"item_id": ["sku-00001", "sku-00002"]}, {"item_id": ["unknown"]}]
    with (
        running_server(tmp_path / "repository", ports=free_ports()) as server,
        Client(f"grpc://{server.grpc_url}") as client,
        Client(f"grpc://{server.grpc_url}", name="similar-items") as similar,
        open_run(runs["stan"]) as local,
    ):
        near = similar.recommend([{"item_id": ["sku-00001"]}], 5, filter_seen=True)
        answer = client.recommend(sessions, 9, filter_seen=True, embeddings=True)
        expected = local.recommend(sessions, 9, filter_seen=True)
    assert answer.items.tolist() == expected.items.tolist()
    np.testing.assert_allclose(answer.scores, expected.scores, rtol=1e-5)
    lists = Recommender.open(runs["stan"]).similar_items(["sku-00001"], 5)
    assert near.items.tolist() == lists.items.tolist()
    np.testing.assert_allclose(near.scores, lists.scores, rtol=1e-5)


@pytest.mark.parametrize("name", ["session-knn", "ease", "gru"])
def test_similar_items_are_a_model_that_is_served(
    name: str, runs: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run" if name == "gru" else runs[name]
    if name == "gru":
        model = {"architecture": name, "d_model": 16, "n_layer": 1}
        recipe = Recipe.from_dict({"model": model, "train": {"epochs": 1}}, "recipe")
        train(data, recipe.model, recipe.train, path)
    recommender = Recommender.open(path)
    _, served = load_served(Run.open(path), similar=9)
    served.eval()
    assert served.names == ["item_id"]
    program = trace(served, 20)
    assert prove_parity(served, program, 20, tolerance=1e-5) <= 1e-5
    lists = recommender.similar_items(recommender.catalogue[:50].tolist(), 9)
    items = torch.arange(3, 53)[:, None]
    none = torch.zeros(50, 0, dtype=torch.int64)
    request = [torch.cat([torch.full_like(items, 4), items], 1)]  # the newest counts
    answer = served.unpack(program(pack_request(served, request, 9, items, none)))
    is_similar = lists.scores > 0
    assert is_similar.sum() > 100
    np.testing.assert_allclose(
        answer.scores.numpy()[is_similar], lists.scores[is_similar], rtol=1e-5
    )
    same = recommender.catalogue[answer.items.numpy() - 3] == lists.items
    assert same[is_similar].mean() > 0.99  # but for items whose scores differ in the last digit
    with pytest.raises(ConfigError, match="Give it a --name"):
        ExportOptions(similar=True)
    with pytest.raises(ConfigError, match="no items are similar"):
        load_served(Run.open(runs["popularity-by"]), similar=9)


def test_unknown_session_has_the_most_popular_items(runs: dict[str, Path]) -> None:
    popular = Run.open(runs["popularity"]).model
    for name in MODELS:
        with open_run(runs[name]) as client:
            [record] = client.recommend([{"item_id": ["unknown"]}], 3).records([None])
        if name in ("recent-popularity", "popularity-by-device"):
            continue
        best = [entry["item_id"] for entry in record["recommendations"]]
        catalogue = Recommender.open(runs[name]).catalogue
        order = popular.scorer.popularity.sort(descending=True, stable=True).indices
        assert best == catalogue[order[:3].numpy()].tolist()


def test_popularity_by_a_column_counts_the_value_of_the_newest_interaction(
    runs: dict[str, Path], data: Path
) -> None:
    from pipeline.data.sessions import read_sessions

    table = read_sessions(data, "train", ["item_id", "category"])
    items, categories = (table[n].combine_chunks().flatten().to_numpy() for n in table.column_names)
    model = Run.open(runs["popularity-by"]).model
    value = int(categories[0])
    counts = np.bincount(items[categories == value], minlength=model.num_rows)[3:]
    scores = model.item_scores(torch.tensor([[4, value, 0], [value, 2, 1]]))
    assert scores.tolist() == [counts.tolist()] * 2


def test_similar_items_follow_the_item_alone(runs: dict[str, Path]) -> None:
    recommender = Recommender.open(runs["sequential-rules"])
    ids = recommender.catalogue[:3].tolist()
    lists = recommender.similar_items(ids, 4)
    for row, each in enumerate(ids):
        assert each not in lists.items[row].tolist()
        with open_run(runs["sequential-rules"]) as client:
            [record] = client.recommend([{"item_id": [each]}], 4, filter_seen=True).records([None])
        assert [e["item_id"] for e in record["recommendations"]] == lists.items[row].tolist()
    assert len(recommender.similar_items([], 4).items) == 0
    with pytest.raises(ConfigError, match="no vectors"):
        recommender.item_embeddings()


@pytest.mark.parametrize(
    ("name", "table", "change"),
    [
        ("session-knn", "scorer.posting_sessions", lambda t: t + 10_000),
        ("session-knn", "scorer.session_items", lambda t: t - 1),
        ("session-knn", "scorer.session_factors", lambda t: t * float("nan")),
        ("session-knn", "scorer.item_factors", lambda t: t[1:]),
        ("stan", "scorer.posting_positions", lambda t: t[1:]),
        ("sequential-rules", "scorer.offsets", lambda t: t.flip(0)),
        ("sequential-rules", "scorer.weights", lambda t: t[1:]),
        ("sequential-rules", "scorer.items", lambda t: t + 80),
        ("popularity", "scorer.popularity", lambda t: t[:-1]),
        ("popularity", "scorer.popularity", lambda t: t.double()),
        ("popularity", "scorer.further", None),
    ],
)
def test_damaged_tables_are_refused(
    name: str, table: str, change: Any, runs: dict[str, Path], tmp_path: Path
) -> None:
    source = runs[name]
    tables = load_file(source / WEIGHTS_FILE)
    tables[table] = torch.zeros(3) if change is None else change(tables[table])
    (tmp_path / "model.json").write_bytes((source / "model.json").read_bytes())
    save_file({n: t.contiguous() for n, t in tables.items()}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ArtifactError, match="does not hold a model of this version"):
        load_model(tmp_path)


def test_trials_search_over_the_options(data: Path, tmp_path: Path) -> None:
    recipe = {"model": {"architecture": "session-knn", "options": {"sample_size": 50}}}
    (tmp_path / "space.yaml").write_text(
        "model.options.k: {int: [1, 100]}\nmodel.options.weighting: {choice: [same, div]}\n"
    )
    space = read_space(tmp_path / "space.yaml")
    facts = tune(data, recipe, space, tmp_path / "out", num_trials=3)
    assert {trial["state"] for trial in facts["trials"]} == {"complete"}
    best = max(facts["trials"], key=lambda trial: trial["value"])
    assert facts["best"]["settings"] == best["settings"]
    chosen = Recipe.load(tmp_path / "out" / "best.yaml").model
    assert chosen.options["k"] == best["settings"]["model.options.k"]
    assert chosen.options["sample_size"] == 50
    assert recipe["model"]["options"] == {"sample_size": 50}
    impossible = tune(
        data, recipe, {"model.options.kk": Range("int", (1, 2))}, tmp_path / "no", num_trials=1
    )
    assert "did you mean `k`" in impossible["trials"][0]["reason"]


def test_run_keeps_the_options_that_it_was_made_of(runs: dict[str, Path]) -> None:
    facts = Run.open(runs["stan"]).facts
    assert facts["model"]["options"]["lambda_snh"] == 5
    assert facts["model"]["options"]["k"] == 200
    assert list(facts["model"]) == ["architecture", "options"]
    assert facts["valid_ndcg@20"] > 0
    assert "session-knn" in (runs["stan"] / "report.html").read_text()


def test_training_from_an_earlier_run_counts_anew(
    runs: dict[str, Path], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe.from_dict({"model": MODELS["session-knn"]}, "recipe")
    with caplog.at_level("INFO", "pipeline"):
        train(data, recipe.model, recipe.train, tmp_path / "run", start=runs["popularity"])
    assert "counts these sessions alone, and nothing of" in caplog.text
    again, first = (
        load_file(folder / WEIGHTS_FILE) for folder in (tmp_path / "run", runs["session-knn"])
    )
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_update_serves_the_counts_of_the_newest_logs(tmp_path: Path) -> None:
    synthesize(tmp_path / "clicks.csv", sessions=600, items=80, days=8, seed=2)
    clicks = pd.read_csv(tmp_path / "clicks.csv")
    middle = clicks["time"].sort_values().iloc[len(clicks) // 2]
    logs = {"early": clicks[clicks["time"] < middle], "late": clicks[clicks["time"] >= middle]}
    recipe = Recipe.load(
        ROOT / "configs" / "demo.yaml",
        ("model.architecture=sequential-rules", "preprocess.split={valid: 0.1, test: 0.25}"),
    )
    generations = []
    for name, log in logs.items():
        log.to_csv(tmp_path / f"{name}.csv", index=False)
        job = UpdateJob(folder=tmp_path / "shop", recipe=recipe, logs=[tmp_path / f"{name}.csv"])
        generations.append(update_model(job))
    assert [generation.accepted for generation in generations] == [True, True]
    assert generations[1].comparison is not None
    [folder, base] = [tmp_path / "shop" / f"{kind}-2" for kind in ("run", "data")]
    anew = fit_model(Data.open(base), recipe.model).state_dict()
    served = Run.open(folder).model.state_dict()
    assert all(torch.equal(served[name], table) for name, table in anew.items())


def test_what_a_counting_model_cannot_do_is_refused(
    runs: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    recipe = Recipe.from_dict({"model": MODELS["session-knn"]}, "recipe")
    with pytest.raises(ConfigError, match="ONNX has no operators"):
        export_onnx(runs["session-knn"], tmp_path / "onnx", ExportOptions(format="onnx"))
    with pytest.raises(ConfigError, match="--scoring int8"):
        export(runs["session-knn"], tmp_path / "int8", ExportOptions(scoring="int8"))
    with pytest.raises(ConfigError, match="no random part"):
        train_seeds(data, recipe, tmp_path / "seeds", 2)
    with pytest.raises(ConfigError, match="--windows"):
        train_windows(data, recipe.model, recipe.train, tmp_path / "windows", seconds=86_400)
    loss = recipe.train.model_copy(update={"metric": "loss"})
    with pytest.raises(ConfigError, match=r"train.metric"):
        train(data, recipe.model, loss, tmp_path / "loss")
    by_price = Recipe.from_dict(
        {"model": {"architecture": "popularity", "options": {"by": "price"}}}, "recipe"
    )
    with pytest.raises(ConfigError, match=r"'price', expected a categorical .*category"):
        train(data, by_price.model, by_price.train, tmp_path / "price")
    assert not list(tmp_path.iterdir())


def test_command_notes_settings_that_are_not_read(data: Path, tmp_path: Path) -> None:
    settings = ["model.architecture=co-visitation", "model.d_model=8", "train.epochs=3"]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    result = CliRunner().invoke(
        app, ["train", str(data), *arguments, "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    assert "values of co-visitation" in result.output
