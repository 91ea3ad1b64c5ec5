"""Checkpoints: an interrupted training continues and ends like an uninterrupted one."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from pipeline.cli.main import main
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.checkpoint import Checkpoints, read_state, write_state
from pipeline.training.distributed.processes import Processes
from pipeline.training.run import train
from tests.training.small_data import small_data

pytestmark = pytest.mark.usefixtures("logged")
MODEL = ModelConfig(d_model=8, n_head=2, n_layer=1)
TIMES = ("seconds", "sessions_per_second", "peak_memory_mb", "train_runtime")


class Killed(BaseException):
    """In place of SIGKILL, where a process would be too slow a test."""


class Kill(TrainerCallback):
    """Ends a training at its nth event."""

    def __init__(self, event: int) -> None:
        self.event = event
        self.seen = 0

    def _count(self, *_arguments: Any, **_others: Any) -> None:
        self.seen += 1
        if self.seen == self.event:
            raise Killed

    on_step_begin = on_step_end = on_log = on_evaluate = on_save = on_epoch_end = _count


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipeline")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("killed"))


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in TIMES and not k.endswith("_per_second")}
        for line in lines
    ]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def killed_once(event: int, data: Path, model: ModelConfig, config: TrainConfig, run: Path) -> bool:
    """Whether the training was killed before it ended."""
    try:
        train(data, model, config, run, callbacks=[Kill(event)])
    except Killed:
        return True
    return False


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        ({"checkpoint_steps": 2, "batch_size": 32}, range(1, 100, 12)),
        pytest.param(
            {"checkpoint_steps": 2, "batch_size": 32}, range(1, 100), marks=pytest.mark.slow
        ),
        (
            {"tensorboard": True, "validate_every": 3, "checkpoint_steps": 1, "metric": "loss"},
            range(2, 100, 18),
        ),
        ({"gradient_accumulation_steps": 2, "checkpoint_minutes": 1e-9}, range(3, 100, 18)),
        ({"epochs": 5, "patience": 1, "learning_rate": 1e-9}, range(20, 100, 6)),
        pytest.param(
            {"checkpoint_steps": 2, "arguments": {"torch_compile_backend": "eager"}},
            range(5, 100, 12),
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        *("by epochs", "each event", "validation by steps", "accumulated", "stopped early"),
        "compiled",
    ],
)
def test_training_killed_at_any_event_ends_like_an_uninterrupted_one(
    data: Path, tmp_path: Path, settings: dict[str, Any], events: range
) -> None:
    config = TrainConfig(**{"epochs": 2, "batch_size": 24, "learning_rate": 0.01, **settings})
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(data, MODEL, config, whole)
    for event in events:
        if not killed_once(event, data, MODEL, config, run):
            break
        assert not run.exists()
        train(data, MODEL, config, run)
        assert weights(run) == weights(whole), event
        assert log(run) == log(whole), event
        shutil.rmtree(run)
    assert event > events[1]
    assert not list(tmp_path.glob(".run.*")), "nothing is left beside a run that is written"


def command(data: Path, recipe: Path, out: Path) -> None:
    """`pipeline train`, in a process that has imported everything."""
    torch.set_num_threads(1)
    sys.argv = ["pipeline", "train", str(data), "--recipe", str(recipe), "--out", str(out)]
    main()


@pytest.mark.slow
def test_command_killed_at_random_moments_ends_like_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {d_model: 8, n_head: 2, n_layer: 1}\n"
        "train: {epochs: 6, batch_size: 12, learning_rate: 0.01, checkpoint_steps: 1}\n"
    )
    # a clean process that imports once and of which every command is a copy
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pipeline.cli.main", "pipeline.training.run", "pipeline.training.trainer"]
    )

    def start(out: Path) -> Any:
        process = context.Process(target=command, args=(data, recipe, out))
        process.start()
        return process

    whole, run = tmp_path / "whole", tmp_path / "run"
    unbroken = start(whole)
    unbroken.join(120)
    assert unbroken.exitcode == 0
    checkpoints = tmp_path / ".run.checkpoints"
    for step in (5, 17, 29):
        process = start(run)
        until = time.monotonic() + 120
        while not any(int(p.name[5:]) >= step for p in checkpoints.glob("step-*")):
            assert process.is_alive(), "it ended before it was killed"
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    last = start(run)
    last.join(120)
    assert last.exitcode == 0
    assert weights(run) == weights(whole)
    assert log(run) == log(whole)


def interrupted(data: Path, config: TrainConfig, run: Path) -> list[Path]:
    """Checkpoints that a training left, the newest last."""
    killed_once(14, data, MODEL, config, run)
    checkpoints = sorted((run.parent / f".{run.name}.checkpoints").iterdir())
    assert len(checkpoints) == 2
    return checkpoints


SAVING = TrainConfig(epochs=2, batch_size=24, checkpoint_steps=1)


def flip(file: Path) -> None:
    """Change the last bit of a file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    """Keep half of a file."""
    os.truncate(file, file.stat().st_size // 2)


CHECKPOINT_FILES = (
    *("manifest.json", "metrics.jsonl", "model.safetensors"),
    *("state.json", "state.safetensors", "trainer_state.json"),
)
"""state.* has optimizer, scheduler, callbacks and random states."""


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path / "run", "a")
    for step in (1, 2):
        with checkpoints.write(step) as directory:
            for file in CHECKPOINT_FILES[1:]:
                (directory / file).write_text("content")
    before, last = sorted(checkpoints.folder.iterdir())
    damage(last / name)
    assert checkpoints.latest() == before
    [line] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert str(last) in line
    assert name in line
    assert line.endswith("The one before it is used.")
    damage(before / name)
    with pytest.raises(ArtifactError, match=r"No checkpoint in .* is whole.*give --restart"):
        checkpoints.latest()
    assert not Checkpoints(tmp_path / "other", "a").latest()


