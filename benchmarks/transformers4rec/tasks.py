"""Tasks of Transformers4Rec's side: training, gradients, evaluation, accuracy."""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import transformers4rec.torch as tr
from merlin.dataloader import loader_base
from model import RESERVED, build_model, exclude_reserved, read_schema
from transformers import TrainerCallback, set_seed
from transformers4rec.config.trainer import T4RecTrainingArguments
from transformers4rec.torch.masking import MaskingInfo

turns = sys.modules["turns"]

PREFIXES_AT_ONCE = 256
"""Batch size of the inference path."""
CUTOFFS = (10, 20)
VERSIONS = {name: version(name) for name in ("torch", "transformers", "transformers4rec")}
NEVER = 10**9
"""Number of steps that no training reaches: it ends with the last turn."""


class TurnCallback(TrainerCallback):
    """Callback that ends a step of the turns."""

    def __init__(self, counted):
        self.counted = counted

    def on_step_end(self, args, state, control, **others):
        """Wait at the end of a turn; stop training after the last one."""
        if not self.counted.step_ended():
            control.should_training_stop = True


def train(task, channel):
    """Train until the last turn ends."""
    memory = turns.Memory()
    if not task["busy_wait"]:
        remove_busy_wait()
    set_seed(0)
    schema = read_schema(task["data"])
    model = build_model(schema, task)
    counted = turns.Turns(channel, memory, task["warm_up"])

    def count(_module, inputs):
        items = inputs[0]["item_id"]
        counted.count(items.size(0), int((items != 0).sum()))

    model.register_forward_pre_hook(count)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(
            model,
            schema,
            task,
            scratch,
            {"max_steps": NEVER, "lr_scheduler_type": "constant"},
            callbacks=[TurnCallback(counted)],
        )
        trainer.train()
    counted.end({"versions": VERSIONS})


def gradients(task, channel):
    """Write weights, loss and gradients of a batch, without dropout, to a file of arrays."""
    set_seed(0)
    model = build_model(read_schema(task["data"]), task)
    with np.load(task["batch"], allow_pickle=False) as arrays:
        items = torch.from_numpy(arrays["items"])
        positions = torch.from_numpy(arrays["masked"])
    if task["masking"] == "mlm":
        fix_masking(model, positions)
    exclude_reserved(model)
    model.train()
    loss = model({"item_id": items}, training=True)["loss"]
    loss.backward()
    arrays = {"loss": np.float64(loss.item())}
    for name, parameter in model.named_parameters():
        arrays[f"weight/{name}"] = parameter.detach().numpy()
        if parameter.grad is not None:
            arrays[f"gradient/{name}"] = parameter.grad.numpy()
    np.savez(task["out"], **arrays)
    channel.send({"loss": loss.item()})


def evaluate(task, channel):
    """Train a few steps, write the weights, then evaluate the last items, once per turn."""
    memory = turns.Memory()
    if not task["busy_wait"]:
        remove_busy_wait()
    set_seed(0)
    schema = read_schema(task["data"])
    model = build_model(schema, task)
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"max_steps": task["warm_up"], "lr_scheduler_type": "constant"}
        trainer = make_trainer(model, schema, task, scratch, settings)
        trainer.train()
        weights = {f"weight/{n}": p.detach().numpy() for n, p in model.named_parameters()}
        np.savez(task["out"], **weights)
        counted = turns.Turns(channel, memory, 1)
        num_sessions = 0

        def count(_module, inputs):
            nonlocal num_sessions
            num_sessions += inputs[0]["item_id"].size(0)

        model.register_forward_pre_hook(count)
        part = "warm_up"
        while True:
            trainer.eval_dataset_or_path = files(task["data"], part)
            num_sessions = 0
            trainer.evaluate()
            counted.count(num_sessions, 0)
            if not counted.step_ended():
                break
            part = "valid"
        # not timed: the same metrics without the reserved rows, as ours has them
        exclude_reserved(model)
        trainer.eval_dataset_or_path = files(task["data"], "valid")
        metrics = trainer.evaluate()
    counted.end(
        {
            "versions": VERSIONS,
            "metrics": {
                f"{name}@{cutoff}": float(metrics[f"eval_/next-item/{name}_at_{cutoff}"])
                for name in ("recall", "ndcg")
                for cutoff in CUTOFFS
            },
        }
    )


