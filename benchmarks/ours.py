"""Program of our side, a separate process: `python -m benchmarks.ours`."""

from benchmarks.turns import Channel, Memory, Turns, open_channel

if __name__ == "__main__":
    # before the imports below, whose threads inherit the core
    opened = open_channel()

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from benchmarks import weights
from pipeline.core.columns import FIRST_ITEM, ITEM, SCHEMA_FILE
from pipeline.data.batch import SessionBatch
from pipeline.data.fitted import Fitted
from pipeline.data.loader import SessionLoader
from pipeline.data.schema import Schema
from pipeline.data.sessions import count_sessions, read_sessions
from pipeline.evaluation.metrics import ranking_metrics
from pipeline.evaluation.targets import prefixes, rank_targets
from pipeline.model.build import build_model
from pipeline.model.masking import masked
from pipeline.model.model import Model
from pipeline.model.model_files import load_model
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training import run
from pipeline.training.trainer import Trainer

POOL_BATCHES = 16
"""Number of batches whose sessions are sorted by length together, as in `pipeline train`."""
EVALUATION_SESSIONS = 1024
"""Number of sessions of a batch, as in `pipeline evaluate`."""
CUTOFFS = (10, 20)
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


class TurnCallback(TrainerCallback):
    """Callback that ends a step of the turns."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_others: Any,
    ) -> None:
        """Wait at the end of a turn; stop training after the last one."""
        if not self.turns.step_ended():
            control.should_training_stop = True


def train(task: dict[str, Any], channel: Channel) -> None:
    """Train until the last turn ends, on a GPU if this process sees one."""
    memory = Memory()
    data = Path(task["data"])
    config = TrainConfig.from_dict(task["train"], "train")
    model = _build(task)
    assert config.batch_size is not None  # noqa: S101  each setting has it
    loader = _loader(
        data, "train", model.training_columns, POOL_BATCHES * config.batch_size, seed=config.seed
    )
    has_gpu = torch.cuda.is_available()
    synchronize = torch.cuda.synchronize if has_gpu else lambda: None
    turns = Turns(channel, memory, task["warm_up"], synchronize)

    def count(_module: nn.Module, _inputs: Any, features: dict[str, Any]) -> None:
        lengths = features["lengths"]
        turns.count(lengths.numel(), lengths.sum())  # a tensor: reading it would wait for the GPU

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model,
            config,
            train_loader=loader,
            valid_loader=None,
            log_path=Path(scratch) / "log.jsonl",
            callbacks=[TurnCallback(turns)],
        )
        assert isinstance(trainer.model, nn.Module)  # noqa: S101
        trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        trainer.train()
    facts = {"peak_gpu_bytes": torch.cuda.max_memory_allocated()} if has_gpu else {}
    turns.end(facts | {"versions": VERSIONS})


def gradients(task: dict[str, Any], channel: Channel) -> None:
    """Send the differences of loss and gradients on a batch, from the original's weights."""
    model = _build(task).train()
    with np.load(task["original"], allow_pickle=False) as arrays:
        original = dict(arrays)
    names = weights.copy_from(original, model)
    with np.load(task["batch"], allow_pickle=False) as arrays:
        items = torch.from_numpy(arrays["items"])
        positions = torch.from_numpy(arrays["masked"])
    drawn = mock.Mock(side_effect=lambda _lengths, width, _share: positions[:, :width])
    with mock.patch.object(masked, "choose_masked", drawn):
        loss = model.loss(SessionBatch.from_features({ITEM: items}, ITEM))
    if task["model"]["masking"] == "mlm" and not drawn.called:
        raise RuntimeError("mlm draws its masked positions elsewhere, `gradients` must follow")
    loss.backward()
    channel.send(weights.compare(float(loss.detach()), model, original, names))


def evaluate(task: dict[str, Any], channel: Channel) -> None:
    """Rank the last item of each session in the whole catalogue, once a turn."""
    memory = Memory()
    model = _build(task).eval()
    with np.load(task["original"], allow_pickle=False) as arrays:
        weights.copy_from(dict(arrays), model)
    data = Path(task["data"])
    turns = Turns(channel, memory, 1)
    part = "warm_up"
    while True:
        loader = _loader(data, part, model.inputs.feature_names, EVALUATION_SESSIONS)
        ranked = rank_targets(model, loader, "last")
        metrics = ranking_metrics(ranked.ranks, CUTOFFS)
        turns.count(len(ranked.ranks), 0)
        if not turns.step_ended():
            break
        part = "valid"
    turns.end({"metrics": metrics, "versions": VERSIONS})


def accuracy(task: dict[str, Any], channel: Channel) -> None:
    """Train a run, rank the targets of a part, and write ranks, targets and their prefixes."""
    data = Path(task["data"])
    model_config = ModelConfig.from_dict(task["model"], "model")
    facts = run.train(
        data, model_config, TrainConfig.from_dict(task["train"], "train"), Path(task["run"])
    )
    model = load_model(Path(task["run"]))
    loader = _loader(data, task["part"], model.inputs.feature_names, EVALUATION_SESSIONS)
    ranked = rank_targets(model, loader, task["positions"])
    np.save(task["out"], ranked.ranks, allow_pickle=False)
    lists = read_sessions(data, task["part"], [ITEM])[ITEM].combine_chunks()
    longest = Fitted.read(data).recipe.max_sequence_length
    before = prefixes(
        lists.flatten().to_numpy(), lists.offsets.to_numpy(), task["positions"], longest
    )
    np.savez(task["prefixes"], **before._asdict())
    channel.send(
        {
            "seconds": facts["seconds"],
            "loss": facts["train_loss"],
            "versions": VERSIONS,
            "facts": {
                "targets": len(ranked.ranks),
                "catalogue_items": model.inputs.item_table.num_embeddings - FIRST_ITEM,
                "train_sessions": count_sessions(data, "train"),
                "longest": longest,
            },
        }
    )


def _build(task: dict[str, Any]) -> Model:
    config = TrainConfig.from_dict(task["train"], "train")
    set_seed(config.seed)
    schema = Schema.from_json(Path(task["data"]) / SCHEMA_FILE)
    model = ModelConfig.from_dict(task["model"], "model")
    return build_model(schema, model, task["longest"], config)


def _loader(
    data: Path, part: str, columns: list[str], batch_size: int, *, seed: int | None = None
) -> SessionLoader:
    return SessionLoader(
        data,
        part,
        item=ITEM,
        features=columns,
        batch_size=batch_size,
        shuffle=seed is not None,
        seed=seed or 0,
    )


TASKS = {"train": train, "gradients": gradients, "evaluate": evaluate, "accuracy": accuracy}


def main(channel: Channel, task: dict[str, Any]) -> None:
    """Run the task of the parent."""
    torch.set_num_threads(1)
    TASKS[task["task"]](task, channel)


if __name__ == "__main__":
    main(*opened)