def test_training_continues_from_the_checkpoint_before_a_damaged_one(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, last = interrupted(data, SAVING, tmp_path / "run")
    assert {file.name for file in last.iterdir()} <= {*CHECKPOINT_FILES}
    flip(last / "model.safetensors")
    half = last.with_name(f".step-9999999999.partial-{'0' * 16}")
    shutil.copytree(before, half)
    train(data, MODEL, SAVING, tmp_path / "run")
    assert f"Continuing from step {int(before.name[5:])}." in caplog.text
    train(data, MODEL, SAVING, tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_training_without_a_whole_checkpoint_starts_anew_only_where_asked(
    data: Path, tmp_path: Path
) -> None:
    for checkpoint in interrupted(data, SAVING, tmp_path / "run"):
        flip(checkpoint / "state.safetensors")
    with pytest.raises(ArtifactError, match="No checkpoint in"):
        train(data, MODEL, SAVING, tmp_path / "run")
    train(data, MODEL, SAVING, tmp_path / "run", restart=True)
    assert not list(tmp_path.glob(".run.*"))


@pytest.mark.parametrize(
    ("changed", "restart", "words"),
    [
        ({"learning_rate": 0.02}, False, "of another recipe or other data"),
        ({}, True, ""),
    ],
    ids=["another recipe", "--restart"],
)
def test_another_recipe_and_restart_start_from_the_first_step(
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changed: dict[str, Any],
    restart: bool,
    words: str,
) -> None:
    interrupted(data, SAVING, tmp_path / "run")
    caplog.clear()
    config = SAVING.model_copy(update=changed)
    train(data, MODEL, config, tmp_path / "run", restart=restart)
    assert "Continuing" not in caplog.text
    assert words in caplog.text
    steps = [line["step"] for line in log(tmp_path / "run")]
    assert steps[0] * 2 == steps[-1]


def test_checkpoints_of_another_number_of_processes_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpoints(tmp_path / "run", "a", Processes(0, 2)).write(3) as directory:
        write_state(directory, {})
    assert Checkpoints(tmp_path / "run", "a", Processes(0, 2)).latest() is not None
    assert Checkpoints(tmp_path / "run", "a").latest() is None
    assert "are of 2 processes, this training has 1." in caplog.text


def test_state_survives_a_round_trip(tmp_path: Path) -> None:
    state = {
        "lr": 0.1,
        "betas": (0.9, 0.999),
        "state": {0: {"step": torch.tensor(3.0), "moment": torch.arange(6.0).view(2, 3)}},
        "none": [None, True, "text", float("inf"), []],
    }
    write_state(tmp_path, state)
    restored = read_state(tmp_path)
    assert torch.equal(restored["state"][0].pop("moment"), state["state"][0].pop("moment"))  # type: ignore[index]
    assert restored == state


def test_state_of_an_unsupported_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="has a PosixPath as its state, which no checkpoint can hold"
    ):
        write_state(tmp_path, {"callbacks": [tmp_path]})