def accuracy(task, channel):
    """Train on a data directory, then rank the target of each prefix with the inference path."""
    remove_busy_wait()
    set_seed(task["seed"])
    schema = read_schema(task["data"])
    model = build_model(schema, task)
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "num_train_epochs": task["epochs"],
            "lr_scheduler_type": task["schedule"],
            "warmup_steps": task["warmup_steps"],  # its Trainer ignores a ratio
            "seed": task["seed"],
        }
        trainer = make_trainer(model, schema, task, scratch, settings)
        result = trainer.train()
    with np.load(task["prefixes"], allow_pickle=False) as arrays:
        ranks = rank_prefixes(
            model, arrays["values"], arrays["offsets"], arrays["targets"], task["longest"] - 1
        )
    np.save(task["out"], ranks, allow_pickle=False)
    channel.send(
        {"seconds": result.metrics["train_runtime"], "loss": result.training_loss}
        | {"versions": VERSIONS}
    )


@torch.no_grad()
def rank_prefixes(model, values, offsets, targets, width):
    """Ragged prefixes, (N,) targets -> (N,) ranks among all items; ties count against the target.

    Prefixes are padded to `width`, to which inference under mlm adds a position: the length of
    training, since the original attends to padding.
    """
    model.eval()
    num_items = model.heads[0].prediction_task_dict["next-item"].target_dim - RESERVED
    ranks = np.full(len(targets), num_items + 1, np.int64)
    for first in range(0, len(targets), PREFIXES_AT_ONCE):
        rows = range(first, min(first + PREFIXES_AT_ONCE, len(targets)))
        lengths = np.diff(offsets[rows.start : rows.stop + 1])
        batch = np.zeros((len(rows), width), np.int64)
        inside = np.arange(width) < lengths[:, None]
        batch[inside] = values[offsets[rows.start] : offsets[rows.stop]]
        scores = model({"item_id": torch.from_numpy(batch)})[:, RESERVED:]
        columns = torch.from_numpy(targets[rows.start : rows.stop]) - RESERVED
        target_scores = scores.gather(1, columns.clamp(min=0).unsqueeze(1))
        num_above = (scores >= target_scores).sum(1).numpy()
        is_item = columns.numpy() >= 0
        ranks[rows.start : rows.stop][is_item] = num_above[is_item]
    return ranks


def make_trainer(model, schema, task, scratch, settings, callbacks=()):
    """Return Transformers4Rec's Trainer, which creates its own loader, as shipped."""
    return tr.Trainer(
        model=model,
        args=T4RecTrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=task["batch_size"],
            per_device_eval_batch_size=task["batch_size"],
            learning_rate=task["learning_rate"],
            weight_decay=task["weight_decay"],
            max_sequence_length=task["longest"],
            no_cuda=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            optim="adamw_torch",  # as ours; its default is as fast
            **settings,
        ),
        schema=schema,
        train_dataset_or_path=files(task["data"], "train"),
        compute_metrics=True,
        callbacks=list(callbacks),
    )


def files(data, part):
    """Return the Parquet files of a part."""
    return sorted(str(file) for file in (Path(data) / "sessions" / part).glob("*.parquet"))


def remove_busy_wait():
    """Make the loader's thread wait for its full queue for a second, not a microsecond."""
    initialize = loader_base.ChunkQueue.__init__

    def patient(self, *args, **kwargs):
        initialize(self, *args, **kwargs)
        self.put_wait = 1.0

    loader_base.ChunkQueue.__init__ = patient


def fix_masking(model, positions):
    """Mask these (B, L) bool positions instead of random ones."""
    masking = model.heads[0].body[0].masking

    def masked_targets(item_ids, training=False, testing=False):
        return MaskingInfo(positions, torch.where(positions, item_ids, torch.zeros_like(item_ids)))

    masking._compute_masked_targets = masked_targets


TASKS = {"train": train, "gradients": gradients, "evaluate": evaluate, "accuracy": accuracy}
