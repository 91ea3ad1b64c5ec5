"""A training that is killed goes on from its last checkpoint as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from pipeline.core.errors import ConfigError
from pipeline.core.recipe import ModelConfig, Preprocess, TrainConfig
from pipeline.preprocess.run import preprocess
from pipeline.preprocess.synthetic import synthesize
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Checkpoints, read_state, write_state
from pipeline.train.run import train
from tests.conftest import ROOT

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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    synthesize(folder / "clicks.csv.gz", sessions=120, items=40, seed=2)
    recipe = Preprocess(
        session="session",
        item="product",
        timestamp={"column": "time", "unit": "iso"},  # type: ignore[arg-type]
        split={"valid": 0.2},  # type: ignore[arg-type]
    )
    preprocess(recipe, [folder / "clicks.csv.gz"], [], folder / "data")
    return folder / "data"


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
    "settings",
    [
        {"epochs": 3, "checkpoint_steps": 2},
        {"epochs": 3, "validate_every": 3, "checkpoint_steps": 1, "patience": 2, "metric": "loss"},
        {"epochs": 2, "gradient_accumulation_steps": 2, "checkpoint_minutes": 1e-9},
    ],
    ids=str,
)
def test_a_training_killed_at_any_event_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = TrainConfig(batch_size=24, learning_rate=0.01, **settings)
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(data, MODEL, config, whole)
    event = kills = 0
    while True:
        event += 1
        if not killed_once(event, data, MODEL, config, run):
            break
        kills += 1
        assert not run.exists()
        train(data, MODEL, config, run)
        assert weights(run) == weights(whole), event
        assert log(run) == log(whole), event
        shutil.rmtree(run)
    assert kills > 10
