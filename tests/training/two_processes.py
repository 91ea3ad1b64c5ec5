"""What each of two processes does in test_processes.py: `python -m ... RANK FOLDER`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline.cli.main import app
from pipeline.core.errors import ProcessError
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.distributed.processes import joined_processes
from pipeline.training.run import train

MODEL = ModelConfig(d_model=8, n_head=2, n_layer=1, dropout=0.0, feature_dropout=0.0)
CONFIG = TrainConfig(
    epochs=2, batch_size=12, learning_rate=0.01, arguments={"logging_steps": 1}, metric="loss"
)


FEATURES = [
    {"name": "device", "kind": "categorical", "of": "session"},
    {"name": "price", "kind": "continuous"},
    {"name": "action", "kind": "categorical"},
    {"name": "sold", "column": "action", "kind": "categorical"},
]
TARGETS = [
    {"feature": "device", "kind": "binary", "positive": ["phone"], "weight": 2.0},
    {"feature": "price", "kind": "regression"},
    {"feature": "action", "kind": "binary", "positive": ["cart"], "weight": 0.5},
    {"feature": "sold", "kind": "binary", "positive": ["cart"], "per_item": True},
]
RANK_BY = "next_item + log(sold)"
TARGET_MODEL = ModelConfig.from_dict(
    {**MODEL.model_dump(), "targets": TARGETS, "rank_by": RANK_BY}, "test"
)
"""A next item, and targets of sessions, of interactions and of items, by which lists are ranked."""


class Stop(TrainerCallback):
    """Ends the training in this process at a step, by an error or for good."""

    def __init__(self, step: int, *, kill: bool = False) -> None:
        self.step = step
        self.kill = kill

    def on_step_begin(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        if state.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    data, groups, scarce = folder / "data", folder / "groups", folder / "scarce"
    train(data, MODEL, CONFIG, folder / "shares")

    train(folder / "targets" / "data", TARGET_MODEL, CONFIG, folder / "target-shares")

    words = ["train", data, "--recipe", folder / "recipe.yaml", "--out", folder / "command"]
    app([*map(str, words), "--json"], standalone_mode=False)

    # 3 groups of unequal size for two processes; then one group, of which the second has none
    own = CONFIG.model_copy(update={"process_data": "partitions"})
    train(groups, MODEL, own, folder / "partitions")
    train(scarce, MODEL, own, folder / "none")

    saving = CONFIG.model_copy(update={"checkpoint_steps": 1, "checkpoint_minutes": 10.0})
    try:
        train(data, MODEL, saving, folder / "resumed", callbacks=[Stop(5)])
    except KeyboardInterrupt:
        print("stopped", flush=True)
    train(data, MODEL, saving, folder / "resumed")

    stop = [Stop(3, kill=True)] if rank == 1 else []
    try:
        train(data, MODEL, CONFIG, folder / "lost", callbacks=stop)
    except ProcessError as error:
        print(f"lost: {error}", flush=True)


if __name__ == "__main__":
    with joined_processes() as processes:
        main(processes.rank, Path(sys.argv[1]))
