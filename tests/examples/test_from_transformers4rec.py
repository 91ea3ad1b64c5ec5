"""The example that goes the whole way of Transformers4Rec's notebooks."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pipeline
from pipeline import compat as tr
from tests.conftest import ROOT


def load_example() -> Any:
    path = ROOT / "examples" / "from_transformers4rec.py"
    spec = importlib.util.spec_from_file_location("from_transformers4rec", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pytestmark = pytest.mark.train
EXAMPLE = load_example()


@dataclass
class Way:
    """Everything that the example makes of a small log."""

    log: pd.DataFrame
    sessions: Any
    model: tr.Model
    over_time: dict[str, list[float]]
    repository: Path


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    from pipeline.preprocessing.synthetic import synthesize

    folder = tmp_path_factory.mktemp("example")
    synthesize(folder / "clicks.parquet", sessions=400, items=60, days=3, seed=1)
    log = EXAMPLE.read_log(folder / "clicks.parquet")
    torch.manual_seed(0)
    sessions = EXAMPLE.etl(log, folder)
    model = EXAMPLE.build_model(sessions.schema, d_model=32)
    over_time = EXAMPLE.train(model, sessions, epochs=4)
    model.save(folder / "model")
    loaded = tr.Model.load(folder / "model")
    return Way(log, sessions, model, over_time, EXAMPLE.export(loaded, sessions, folder / "repo"))


def raw_sessions(log: pd.DataFrame) -> pd.Series:
    lists = log.sort_values("timestamp", kind="stable").groupby("session_id")["item_id"].agg(list)
    return lists[lists.str.len() >= 2]


def test_sessions_are_those_of_the_log(way: Way) -> None:
    files = sorted((way.sessions.folder / "days").rglob("*.parquet"))
    assert {file.parent.name for file in files} == {"1", "2", "3"}
    frame = pd.concat(map(pd.read_parquet, files)).set_index("session_id").sort_index()
    unique = pd.read_parquet(way.sessions.categories / "unique.item_id.parquet")["item_id"]
    names = np.array(["", "", "", *unique])
    expected = raw_sessions(way.log)
    assert list(frame.index) == list(expected.index)
    for items, raw in zip(frame["item_id"], expected, strict=True):
        assert names[items].tolist() == raw[-20:]


def test_training_over_time_beats_chance(way: Way) -> None:
    recalls = way.over_time["AOT_eval_/next-item/recall@10"]
    assert len(recalls) == 2
    assert np.mean(recalls) > 1.3 * 10 / 60


def test_saved_and_exported_model_is_the_trained_one(way: Way) -> None:
    loaded = tr.Model.load(way.sessions.folder / "model")
    loader = tr.MerlinDataLoader.from_schema(
        way.sessions.schema, way.sessions.folder / "days/3/test.parquet", 64
    )
    batch, _ = next(iter(loader))
    with torch.no_grad():
        assert torch.equal(way.model.cpu().eval()(batch)[:, 3:], loaded(batch)[:, 3:])
    assert (way.repository / "manifest.json").exists()


def test_model_is_a_run_with_the_files_of_the_workflow(way: Way) -> None:
    folder = way.sessions.folder
    data = pipeline.Data.from_parquet(
        sorted((folder / "days").glob("*/train.parquet")),
        folder / "schema.pbtxt",
        valid=folder / "days/3/valid.parquet",
        categories=way.sessions.categories,
        max_sequence_length=20,
    )
    result = pipeline.evaluate(
        way.model, data, part="valid", positions="last", filter_seen=False, cutoffs=(10, 20)
    )
    for name, values in way.over_time.items():  # the last of them are those of day 3
        metric = name.rpartition("/")[2]
        assert values[-1] == pytest.approx(result.results["model"][metric], abs=1e-9)
    lists = pipeline.Run.of(way.model, data).recommend({"item_id": ["sku-00001"]}, 3)
    assert set(lists["item_id"]) <= set(way.log["item_id"])


def expected_lists(way: Way, session: pd.DataFrame) -> tuple[list[str], torch.Tensor]:
    """Raw ids and scores of the model for a raw session, encoded by the NVTabular workflow."""
    import nvtabular as nvt

    row = way.sessions.workflow.transform(nvt.Dataset(session, cpu=True)).to_ddf().compute()
    columns = ("item_id", "category", "price")
    batch = {name: torch.tensor(np.stack(row[name].tolist())) for name in columns}
    unique = pd.read_parquet(way.sessions.categories / "unique.item_id.parquet")["item_id"]
    with torch.no_grad():
        scores = way.model.cpu().eval()(batch)[0]
    best = scores.topk(5)
    return [unique[int(index)] for index in best.indices], best.values


@pytest.mark.server
def test_server_answers_raw_ids_as_the_workflow_and_the_model(way: Way) -> None:
    sessions = raw_sessions(way.log).index[:5]
    with EXAMPLE.served(way.repository) as client:
        for name in sessions:
            session = way.log[way.log["session_id"] == name]
            answer = client.recommend_frame(session, 5)
            items, scores = expected_lists(way, session)
            assert answer["item_id"].tolist() == items
            assert np.allclose(answer["score"], scores.numpy(), atol=1e-4)
