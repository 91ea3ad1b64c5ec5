"""Training of several processes equals that of one, and none waits forever."""

import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipeline.core.artifact import new_artifact, read_manifest
from pipeline.data.sessions import count_sessions
from pipeline.serve.triton.ports import free_ports
from pipeline.training.run import train
from tests.conftest import ROOT
from tests.training.small_data import small_data
from tests.training.two_processes import CONFIG, FEATURES, MODEL, TARGET_MODEL

RECIPE = """
model: {d_model: 8, n_head: 2, n_layer: 1, dropout: 0.0}
train: {epochs: 1, batch_size: 12, learning_rate: 0.01}
"""


def regrouped(data: Path, target: Path, sizes: list[int]) -> None:
    """The same data, its training sessions in row groups of these sizes."""
    facts = read_manifest(data, "data")
    with new_artifact(target, "data", facts) as directory:
        for file in data.rglob("*"):
            if file.is_file() and file.name != "manifest.json":
                copy = directory / file.relative_to(data)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        [file] = (directory / "sessions" / "train").glob("*.parquet")
        table = pq.read_table(file)
        with pq.ParquetWriter(file, table.schema) as writer:
            for first, size in zip(accumulate([0, *sizes]), [*sizes, None], strict=True):
                writer.write_table(table.slice(first, size), row_group_size=table.num_rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two processes wrote, and beside it what one makes of the same."""
    folder = tmp_path_factory.mktemp("processes")
    small_data(folder)
    (folder / "targets").mkdir()
    small_data(folder / "targets", features=FEATURES)
    regrouped(folder / "data", folder / "groups", [50, 17])
    regrouped(folder / "data", folder / "scarce", [])
    (folder / "recipe.yaml").write_text(RECIPE)
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports().http),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.training.two_processes", str(folder)]
    running = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(folder / f"stdout{rank}").open("w"),
            stderr=(folder / f"stderr{rank}").open("w"),
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    train(folder / "data", MODEL, CONFIG.model_copy(update={"batch_size": 24}), folder / "one")
    whole = CONFIG.model_copy(update={"batch_size": 24})
    train(folder / "targets" / "data", TARGET_MODEL, whole, folder / "target-one")
    for process in running:
        try:
            process.wait(timeout=600)
        finally:
            process.kill()
    return folder


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path, **tolerance: float) -> None:
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **(tolerance or {}), msg=name)


@pytest.mark.parametrize(
    ("alone", "together"), [("one", "shares"), ("target-one", "target-shares")]
)
def test_two_processes_equal_one_with_batches_of_twice_the_size(
    folder: Path, alone: str, together: str
) -> None:
    assert read_manifest(folder / together, "run")["processes"] == 2
    same_weights(folder / together, folder / alone, rtol=1e-3, atol=1e-4)
    one, two = log(folder / alone), log(folder / together)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for left, right in zip(one, two, strict=True):
        metrics = {name for name in left if name.startswith("eval_") and "second" not in name}
        for name in {*left} & {"loss", "grad_norm", *metrics}:
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-4, nan_ok=True), name
    for name in ("eval_price.rmse", "eval_sold.auc"):
        assert (name in {*one[-1], *one[-2]}) == (alone == "target-one")


def test_second_process_prints_nothing(folder: Path) -> None:
    first, second = ((folder / f"stdout{rank}").read_text() for rank in range(2))
    [facts] = [json.loads(line) for line in first.splitlines() if line.startswith("{")]
    assert facts["processes"] == 2
    assert facts["steps"] == 4
    assert "{" not in second
    assert "epoch" not in (folder / "stderr1").read_text()


def test_processes_with_unequal_partitions_take_equally_many_steps(folder: Path) -> None:
    # one reads groups of 50 and 27 sessions, 12 at a time, the other one of 17
    assert count_sessions(folder / "data", "train") == 94
    assert read_manifest(folder / "partitions", "run")["steps"] == 2 * 7
    losses = [line["loss"] for line in log(folder / "partitions") if "loss" in line]
    assert losses[-1] < losses[0]


def test_process_without_sessions_does_not_change_the_training(folder: Path) -> None:
    """The one that has all of them learns what a single process does."""
    alone = CONFIG.model_copy(update={"process_data": "partitions"})
    train(folder / "scarce", MODEL, alone, folder / "alone")
    same_weights(folder / "none", folder / "alone", rtol=1e-3, atol=1e-4)


def test_interrupted_processes_continue_together(folder: Path) -> None:
    assert "stopped" in (folder / "stdout1").read_text()
    assert "Continuing from step 5." in (folder / "stderr0").read_text()
    same_weights(folder / "resumed", folder / "shares")


def test_death_of_a_process_ends_the_other_with_one_line(folder: Path) -> None:
    output = (folder / "stdout0").read_text()
    assert "lost: Another process of this training ended, or did not answer in time" in output
    assert "Start all of them again" in output
    assert not (folder / "lost").exists()
