"""Hugging Face's Trainer over session batches.

Its loop, schedules, precision, accumulation and DistributedDataParallel are unchanged. This module
adds the batches, the scale of a loss over several batches, the optimizer, validation by ranking the
catalogue, and the log. Checkpoints and resumption are in `resumable_trainer.py`, interruption in
`interruption.py`.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.data.loader import SessionLoader
from pipeline.evaluation.targets import Positions
from pipeline.model.device import Stopwatch, matmul_precision, peak_memory_mb
from pipeline.model.losses import LabelSmoothCrossEntropyLoss
from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.recipe.train import TrainConfig
from pipeline.training.batches import Batches, longest_session, set_shares, step_shapes
from pipeline.training.callbacks import BestEpoch, JsonLines, ProgressBar, TensorBoard, Timetable
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.compilation import Compiler, take_compiler
from pipeline.training.distributed.processes import announced_processes, sum_over_processes
from pipeline.training.distributed.sharding import Sharding, check_arguments, names_of
from pipeline.training.optimizer import TableAdamW, build_optimizer
from pipeline.training.pools import prefers_static_steps
from pipeline.training.resumable_trainer import Begin, ResumableTrainer
from pipeline.training.step_graph import StepGraph
from pipeline.training.trainer_arguments import Arguments, training_arguments, uses_tensorboard
from pipeline.training.validation import validate


class TrainingStep(nn.Module):
    """A model whose forward returns its training loss, as Hugging Face's Trainer expects."""

    def __init__(
        self, model: Model, sharding: Sharding | None = None, compiler: Compiler | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self._loss = model.loss if compiler is None else compiler(model.loss)
        self._weights = list(model.parameters())
        self._tables = [
            (task.objective, head.item_table if task.output_table is None else task.output_table)
            for head, task in model.tasks_with_heads
            if isinstance(task, NextItemPredictionTask)
            and isinstance(task.objective, LabelSmoothCrossEntropyLoss)
        ]
        # buffers are constants; DDP would broadcast them in each step
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        if sharding is not None:  # each process has its own rows
            self._ddp_params_and_buffers_to_ignore += names_of(self, sharding.table.weight)

    def forward(
        self,
        features: dict[str, Tensor],
        lengths: Tensor,
        most_interactions: int | None = None,
        share: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Fields of a SessionBatch -> {"loss": ()}; `share` (tasks,) if a step has several
        batches."""
        batch = SessionBatch(features, lengths, most_interactions)
        return {"loss": self._loss(batch) if share is None else self._loss(batch, share)}

    def train(self, mode: bool = True) -> "TrainingStep":
        """Set the mode only if it changes, as the Trainer sets it in each step."""
        if self.training != mode or self.model.training != mode:
            super().train(mode)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients; the next step reuses the buffers of item table gradients."""
        if set_to_none:
            for objective, table in self._tables:
                if table.grad is not None and not table.grad.is_sparse:
                    objective.gradients.release(table.grad)
        for weight in self._weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()


class Trainer(ResumableTrainer):
    """Trainer that reads sessions from the Merlin loader and evaluates by ranking the catalogue.

    `callbacks`, `optimizers` (an optimizer and a scheduler, or None) and `arguments` (Hugging
    Face's TrainingArguments, or some of them by name) are those of Hugging Face's Trainer.
    Validation ranks the targets at `valid_positions`, with `filter_seen` without the items before
    them in the session. `checkpoints` are written if not None.

    After `train` the model has the best weights by `config.metric`, or the last ones without
    validation sessions. The first process then has the whole sharded item table, in main memory,
    and the others keep their rows.
    """

    # Long: the keyword arguments are the public API.
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
        arguments: Arguments = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        checkpoints: Checkpoints | None = None,
    ) -> None:
        processes = announced_processes()
        self._partitions = config.process_data == "partitions" and processes.count > 1
        num_sessions = train_loader.num_sessions
        self._num_sessions = (
            int(sum_over_processes([float(num_sessions)])[0]) if self._partitions else num_sessions
        )
        config = config.for_sessions(self._num_sessions)
        self.config = config
        self.train_loader = train_loader
        self.valid_loader = valid_loader
        self.valid_positions: Positions = valid_positions
        self.filter_seen = filter_seen
        self._scratch = tempfile.TemporaryDirectory(prefix="pipeline-train-")
        made = training_arguments(
            config, self._scratch.name, validate=valid_loader is not None, arguments=arguments
        )
        sharding = None
        if config.item_table == "sharded" and processes.count > 1:
            check_arguments(made, optimizers)
            sharding = Sharding(model, processes, made.ddp_timeout)
        self._shares = made.gradient_accumulation_steps * processes.count
        compiler = take_compiler(made)
        # no graph with accumulated or scaled gradients, or another optimizer
        own_optimizer = optimizers[0] is None and made.optim == "adamw_torch_fused"
        is_whole = own_optimizer and self._shares == 1 and not made.fp16
        self._step_compiler = compiler if is_whole else None
        self._step_graph: StepGraph | None = None
        is_static = prefers_static_steps(made.device) or compiler is not None
        self._batches = self._make_batches(made, longest_session(model), is_static=is_static)
        # shares of a step are scaled by their targets, not by their number
        self.loss_is_scaled_for_ga = self._shares > 1
        self.session_model = model
        self.best = None if valid_loader is None else BestEpoch(model, config)
        self.timetable = Timetable(config, self._batches.num_steps, saves=checkpoints is not None)
        self.checkpoints = checkpoints
        self.processes = processes
        self.sharding = sharding
        self.log_path = log_path
        self.stopwatch = Stopwatch()
        super().__init__(
            callbacks=[
                Begin(self),
                self.timetable,
                *(self._log_writers(log_path, arguments) if processes.is_first else []),
                *([self.best] if self.best else []),
                *(callbacks or []),
            ],
            model=TrainingStep(model, sharding, None if is_whole else compiler),
            args=made,
            eval_dataset=valid_loader,  # Hugging Face only checks that it is set
            optimizers=optimizers,
        )
        self.remove_callback(PrinterCallback)  # it prints to stdout, which is for results

    def _log_writers(self, path: Path | None, arguments: Arguments) -> list[TrainerCallback]:
        """Callbacks of the first process that show and write the log."""
        progress = ProgressBar(self._num_sessions, self.config.metric, self.running_loss)
        if path is None:
            return [progress]
        if not uses_tensorboard(self.config, arguments):
            return [progress, JsonLines(path)]
        return [progress, JsonLines(path), TensorBoard(path.parent / "tensorboard")]

    def _make_batches(
        self, arguments: TrainingArguments, longest: int | None, *, is_static: bool
    ) -> Batches:
        accumulation_steps = arguments.gradient_accumulation_steps
        rank, count = announced_processes().rank, announced_processes().count
        batch_size = self.config.batch_size
        assert batch_size is not None  # noqa: S101
        shares = accumulation_steps if self._partitions else accumulation_steps * count
        # all processes take as many steps as the one with the most sessions
        num_sessions = float(self.train_loader.num_sessions)
        sizes = sum_over_processes([num_sessions * (r == rank) for r in range(count)])
        return Batches(
            self.train_loader,
            batch_size,
            self.config.seed,
            shares=shares,
            own=range(shares) if self._partitions else range(rank, shares, count),
            num_steps=max(math.ceil(size / (batch_size * shares)) for size in sizes),
            device=arguments.device,
            shapes=step_shapes(self.train_loader, batch_size, longest) if is_static else None,
        )

    def get_train_dataloader(self) -> Any:
        """Batches of the Merlin loader, without collation."""
        return DataLoader(self._batches, batch_size=None, collate_fn=_identity)

    def num_examples(self, dataloader: Any) -> int:  # noqa: ARG002  (Hugging Face's signature)
        """Number of training sessions of all processes."""
        return self._num_sessions

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        """Batches of one step, each with its share of the step's targets."""
        samples, _ = super().get_batch_samples(*arguments, **keywords)
        due = self.timetable.minutes_passed()
        if self._shares > 1:
            set_shares(self.session_model, samples, self.processes.count)
            if self.timetable.minutes is not None:  # all processes use the clock of the first
                due = sum_over_processes([float(self.processes.is_first and due)]) > [0.0]
        self.timetable.save_due = due
        return samples, None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW of `optimizer.py`, unless an optimizer was passed or `arguments` name another."""
        if self.optimizer is None and self.args.optim == "adamw_torch_fused":
            module = self.model if model is None else model
            assert module is not None  # noqa: S101
            self.optimizer = build_optimizer(
                module,
                self.session_model,
                set(self.get_decay_parameter_names(module)),
                self.args,
                tables=self.config.table_optimizer,
                sharded=None if self.sharding is None else self.sharding.table,
                dense_gradients=self._batches.shapes is not None,
            )
        return super().create_optimizer(model)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *others: Any) -> Tensor:
        """Compute the gradients of a batch; the graph of a whole step also updates the weights.

        The graph leaves no gradients, so clipping and the optimizer do nothing afterwards.
        """
        if self._step_compiler is None:
            return super().training_step(model, inputs, *others)
        model.train()
        if self._step_graph is None:
            self._step_graph = self._make_step_graph(self._step_compiler)
        batch: Any = self._prepare_inputs(inputs)
        return self._step_graph(SessionBatch(**batch))

    def _make_step_graph(self, compiler: Compiler) -> StepGraph:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        assert isinstance(optimizer, TableAdamW)  # noqa: S101
        device_type, bf16 = self.args.device.type, self.args.bf16
        return StepGraph(
            self.session_model.loss,
            optimizer,
            compiler,
            self.args.max_grad_norm,
            lambda: torch.autocast(device_type, torch.bfloat16, enabled=bf16),
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self._step_graph is not None:
            return self._step_graph.norm
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        if isinstance(optimizer, TableAdamW) and self.accelerator.scaler is None:
            return optimizer.clip(self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Train, then load the best weights. After an interruption, continue from a checkpoint."""
        if self.sharding is not None:
            self.sharding.check_not_over()
        self._step_graph = None
        if self.processes.count > 1:
            # equal weights in all processes, but different dropout
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
        """Metrics `eval_<metric>@<K>` of the targets of the validation sessions."""
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
        if self.config.metric not in metrics:
            raise ConfigError(
                f"`train.metric` is {self.config.metric}, which the validation sessions do not "
                "define: they have no target of it, or one class alone. Choose another, such as "
                "loss."
            )
        values = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(values)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, values
        )
        return values

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add seconds of training, and throughput and memory to a line with a loss."""
        if "loss" in logs:
            epochs = (self.state.epoch or 0.0) - self._epoch_logged
            self._epoch_logged = self.state.epoch or 0.0
            seconds = max(self.stopwatch.lap(), 1e-9)
            logs["sessions_per_second"] = round(epochs * self._num_sessions / seconds, 1)
            logs["peak_memory_mb"] = peak_memory_mb(self.args.device)
        logs["seconds"] = round(self.stopwatch.seconds(), 1)
        super().log(logs, start_time)

    def running_loss(self) -> float | None:
        """Mean loss of this process since the last log."""
        steps = self.state.global_step - self._globalstep_last_logged
        return float(self._tr_loss) / steps if steps else None

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        self._batches.set_epoch(keywords["epoch"])
        super()._run_epoch(*arguments, **keywords)


def _identity(batch: Any) -> Any:
    return batch
