"""Hugging Face's Trainer over session batches."""

import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.data.loader import SessionLoader
from pipeline.evaluation.targets import Positions
from pipeline.model.device import Stopwatch, matmul_precision, peak_memory_mb
from pipeline.model.losses import LabelSmoothCrossEntropyLoss
from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.recipe.train import TrainConfig
from pipeline.training.arguments import training_arguments, wants_tensorboard
from pipeline.training.batches import Batches
from pipeline.training.callbacks import BestEpoch, JsonLines, ProgressBar, TensorBoard, Timetable
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.distributed.processes import Processes, gather_bytes, sum_over_processes
from pipeline.training.distributed.sharding import Sharding, check_arguments, names_of
from pipeline.training.loss_scale import target_weight
from pipeline.training.optimizer import TableAdamW, build_optimizer
from pipeline.training.training_state import (
    random_state,
    read_training,
    set_random_state,
    write_parts,
    write_training,
)
from pipeline.training.validation import check_metric, validate


class TrainingStep(nn.Module):
    """A model whose forward is its training loss, as Hugging Face's Trainer wants it."""

    def __init__(self, model: Model, sharding: Sharding | None = None) -> None:
        super().__init__()
        self.model = model
        self._weights = list(model.parameters())
        self._tables = [
            (task.objective, head.item_table if task.output_table is None else task.output_table)
            for head, task in model.tasks_with_heads
            if isinstance(task, NextItemPredictionTask)
            and isinstance(task.objective, LabelSmoothCrossEntropyLoss)
        ]
        # constants, which DDP would send round at every step
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        if sharding is not None:  # each process has rows of its own
            self._ddp_params_and_buffers_to_ignore += names_of(self, sharding.table.weight)

    def forward(
        self, features: dict[str, Tensor], lengths: Tensor, share: Tensor | None = None
    ) -> dict[str, Tensor]:
        """SessionBatch in parts -> {"loss": ()}, times the `share` () of this part of a step."""
        loss = self.model.loss(SessionBatch(features, lengths))
        return {"loss": loss if share is None else loss * share}

    def train(self, mode: bool = True) -> "TrainingStep":
        """As of any module; the Trainer calls it in each step, so it looks before it walks."""
        if self.training != mode or self.model.training != mode:
            super().train(mode)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any module, without walking through it in each step.

        The gradients of item tables are written over in the next step.
        """
        if set_to_none:
            for objective, table in self._tables:
                if table.grad is not None and not table.grad.is_sparse:
                    objective.gradients.release(table.grad)
        for weight in self._weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()


class Resume(TrainerCallback):
    """Puts the Trainer's sums back where a checkpoint left them, when training begins."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, *_arguments: Any, **_others: Any) -> None:
        """See above."""
        self.trainer.begin()


