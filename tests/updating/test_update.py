"""`pipeline update`: a model that is brought up to date, whatever interrupts it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pipeline
from pipeline.cli.main import app
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.versions import rollback
from pipeline.preprocessing.synthetic import synthesize
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.client import Client
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.version_watch import VersionWatch
from pipeline.updating import run as updating
from pipeline.updating.gate import Gate
from pipeline.updating.run import STEPS, UpdateJob, update_model
from pipeline.updating.state import Generation, locked, read_state
from tests.conftest import ROOT

SETTINGS = (
    "preprocess.split={valid: 0.1, test: 0.25}",
    "model.d_model=16",
    "model.n_layer=1",
    "train.epochs=2",
    "train.seed=3",
)
DAYS = {
    "early": (6, 9),
    "first": (5, 13),
    "second": (13, 15),
    "third": (15, 17),
    "fourth": (17, 19),
}
"""First and last day of January of each log, the last one exclusive."""


@dataclass(frozen=True)
class Days:
    """Logs of one shop, and a directory that has learned from the first."""

    recipe: Recipe
    logs: dict[str, Path]
    folder: Path

    def job(self, folder: Path, log: str, **options: Any) -> UpdateJob:
        return UpdateJob(folder=folder, recipe=self.recipe, logs=[self.logs[log]], **options)

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.folder, folder)
        return folder


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    tmp_path = tmp_path_factory.mktemp("days")
    synthesize(tmp_path / "all.csv", sessions=2_500, items=80, seed=1)
    clicks = pd.read_csv(tmp_path / "all.csv")
    day = clicks["time"].str[8:10].astype(int)
    logs = {}
    for name, (first, end) in DAYS.items():
        logs[name] = tmp_path / f"{name}.csv"
        clicks[(day >= first) & (day < end)].to_csv(logs[name], index=False)
    spoiled = clicks[(day >= 13) & (day < 15)].reset_index(drop=True)
    learned = spoiled.index < 0.7 * len(spoiled)  # the test part stays as it was
    spoiled.loc[learned, "product"] = "sku-00007"
    logs["spoiled"] = tmp_path / "spoiled.csv"
    spoiled.to_csv(logs["spoiled"], index=False)
    days = Days(Recipe.load(ROOT / "configs" / "demo.yaml", SETTINGS), logs, tmp_path / "shop")
    generation = update_model(days.job(days.folder, "first"))
    assert (generation.number, generation.version, generation.comparison) == (1, 1, None)
    return days


def directories(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def served_run(folder: Path) -> str:
    return str(read_manifest(folder / "repository", "repository")["run"])


def outcome(folder: Path) -> dict[str, Any]:
    """What two updates of the same logs have in common: not seconds and times."""
    state = json.loads((folder / "update.json").read_text())
    weights = {
        path.parent.name: path.read_bytes() for path in folder.glob("run-*/model.safetensors")
    }
    facts = read_manifest(folder / "repository", "repository")
    served = {name: facts[name] for name in ("version", "run", "withdrawn")}
    served["superseded"] = list(facts["superseded"])
    tables = {p: p.read_bytes() for p in folder.glob("data-*/sessions/*/*.parquet")}
    return {
        "state": state["generations"],
        "weights": weights,
        "served": served,
        "sessions": {path.relative_to(folder).as_posix(): b for path, b in tables.items()},
        "directories": directories(folder),
    }


class Killed(BaseException):
    """Stands for the end of the process between two steps."""


def killed_around(step: str, *, after: bool) -> Callable[[UpdateJob, Generation], Generation]:
    do = STEPS[step]  # type: ignore[index]

    def killed(job: UpdateJob, generation: Generation) -> Generation:
        if after:
            do(job, generation)  # its work is done, the state does not say so
        raise Killed

    return killed


def test_update_killed_around_each_step_ends_as_an_undisturbed_one(
    days: Days, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = days.copy(tmp_path / "undisturbed")
    gate = Gate.parse("ndcg@20:0.05")
    assert update_model(days.job(undisturbed, "second", gate=gate)).version == 2
    assert served_run(undisturbed) == "run-2"

    folder = days.copy(tmp_path / "killed")
    written = set()
    for step in STEPS:
        for after in (False, True):
            with monkeypatch.context() as patch:
                patch.setitem(updating.STEPS, step, killed_around(step, after=after))
                with pytest.raises(Killed):
                    update_model(days.job(folder, "second", gate=gate))
            state = json.loads((folder / "update.json").read_text())
            generation = state["generations"][-1]
            assert generation["number"] == 1 or step not in generation["done"]
            for path in folder.glob("*-2/manifest.json"):
                written.add((path.parent.name, path.stat().st_mtime_ns))
    assert len(written) == 2  # data and run were written once
    last = update_model(days.job(folder, "second", gate=gate))
    assert last.done == tuple(STEPS)
    assert outcome(folder) == outcome(undisturbed)
    # and once more: nothing to do
    before = outcome(folder)
    assert update_model(days.job(folder, "second", gate=gate)) == last
    assert outcome(folder) == before


MOMENTS = {
    "preprocessing": ".data-2.partial-*/sessions/train/part-0.parquet",
    "training": ".run-2.checkpoints/step-*/manifest.json",
    "exporting": ".repository.partial-*/*/1/model.pt",
}


def start(days: Days, folder: Path) -> subprocess.Popen[bytes]:
    command = ["update", "--from", str(folder), "--input", str(days.logs["second"])]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command += ["--recipe", "configs/demo.yaml", *settings]
    return subprocess.Popen([sys.executable, "-m", "pipeline", *command], cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_process_leaves_no_trace_for_the_next_one(
    days: Days, tmp_path: Path, moment: str
) -> None:
    folder = days.copy(tmp_path / "killed")
    process = start(days, folder)
    deadline = time.monotonic() + 120
    while not list(folder.glob(MOMENTS[moment])):
        assert process.poll() is None, f"it ended before it was {moment}"
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert served_run(folder) == "run-1"
    assert start(days, folder).wait(180) == 0
    undisturbed = days.copy(tmp_path / "undisturbed")
    update_model(days.job(undisturbed, "second"))
    assert outcome(folder) == outcome(undisturbed)


def invoke(days: Days, folder: Path, log: str, *options: str) -> Any:
    words = ["update", "--from", folder, "--input", days.logs[log], "--recipe"]
    words += [ROOT / "configs" / "demo.yaml", *options]
    for setting in SETTINGS:
        words += ["--set", setting]
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


def test_gate_keeps_a_model_of_spoiled_logs_out(days: Days, tmp_path: Path) -> None:
    folder = days.copy(tmp_path / "shop")
    gate = ("--unless-worse", "ndcg@20:0.005")
    shown = invoke(days, folder, "spoiled", *gate, "--json")
    assert shown.exit_code == 3
    facts = json.loads(shown.stdout)
    assert (facts["accepted"], facts["version"], facts["number"]) == (False, None, 2)
    assert facts["comparison"]["tests"]["ndcg@20"]["run-2"]["difference"] < -0.005
    assert "ndcg@20 of run-2 minus that of run-1 is -" in facts["reason"]
    assert facts["reason"] in shown.stderr
    assert served_run(folder) == "run-1"
    # the same call decides the same without training; a gate that allows more lets it through
    before = (folder / "run-2" / "manifest.json").stat().st_mtime_ns
    assert invoke(days, folder, "spoiled", *gate).exit_code == 3
    shown = invoke(days, folder, "spoiled", "--unless-worse", "recall@7:1", "--max-k", "30")
    assert (shown.exit_code, served_run(folder)) == (0, "run-2")
    assert read_manifest(folder / "repository", "repository")["max_k"] == 30
    assert f"{folder}/repository has run-2 as version 2 of recommender." in shown.stdout
    assert (folder / "run-2" / "manifest.json").stat().st_mtime_ns == before


def test_logs_after_a_refused_model_go_on_from_the_served_one(days: Days, tmp_path: Path) -> None:
    folder = days.copy(tmp_path / "shop")
    assert not update_model(days.job(folder, "spoiled", gate=Gate.parse("ndcg@20:0"))).accepted
    generation = update_model(days.job(folder, "third"))
    assert (generation.number, generation.before, generation.version) == (3, 1, 2)
    # the refused one is gone
    assert directories(folder) == [
        ".lock", "data-1", "data-3", "repository", "run-1", "run-3", "update.json"
    ]  # fmt: skip


def test_old_versions_go_with_their_data_and_runs_and_rollback_is_followed(
    days: Days, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.exporting.versions.MIN_KEPT_SECONDS", 0)
    folder = days.copy(tmp_path / "shop")
    for log in ("second", "third"):
        update_model(days.job(folder, log, keep=2))
    names = [".lock", "data-2", "data-3", "repository", "run-2", "run-3", "update.json"]
    assert directories(folder) == names
    state = read_state(folder, "recommender")
    assert [each.number for each in state.generations] == [2, 3]
    versions = {path.name for path in (folder / "repository" / "recommender").iterdir()}
    assert versions == {"2", "3", "config.pbtxt"}
    rollback(folder / "repository")
    # the same logs again do not undo it
    assert update_model(days.job(folder, "third", keep=2)).number == 3
    assert "It serves run-2 since a rollback" in invoke(days, folder, "third").stdout
    assert served_run(folder) == "run-2"
    generation = update_model(days.job(folder, "fourth", keep=2))
    assert (generation.before, generation.number, generation.version) == (2, 4, 4)
    assert directories(folder) == [name.replace("-3", "-4") for name in names]


def test_interrupted_update_begins_anew_with_other_logs(
    days: Days, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, undisturbed = days.copy(tmp_path / "killed"), days.copy(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setitem(updating.STEPS, "compare", killed_around("compare", after=False))
        with pytest.raises(Killed):
            update_model(days.job(folder, "second"))
    for each in (folder, undisturbed):
        assert update_model(days.job(each, "third")).number == 2
    assert outcome(folder) == outcome(undisturbed)


def test_unusable_arguments_end_before_any_work(days: Days, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    recipe = Recipe.load(ROOT / "configs" / "demo.yaml", ("preprocess.split=null",))
    with pytest.raises(ConfigError, match="the recipe keeps none"):
        update_model(UpdateJob(folder=folder, recipe=recipe, logs=[days.logs["first"]]))
    assert not folder.exists()
    with pytest.raises(ArtifactError, match="did not write; it is left alone"):
        update_model(days.job(days.logs["first"].parent, "second"))
    for text in ("ndcg@20", "ndcg@0:0.1", "hits@20:0.1", "ndcg@20:-1", "ndcg@20:2"):
        with pytest.raises(ConfigError, match=r"such as ndcg@20:0\.005"):
            Gate.parse(text)
    with locked(days.folder), pytest.raises(ArtifactError, match="is running in"):
        update_model(days.job(days.folder, "second"))
    with pytest.raises(ConfigError, match="is that of the model recommender, --name is other"):
        update_model(days.job(days.folder, "second", options=ExportOptions(name="other")))


LOSS = """
from torch import nn
from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.plugins import register_architecture, register_loss

