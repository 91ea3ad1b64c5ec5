"""A model that was put together in Python does what a run does, from evaluation to the server."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import pipeline
from pipeline import model as tr
from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, PipelineError, ServingError
from pipeline.core.files import hash_file
from pipeline.core.manifest import MANIFEST
from pipeline.core.program_check import RefusedProgramError, checked_program
from pipeline.data.directory import Data
from pipeline.model.program import PROGRAM_FILE, save_program
from pipeline.model.run import Run
from pipeline.model.tasks.targets import TargetTask
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.client import Client
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from tests.conftest import ROOT, Shop


class GatedResidual(nn.Module):
    """A block that the project does not have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.inner(hidden).tanh() * self.gate(hidden).sigmoid()


class FocalLoss(nn.Module):
    """A loss that the project does not have (Lin et al. 2017)."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        chance = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return -((1 - chance.exp()) ** 2) * chance


def hand_built(data: Data, masking: str = "clm") -> tr.Model:
    torch.manual_seed(5)
    schema = data.schema.select_by_name("item_id", "category", "price", "device")
    target = pipeline.model.tasks.targets.BinaryClassificationTask  # type: ignore[attr-defined]
    labels = torch.tensor([0.0, torch.nan, 0.0, *([0.0, 1.0] * 20)])
    rows = data.fitted.vocabularies["action"].num_rows
    column = pipeline.model.tasks.targets.ColumnValues("action", labels[:rows])  # type: ignore[attr-defined]
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema, max_sequence_length=12, d_output=16, masking=masking, embedding_dim_default=16
    )
    config = tr.BertConfig.build(16, 2, 1, 13)
    body = tr.SequentialBlock(
        inputs, GatedResidual(16), tr.TransformerBlock(config, masking=inputs.masking)
    )
    tasks = [
        tr.NextItemPredictionTask(loss=FocalLoss()),
        target(column, task_name="cart", summary_type=None),
    ]
    return tr.Model(tr.Head(body, tasks))


RECIPE = Recipe.from_dict(
    {"train": {"epochs": 4, "batch_size": 64, "learning_rate": 0.01, "metric": "recall@10"}}, "test"
)


@dataclass(frozen=True)
class Trained:
    model: tr.Model
    run: Path
    """What `train` wrote of it."""


@pytest.fixture(scope="module", params=["clm", pytest.param("mlm", marks=pytest.mark.slow)])
def trained(
    shop: Shop, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Trained:
    run = tmp_path_factory.mktemp("live") / "own"
    model = hand_built(Data.open(shop.data), request.param)
    pipeline.train(RECIPE, shop.data, model=model, out=run)
    return Trained(model, run)


def test_a_live_model_and_its_program_are_one_run(shop: Shop, trained: Trained) -> None:
    live = pipeline.evaluate(trained.model, shop.data, cutoffs=(5, 20))
    saved = pipeline.evaluate(trained.run, shop.data, cutoffs=(5, 20))
    assert saved.targets == live.targets > 100
    assert saved.results["own"] == pytest.approx(live.results["model"], abs=1e-6)
    assert saved.tasks["cart"].results["own"] == pytest.approx(
        live.tasks["cart"].results["model"], abs=1e-5
    )
    popularity = live.results["popularity"]["recall@20"]
    assert live.results["model"]["recall@20"] > popularity, "it has learned"


def test_lists_of_python_of_the_file_and_of_the_server_agree(
    shop: Shop, trained: Trained, tmp_path: Path
) -> None:
    files = {"live": trained.model, "saved": trained.run}
    frames = {}
    for name, run in files.items():
        pipeline.predict(run, shop.data, out=tmp_path / f"{name}.parquet", k=10)
        frames[name] = pd.read_parquet(tmp_path / f"{name}.parquet")
    items = {name: np.stack(frame["item_ids"]) for name, frame in frames.items()}
    assert (items["live"] == items["saved"]).mean() > 0.999, "but for near ties"
    np.testing.assert_allclose(frames["live"]["cart"], frames["saved"]["cart"], atol=1e-5)
    pipeline.export(trained.model, data=shop.data, out=tmp_path / "one")
    pipeline.export(trained.run, out=tmp_path / "two")
    sessions = [{"item_id": ["sku-00001", "sku-00002"], "price": [3.0, 4.0]}, {"item_id": ["x"]}]
    answers = []
    for repository in ("one", "two"):
        with (
            running_server(tmp_path / repository, ports=free_ports()) as server,
            Client(f"grpc://{server.grpc_url}") as client,
        ):
            answers.append(client.recommend(sessions, 5, targets=True))
    assert (answers[0].items == answers[1].items).all()
    np.testing.assert_allclose(answers[0].scores, answers[1].scores, atol=1e-4)
    np.testing.assert_allclose(answers[0].targets["cart"], answers[1].targets["cart"], atol=1e-5)
    local = pipeline.Run.of(trained.model, shop.data).recommend(sessions, 5)
    assert local["item_id"].tolist() == answers[0].items.reshape(-1).tolist()


def test_the_command_line_takes_it_up_without_its_code(
    shop: Shop, trained: Trained, tmp_path: Path
) -> None:
    def run(*words: object) -> str:
        command = [sys.executable, "-m", "pipeline", *map(str, words)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "cart: " in run("evaluate", trained.run, "--data", shop.data, "--no-baselines")
    assert "sku-" in run("recommend", trained.run, "--items", "sku-00001", "--targets")
    run("predict", trained.run, "--data", shop.data, "--out", "lists.parquet")
    run("export", trained.run, "--out", "repository")
    run("report", trained.run, "--data", shop.data, "--out", "report.html")
    assert "GatedResidual" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_a_program_cannot_do_is_refused(shop: Shop, trained: Trained, tmp_path: Path) -> None:
    words = ["train", shop.data, "--from", trained.run, "--out", tmp_path / "next"]
    with pytest.raises(ConfigError, match="holds a program, which cannot be trained"):
        CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="predicts and cannot be trained"):
        Run.open(trained.run).model.loss(None)  # type: ignore[arg-type]


def test_a_replaced_program_is_not_loaded(shop: Shop, trained: Trained, tmp_path: Path) -> None:
    class Planted(nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values + torch.from_file(self.path, True, 4)

    program = tmp_path / PROGRAM_FILE
    torch.jit.script(Planted(str(tmp_path / "planted"))).save(str(program))
    with (
        pytest.raises(RefusedProgramError, match="'from_file', which no model needs"),
        checked_program(program),
    ):
        pass
    assert not (tmp_path / "planted").exists()
    # an object of C++ is made while the pickled records are read, without a line of the program
    with zipfile.ZipFile(trained.run / PROGRAM_FILE) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    records[name] = b"\x80\x02c__torch__.torch.classes.rnn\nCellParamsBase\n)\x81}b."
    with zipfile.ZipFile(program, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with (
        pytest.raises(RefusedProgramError, match="CellParamsBase', which no model needs"),
        checked_program(program),
    ):
        pass


def test_what_no_command_loads_is_not_written(tmp_path: Path) -> None:
    class Printing(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            print("values")
            return values

    with pytest.raises(PipelineError, match="a program with 'print', which no model needs"):
        save_program(torch.jit.script(Printing()), tmp_path / "model.pt")


def test_a_program_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / PROGRAM_FILE
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("model/data/0", "w", force_zip64=True) as record,
    ):
        for _ in range(65):
            record.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(RefusedProgramError, match="not a program"), checked_program(path):
        pass


def test_a_server_does_not_load_a_replaced_program(shop: Shop, tmp_path: Path) -> None:
    repository, planted = tmp_path / "repository", tmp_path / "planted"
    shutil.copytree(shop.repository, repository)
    (program,) = repository.glob("*/1/model.pt")
    with zipfile.ZipFile(program) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    start = b"\n    return "
    name = next(n for n, text in records.items() if n.endswith(".py") and start in text)
    call = f'torch.from_file("{planted}", True, 4)'
    records[name] = records[name].replace(start, f"\n    _planted = {call}".encode() + start, 1)
    with zipfile.ZipFile(program, "w") as archive:
        for each, content in records.items():
            archive.writestr(each, content)
    manifest = json.loads((repository / MANIFEST).read_text())  # an attacker writes it as well
    del manifest["sha256"]
    manifest["files"][program.relative_to(repository).as_posix()] = {
        "bytes": program.stat().st_size,
        "sha256": hash_file(program),
    }
    (repository / MANIFEST).write_text(json.dumps(manifest))
    with (
        pytest.raises(ServingError, match="'from_file', which no model needs"),
        running_server(repository, ports=free_ports()),
    ):
        pass
    assert not planted.exists()


def test_a_model_of_other_data_is_refused(shop: Shop, tmp_path: Path) -> None:
    data = Data.open(shop.data)
    other = tr.ColumnSchema.create_categorical("item_id", 17, tags=["item_id"])
    inputs = tr.TabularSequenceFeatures.from_schema(
        tr.Schema((other,)), max_sequence_length=5, masking="clm"
    )
    body = tr.SequentialBlock(inputs, nn.Linear(inputs.output_size, 8))
    model = tr.Model(tr.Head(body, tr.NextItemPredictionTask()))
    with pytest.raises(ConfigError, match="rows for items"):
        pipeline.evaluate(model, data)
    with pytest.raises(ConfigError, match="needs the `data`"):
        pipeline.export(model, out=tmp_path / "repository")


def with_task(data: Data, task: TargetTask, length: int | None = 12) -> tr.Model:
    inputs = tr.TabularSequenceFeatures.from_schema(
        data.schema.select_by_name("item_id"), max_sequence_length=length, masking="clm"
    )
    body = tr.SequentialBlock(inputs, nn.Linear(inputs.output_size, 8))
    return tr.Model(tr.Head(body, [tr.NextItemPredictionTask(), task]))


class Poisson(tr.RegressionTask):
    """A task that the project does not have: the logarithm of a rate is learned."""

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.exp() - targets * outputs

    def predict(self, *arguments: Any) -> torch.Tensor:
        return self.outputs(*arguments).exp()


class Squares(TargetTask):
    """A task of neither kind."""

    kind = "squares"

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets) ** 2


class Above(tr.BinaryClassificationTask):
    """A task whose labels are not the column."""

    def labels(self, batch: Any) -> torch.Tensor:
        return (super().labels(batch) > 0).float()


@pytest.mark.parametrize("task", [Poisson, Squares])
def test_a_task_of_ones_own_is_saved_as_it_is(shop: Shop, tmp_path: Path, task: Any) -> None:
    data = Data.open(shop.data)
    model = with_task(data, task("price", summary_type=None, task_name="price"))
    run = Run.save(model, data, tmp_path / "run")
    live = pipeline.evaluate(model, data, baselines=False).tasks["price"]
    saved = pipeline.evaluate(run, data, baselines=False).tasks["price"]
    assert saved.kind == live.kind == "regression"
    assert saved.results["run"] == pytest.approx(live.results["model"], abs=1e-5)


def test_models_that_a_run_cannot_hold_are_refused(shop: Shop, tmp_path: Path) -> None:
    data, out = Data.open(shop.data), tmp_path / "run"
    with pytest.raises(PipelineError, match="'price' has labels of its own"):
        Run.save(with_task(data, Above("price", summary_type=None, task_name="price")), data, out)
    task = tr.RegressionTask("price", summary_type=None, task_name="scores")
    with pytest.raises(ConfigError, match="'scores' has the name of another column"):
        pipeline.predict(with_task(data, task), data, out=tmp_path / "x.parquet")
    task = tr.RegressionTask("price", summary_type=None, task_name="item_id")
    with pytest.raises(ConfigError, match="'item_id' has the name of another input or output"):
        pipeline.export(with_task(data, task), data=data, out=tmp_path / "repository")
    with pytest.raises(ConfigError, match="has weights of torch"):
        pipeline.evaluate(hand_built(data).double(), data)
    task = tr.RegressionTask("price", summary_type=None)
    with pytest.raises(ConfigError, match="has no `max_sequence_length`"):
        pipeline.evaluate(with_task(data, task, length=None), data)


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow"])
def test_a_notebook_needs_no_directory(shop: Shop, kind: str) -> None:
    log = pd.read_csv(shop.clicks)
    frames: dict[str, Any] = {
        "pandas": log,
        "polars": pl.from_pandas(log),
        "arrow": pa.Table.from_pandas(log),
    }
    data = pipeline.Data.from_frame(frames[kind], shop.recipe)
    folder = data.path
    assert data.fitted.item.values.equals(Data.open(shop.data).fitted.item.values)
    run = pipeline.Run.open(shop.run)
    lists = run.recommend(frames[kind].head(40) if kind != "arrow" else frames[kind][:40], k=3)
    assert lists.columns.tolist() == ["session", "rank", "item_id", "score"]
    assert lists["rank"].max() == 3
    assert lists["session"].nunique() == log.head(40)["session"].nunique()
    del data
    assert not folder.exists(), "a temporary directory goes with its object"


def test_bodies_that_read_other_columns_are_no_run(shop: Shop) -> None:
    data = Data.open(shop.data)
    heads = []
    for number, names in enumerate((["item_id"], ["item_id", "price"])):
        inputs = tr.TabularSequenceFeatures.from_schema(
            data.schema.select_by_name(*names), max_sequence_length=5, d_output=8, masking="clm"
        )
        body = tr.SequentialBlock(inputs, nn.Linear(8, 8))
        heads.append(tr.Head(body, tr.NextItemPredictionTask(task_name=f"task-{number}")))
    with pytest.raises(ConfigError, match="'price', and the one of the first head does not"):
        Run.of(tr.Model(*heads), data)