class Trainer(HuggingFaceTrainer):
    """Trainer that reads sessions from the Merlin loader and evaluates by ranking the catalogue.

    `callbacks`, `optimizers` (an optimizer and a scheduler, or None) and `arguments` (Hugging
    Face's TrainingArguments, or some of them by name) are those of Hugging Face's Trainer. After
    `train` the model has the best weights by `config.metric`, or the last ones where there are no
    validation sessions. Of an item table that is sharded over processes, the first has all of it
    then, in main memory, and the others their rows. `valid_positions` are the targets of those
    sessions, ranked without what came before them if `filter_seen`. `checkpoints` says where to
    write them, if anywhere; `train` takes the path of one as `resume_from_checkpoint`.
    """

    def __init__(
        self,
        model: Model,
        config: TrainConfig,
        *,
        train_loader: SessionLoader,
        valid_loader: SessionLoader | None,
        valid_positions: Positions = "all",
        filter_seen: bool = False,
        log_path: Path | None = None,
        arguments: TrainingArguments | Mapping[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        checkpoints: Checkpoints | None = None,
        processes: Processes = Processes(),  # noqa: B008  (a constant)
    ) -> None:
        check_metric(config.metric)
        config = config.for_sessions(_num_sessions(train_loader, config, processes))
        self.config = config
        self.session_model = model
        self.train_loader = train_loader
        self.valid_loader = valid_loader
        self.valid_positions: Positions = valid_positions
        self.filter_seen = filter_seen
        self.processes = processes
        self.checkpoints = checkpoints
        self.log_path = log_path
        self.best = BestEpoch(model, config) if valid_loader is not None else None
        self.stopwatch = Stopwatch()
        self._found: dict[str, Any] | None = None
        self._save_due = False
        self._epoch_logged = 0.0
        self._saved_at = time.monotonic()
        self._timetable = Timetable(config, None if checkpoints is None else self._minutes_passed)
        self._scratch = tempfile.TemporaryDirectory(prefix="pipeline-train-")
        made = training_arguments(
            config, self._scratch.name, validate=valid_loader is not None, given=arguments
        )
        if made.world_size != processes.count:
            raise ConfigError(
                f"The Trainer was told of {processes.count} processes, found {made.world_size}. "
                "Start them with torchrun, and give it what `joined_processes` yields."
            )
        self._shares = made.gradient_accumulation_steps * processes.count
        self.sharding = None
        if config.item_table == "sharded" and processes.count > 1:
            check_arguments(made, optimizers)
            self.sharding = Sharding(model, processes, made.ddp_timeout)
        self._batches = self._make_batches(made)
        # a share of a step is scaled by its targets, not by the number of shares
        self.loss_is_scaled_for_ga = self._shares > 1
        writers: list[TrainerCallback] = []
        if processes.is_first:
            writers = [
                ProgressBar(self._num_sessions, config.metric, self.running_loss),
                *([JsonLines(log_path)] if log_path else []),
            ]
            if log_path and wants_tensorboard(config, arguments):
                writers.append(TensorBoard(log_path.parent / "tensorboard"))
        super().__init__(
            model=TrainingStep(model, self.sharding),
            args=made,
            eval_dataset=valid_loader,  # only looked at for being there
            callbacks=[
                Resume(self),
                self._timetable,
                *writers,
                *([self.best] if self.best else []),
                *(callbacks or []),
            ],
            optimizers=optimizers,
        )
        self.remove_callback(PrinterCallback)  # it prints on stdout, which is for results

    def _make_batches(self, made: TrainingArguments) -> Batches:
        rank, count = self.processes.rank, self.processes.count
        accumulated = made.gradient_accumulation_steps
        # every process must make as many steps as the one that has the most
        own = self.config.process_data == "partitions" and count > 1
        batch_size = self.config.batch_size
        assert batch_size is not None  # noqa: S101
        shares = accumulated if own else accumulated * count
        num_sessions = float(self.train_loader.num_sessions)
        sizes = sum_over_processes([num_sessions * (r == rank) for r in range(count)])
        self._num_sessions = int(sum(sizes) if own else num_sessions)
        step_size = batch_size * shares
        return Batches(
            self.train_loader,
            batch_size,
            self.config.seed,
            shares=shares,
            own=range(shares) if own else range(rank, shares, count),
            num_steps=max(math.ceil(size / step_size) for size in sizes),
        )

    def get_train_dataloader(self) -> Any:
        """Batches of the Merlin loader, as they are."""
        return DataLoader(self._batches, batch_size=None, collate_fn=_as_it_is)

    def num_examples(self, dataloader: Any) -> int:  # noqa: ARG002  (Hugging Face's signature)
        """Training sessions of all processes."""
        return self._num_sessions

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        """Batches of one step, with the share that each has in its loss.

        The loss of a step is the mean over its targets wherever they are: in several batches
        whose gradients are added up, and in those of other processes.
        """
        samples, _ = super().get_batch_samples(*arguments, **keywords)
        if self._shares == 1:
            self._save_due = self._time_to_save()
            return samples, None
        weights = [
            0.0
            if "share" in sample
            else target_weight(
                self.session_model, SessionBatch(sample["features"], sample["lengths"])
            )
            for sample in samples
        ]
        due = float(self.processes.is_first and self._time_to_save())
        total, due = sum_over_processes([sum(weights), due])
        self._save_due = due > 0
        for sample, weight in zip(samples, weights, strict=True):
            # DDP takes the mean over processes
            share = weight / total * self.processes.count if total else 0.0
            sample["share"] = torch.tensor(share, dtype=torch.float32)
        return samples, None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the clipping inside, unless one was given or chosen by `arguments`."""
        if self.optimizer is None and self.args.optim == "adamw_torch_fused":
            module = self.model if model is None else model
            assert module is not None  # noqa: S101
            self.optimizer = build_optimizer(
                module,
                self.session_model,
                set(self.get_decay_parameter_names(module)),
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                tables=self.config.table_optimizer,
                sharded=None if self.sharding is None else self.sharding.table,
            )
        return super().create_optimizer(model)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        if isinstance(optimizer, TableAdamW) and self.accelerator.scaler is None:
            return optimizer.clip(self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Train, then go back to the best weights."""
        if self.sharding is not None:
            self.sharding.check_not_over()
        if self.processes.count > 1:
            # the same weights everywhere, but not the same dropout
            torch.manual_seed(self.args.seed + self.processes.rank)
        try:
            with matmul_precision(self.config.matmul_precision):
                result = super().train(*arguments, **keywords)
        finally:
            self._scratch.cleanup()
        if self.best is not None and self.best.weights is not None:
            self.session_model.load_state_dict(self.best.weights)
        if self.sharding is not None:
            self.sharding.collect()
        return result

    def evaluate(self, *_arguments: Any, **_keywords: Any) -> dict[str, float]:
        """Metrics `eval_<metric>@<K>` over the chosen positions of the validation sessions."""
        assert self.valid_loader is not None  # noqa: S101
        if self.sharding is not None:
            self.sharding.check_not_over()
        with self.stopwatch.paused():
            metrics = validate(
                self.session_model,
                self.valid_loader,
                self.config.metric,
                processes=self.processes,
                seed=self.args.seed,
                positions=self.valid_positions,
                filter_seen=self.filter_seen,
            )
        values = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(values)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, values
        )
        return values

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with throughput and memory beside a loss, and the seconds of training so far."""
        if "loss" in logs:
            epochs = (self.state.epoch or 0.0) - self._epoch_logged
            self._epoch_logged = self.state.epoch or 0.0
            seconds = max(self.stopwatch.lap(), 1e-9)
            logs["sessions_per_second"] = round(epochs * self._num_sessions / seconds, 1)
            logs["peak_memory_mb"] = peak_memory_mb(self.args.device)
        logs["seconds"] = round(self.stopwatch.seconds(), 1)
        super().log(logs, start_time)

    def running_loss(self) -> float | None:
        """Mean loss of this process since it was last logged."""
        steps = self.state.global_step - self._globalstep_last_logged
        return float(self._tr_loss) / steps if steps else None

    # What follows is called by Hugging Face's Trainer in the course of its own `train`.

    def begin(self) -> None:
        """Sums and clock of a training that begins or goes on."""
        found, self._found = self._found, None
        self.stopwatch.start(0.0 if found is None else found["seconds"])
        self._epoch_logged = self.state.epoch or 0.0
        self._saved_at = time.monotonic()
        if found is None:
            return
        self._tr_loss = torch.tensor(found["loss"], device=self.args.device)
        self._total_loss_scalar = found["total_loss"]
        self._globalstep_last_logged = found["logged_step"]
        self._initial_global_step = 0
        self.control.should_training_stop = found["stopped"]

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        if self.control.should_training_stop:
            return  # it had stopped when the checkpoint was written
        self._batches.set_epoch(keywords["epoch"])
        super()._run_epoch(*arguments, **keywords)

    def _time_to_save(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def _minutes_passed(self) -> bool:
        return self._save_due

    def _save_checkpoint(self, *_arguments: Any) -> None:
        if self.checkpoints is None:
            return
        last = self.state.global_step % self._batches.num_steps == 0
        stops = self.control.should_training_stop or self.control.should_epoch_stop
        if self._timetable.in_epoch and (last or stops):
            return  # the end of the epoch follows, with its log and validation
        with self.stopwatch.paused():
            states = [
                json.loads(state) for state in gather_bytes(json.dumps(random_state()).encode())
            ]
            if self.processes.is_first:
                with self.checkpoints.write(self.state.global_step) as directory:
                    write_training(self, directory, states)
                    write_parts(self, directory)
            else:
                write_parts(self, None)
        self._saved_at = time.monotonic()

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:  # noqa: ARG002
        self._found = read_training(self, Path(resume_from_checkpoint))
        self._random = self._found["random"][self.processes.rank]
        set_random_state(self._random, numpy=True)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is None or self._found is None:
            return
        assert self.optimizer is not None  # noqa: S101
        assert self.lr_scheduler is not None  # noqa: S101
        state = self._found["optimizer"]
        if self.sharding is not None:
            state = self.sharding.read_optimizer(Path(checkpoint), self.optimizer, state)
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(self._found["scheduler"])

    def _load_scaler(self, checkpoint: Any) -> None:
        if checkpoint is not None and self._found is not None and self._found["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(self._found["scaler"])

    def _load_rng_state(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            # NumPy's is in the hands of the loader's thread by now, which seeded it for the pass
            set_random_state(self._random, numpy=False)


def _num_sessions(loader: SessionLoader, config: TrainConfig, processes: Processes) -> int:
    """Training sessions of all processes."""
    if config.process_data == "partitions" and processes.count > 1:
        return int(sum_over_processes([float(loader.num_sessions)])[0])
    return loader.num_sessions


def _as_it_is(batch: Any) -> Any:
    return batch