@register_loss("mean-of-others")
class Loss(nn.Module):
    def forward(self, logits, targets):
        return logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]

@register_architecture("clm")
class OwnConfig(ArchitectureConfig):
    name = "own"

    def encoder(self, masking):
        return nn.Identity()
"""


@pytest.mark.slow
def test_plugins_and_operators_go_along(days: Days, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(LOSS)
    (tmp_path / "log.py").write_text(
        "from nvtabular.ops import LambdaOp\nhalved = LambdaOp(lambda column: column / 2)\n"
    )
    feature = "{name: half, kind: continuous, of: item, operator: halved, inputs: {price: number}}"
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    words += ["--recipe", "configs/demo.yaml", "--from", str(tmp_path / "shop")]
    words += ["--plugins", str(tmp_path / "own.py"), "--set", "train.loss=mean-of-others"]

    def update(log: str, *further: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", "update", "--input", str(days.logs[log])]
        return subprocess.run(
            [*command, *words, *further], capture_output=True, text=True, cwd=ROOT
        )

    for number, log in enumerate(("first", "second"), 1):
        done = update(
            log,
            *("--operators", str(tmp_path / "log.py")),
            *("--set", f"preprocess.features=[{feature}]"),
        )
        assert done.returncode == 0, done.stderr
        facts = read_manifest(tmp_path / "shop" / f"run-{number}", "run")
        assert facts["train"]["loss"] == "mean-of-others"
    refused = update("third", "--set", "model.architecture=own")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "no training starts from one" in refused.stderr
    missing = update("third", "--operators", "none.py")
    assert (missing.returncode, "none.py does not exist" in missing.stderr) == (2, True)


def test_python_updates_and_rolls_back(days: Days, tmp_path: Path) -> None:
    folder = days.copy(tmp_path / "shop")
    logs = days.logs["second"]
    generation = pipeline.update(days.recipe, logs, folder=folder, unless_worse="ndcg@20:1")
    assert (generation.accepted, generation.version) == (True, 2)
    assert served_run(folder) == "run-2"
    assert pipeline.rollback(folder / "repository") == 1
    assert served_run(folder) == "run-1"


def test_logs_that_the_model_was_trained_on_are_refused(days: Days, tmp_path: Path) -> None:
    folder = days.copy(tmp_path / "shop")
    again = tmp_path / "again.csv"
    again.write_bytes(days.logs["first"].read_bytes())
    with pytest.raises(ConfigError, match="run-1 was trained on the sessions of these logs"):
        update_model(UpdateJob(folder=folder, recipe=days.recipe, logs=[again]))
    assert served_run(folder) == "run-1"


def test_repository_that_was_removed_is_written_again(days: Days, tmp_path: Path) -> None:
    folder = days.copy(tmp_path / "shop")
    inode = (folder / "run-1").stat().st_ino  # a training would replace the directory
    shutil.rmtree(folder / "repository")
    assert update_model(days.job(folder, "first")).version == 1
    assert served_run(folder) == "run-1"
    assert (folder / "run-1").stat().st_ino == inode


def test_logs_that_are_not_newer_get_a_line(days: Days, tmp_path: Path) -> None:
    shown = invoke(days, days.copy(tmp_path / "shop"), "early")
    assert shown.exit_code == 0
    assert re.search(
        r"Note: the test part begins at 2026-01-08T\S+Z, and run-1 was trained on sessions up to "
        r"2026-01-1\S+Z, which favours it",
        shown.stderr,
    )
    shown = invoke(days, days.copy(tmp_path / "newer"), "second")
    assert "Note: the test part" not in shown.stderr


def test_gate_allows_a_loss_up_to_its_tolerance() -> None:
    def comparison(name: str, best: str, difference: float) -> dict[str, Any]:
        test = {"best": best, "difference": difference, "margin": 0.01, "p": 0.5}
        return {"tests": {"mrr@10": {name: test}}}

    gate = Gate.parse("mrr@10:0.005")
    assert gate.decide(comparison("old", "new", -0.1), "old", "new").accepted
    assert gate.decide(comparison("new", "old", -0.005), "old", "new").accepted
    decision = gate.decide(comparison("new", "old", -0.0051), "old", "new")
    assert not decision.accepted
    assert decision.reason == (
        "mrr@10 of new minus that of old is -0.0051 ±0.0100; -0.005 is allowed."
    )
    assert np.isclose(gate.tolerance, 0.005)


def test_server_takes_up_what_an_update_exports(days: Days, tmp_path: Path) -> None:
    folder = days.copy(tmp_path / "shop")
    repository = folder / "repository"
    lines: list[str] = []
    with (
        running_server(repository, ports=free_ports(), reload_seconds=1) as server,
        VersionWatch(server, repository, 0.2, lines.append),
        Client(f"grpc://{server.grpc_url}") as client,
    ):
        session = {"item_id": ["sku-00001", "sku-00002"]}
        assert client.recommend([session], 5).items.shape == (1, 5)
        update_model(days.job(folder, "second"))
        deadline = time.monotonic() + 60
        while not lines:
            assert time.monotonic() < deadline, "the newer version is not served"
            time.sleep(0.1)
        assert lines == ["Serving version 2 of recommender, in place of version 1."]
        assert client.recommend([session], 5).items.shape == (1, 5)
