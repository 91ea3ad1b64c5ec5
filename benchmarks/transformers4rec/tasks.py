"""What the benchmark asks of the original: training, gradients, evaluation, ranks."""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import transformers4rec.torch as tr
from merlin.dataloader import loader_base
from model import RESERVED, build_model, leave_out_reserved, read_schema
from transformers import TrainerCallback, set_seed
from transformers4rec.config.trainer import T4RecTrainingArguments
from transformers4rec.torch.masking import MaskingInfo

turns = sys.modules["turns"]

PREFIXES_AT_ONCE = 256
"""Rows of a call of the inference path."""
CUTOFFS = (10, 20)
VERSIONS = {name: version(name) for name in ("torch", "transformers", "transformers4rec")}
NEVER = 10**9
"""Steps: the turns say when it is over."""


class TurnCallback(TrainerCallback):
    """Tells the turns of each step."""

    def __init__(self, counted):
        self.counted = counted

    def on_step_end(self, args, state, control, **others):
        """Wait where a turn is over; stop where it was the last."""
        if not self.counted.step_ended():
            control.should_training_stop = True


def train(task, channel):
    """Train until there is no further turn."""
    memory = turns.Memory()
    if not task["busy_wait"]:
        take_busy_wait_away()
    set_seed(0)
    schema = read_schema(task["data"])
    model = build_model(schema, task)
    counted = turns.Turns(channel, memory, task["warm_up"])

    def count(_module, given):
        items = given[0]["item_id"]
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
    """Weights, loss and gradients on a batch, without dropout, into a file of arrays."""
    set_seed(0)
    model = build_model(read_schema(task["data"]), task)
    with np.load(task["batch"], allow_pickle=False) as given:
        items = torch.from_numpy(given["items"])
        hidden = torch.from_numpy(given["hidden"])
    if task["masking"] == "mlm":
        fix_masking(model, hidden)
    leave_out_reserved(model)
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
    """Train a little, write the weights, then evaluate the last items of sessions, once a turn."""
    memory = turns.Memory()
    if not task["busy_wait"]:
        take_busy_wait_away()
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
        seen = {"sessions": 0}

        def count(_module, given):
            seen["sessions"] += given[0]["item_id"].size(0)

        model.register_forward_pre_hook(count)
        part = "warm_up"
        while True:
            trainer.eval_dataset_or_path = files(task["data"], part)
            seen["sessions"] = 0
            trainer.evaluate()
            counted.count(seen["sessions"], 0)
            if not counted.step_ended():
                break
            part = "valid"
        # not timed: the same numbers without the reserved rows, which ours never recommends
        leave_out_reserved(model)
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
    """Train on a data directory, then rank the target of each prefix by the inference path."""
    take_busy_wait_away()
    set_seed(task["seed"])
    schema = read_schema(task["data"])
    model = build_model(schema, task)
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "num_train_epochs": task["epochs"],
            "lr_scheduler_type": task["schedule"],
            "warmup_steps": task["warmup_steps"],  # its Trainer overlooks a ratio
            "seed": task["seed"],
        }
        trainer = make_trainer(model, schema, task, scratch, settings)
        result = trainer.train()
    with np.load(task["prefixes"], allow_pickle=False) as given:
        ranks = rank_prefixes(
            model, given["values"], given["offsets"], given["targets"], task["longest"] - 1
        )
    np.save(task["out"], ranks, allow_pickle=False)
    channel.send(
        {"seconds": result.metrics["train_runtime"], "loss": result.training_loss}
        | {"versions": VERSIONS}
    )


@torch.no_grad()
def rank_prefixes(model, values, offsets, targets, width):
    """Ragged prefixes, (N,) targets -> (N,) ranks among all items; ties count against it.

    Padded to `width`, to which mlm's inference adds a position: as many as in training, since the
    original attends to padding.
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
        wanted = torch.from_numpy(targets[rows.start : rows.stop]) - RESERVED
        own = scores.gather(1, wanted.clamp(min=0).unsqueeze(1))
        found = (scores >= own).sum(1).numpy()
        known = wanted.numpy() >= 0
        ranks[rows.start : rows.stop][known] = found[known]
    return ranks


def make_trainer(model, schema, task, scratch, settings, callbacks=()):
    """Its own Trainer and, inside, its own loader, as shipped."""
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
            optim="adamw_torch",  # the same program as ours; its default is as fast
            **settings,
        ),
        schema=schema,
        train_dataset_or_path=files(task["data"], "train"),
        compute_metrics=True,
        callbacks=list(callbacks),
    )


def files(data, part):
    """Parquet files of a part."""
    return sorted(str(file) for file in (Path(data) / "sessions" / part).glob("*.parquet"))


def take_busy_wait_away():
    """Let the loader's thread wait for room in its queue for a second, not for a microsecond."""
    begin = loader_base.ChunkQueue.__init__

    def patient(self, *given, **named):
        begin(self, *given, **named)
        self.put_wait = 1.0

    loader_base.ChunkQueue.__init__ = patient


def fix_masking(model, hidden):
    """Hide these positions, (B, L) bool, in place of random ones."""
    masking = model.heads[0].body[0].masking

    def chosen(item_ids, training=False, testing=False):
        return MaskingInfo(hidden, torch.where(hidden, item_ids, torch.zeros_like(item_ids)))

    masking._compute_masked_targets = chosen


TASKS = {"train": train, "gradients": gradients, "evaluate": evaluate, "accuracy": accuracy}
