"""Hugging Face's Trainer over session batches."""

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers import Trainer as HuggingFaceTrainer

from pipeline.core.errors import ConfigError
from pipeline.core.recipe import TrainConfig
from pipeline.model.batch import SessionBatch
from pipeline.model.model import Model
from pipeline.train.evaluation import rank_targets
from pipeline.train.loader import SessionLoader
from pipeline.train.metrics import METRICS, ranking_metrics

VALIDATION_CUTOFFS = (10, 20)
POOL_BATCHES = 16
"""Batches whose sessions are sorted by length among each other; a multiple of the batch size."""


class TrainingStep(nn.Module):
    """A model whose forward is its training loss, as Hugging Face's Trainer wants it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Tensor], lengths: Tensor) -> dict[str, Tensor]:
        """SessionBatch in parts -> {"loss": ()}."""
        return {"loss": self.model.loss(SessionBatch(features, lengths))}


class Batches:
    """Training batches as keyword arguments of `TrainingStep.forward`.

    The loader gives a pool of many batches at a time. Sessions of a pool are put together by
    length, so that hardly any position is padding; the batches then come in random order.
    """

    def __init__(self, loader: SessionLoader, batch_size: int, seed: int) -> None:
        self.loader = loader
        self.batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(self.loader.num_sessions / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for pool in self.loader:
            rows = torch.argsort(pool.lengths, stable=True)  # ties stay in the loader's random order
            batches = rows.split(self.batch_size)
            for index in torch.randperm(len(batches), generator=self._generator).tolist():
                lengths = pool.lengths[batches[index]]
                batch = pool.window(batches[index], torch.zeros_like(lengths), lengths)
                yield batch._asdict()


class Trainer(HuggingFaceTrainer):
    """Trainer that reads sessions from the Merlin loader and evaluates by ranking the catalogue.

    After `train` the model has the weights of its best epoch by `config.metric`, or the last ones
    where there are no validation sessions.
    """

    def __init__(
        self,
        model: Model,
        config: TrainConfig,
        *,
        train_loader: SessionLoader,
        valid_loader: SessionLoader | None,
        log_path: Path,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        check_metric(config.metric)
        self.session_model = model
        self.train_loader = train_loader
        self.valid_loader = valid_loader
        self.best = BestEpoch(config) if valid_loader is not None else None
        self._scratch = tempfile.TemporaryDirectory(prefix="pipeline-train-")
        arguments = training_arguments(config, self._scratch.name, valid_loader is not None)
        super().__init__(
            model=TrainingStep(model),
            args=arguments,
            eval_dataset=valid_loader,  # only looked at for being there
            callbacks=[
                ProgressBar(train_loader),
                JsonLines(log_path),
                *([self.best] if self.best else []),
                *(callbacks or []),
            ],
        )
        self.remove_callback(PrinterCallback)  # it prints on stdout, which is for results

    def get_train_dataloader(self) -> Any:
        """Batches of the Merlin loader."""
        return Batches(
            self.train_loader, self.args.per_device_train_batch_size, seed=self.args.seed
        )

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Train, then go back to the best epoch's weights."""
        try:
            result = super().train(*arguments, **keywords)
        finally:
            self._scratch.cleanup()
        if self.best is not None and self.best.weights is not None:
            self.session_model.load_state_dict(self.best.weights)
        return result

    def evaluate(self, *_arguments: Any, **_keywords: Any) -> dict[str, float]:
        """Metrics `eval_<metric>@<K>` over every position of the validation sessions."""
        assert self.valid_loader is not None  # noqa: S101
        training = self.session_model.training
        self.session_model.eval()
        ranked = rank_targets(self.session_model, self.valid_loader, "all")
        self.session_model.train(training)
        metrics = ranking_metrics(ranked.ranks, VALIDATION_CUTOFFS)
        values = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(values)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, values
        )
        return values


def check_metric(name: str) -> None:
    """ConfigError unless `name` is one of the validation metrics."""
    known = [f"{metric}@{cutoff}" for metric in METRICS for cutoff in VALIDATION_CUTOFFS]
    if name not in known:
        raise ConfigError(f"`train.metric` is {name!r}, expected one of {', '.join(known)}.")


def training_arguments(config: TrainConfig, directory: str, validate: bool) -> TrainingArguments:
    """Hugging Face's arguments for this config; nothing is saved or reported by it."""
    arguments = TrainingArguments(
        output_dir=directory,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        eval_strategy="epoch" if validate else "no",
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # data parallelism is by processes, not by threads
    return arguments


class BestEpoch(TrainerCallback):
    """Keeps the weights of the best epoch and stops when none has come for long."""

    def __init__(self, config: TrainConfig) -> None:
        self.metric = f"eval_{config.metric}"
        self.patience = config.patience
        self.weights: dict[str, Tensor] | None = None
        self.value = -math.inf
        self.epoch = 0.0
        self._worse = 0

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        model: TrainingStep,
        **_others: Any,
    ) -> None:
        """Compare with the best so far."""
        value = metrics[self.metric]
        if value > self.value or self.weights is None:
            self.value, self.epoch, self._worse = value, state.epoch or 0.0, 0
            self.weights = {k: v.detach().cpu().clone() for k, v in model.model.state_dict().items()}
            return
        self._worse += 1
        if self.patience is not None and self._worse >= self.patience:
            control.should_training_stop = True


class JsonLines(TrainerCallback):
    """Appends what the Trainer logs to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any],
        **_others: Any,
    ) -> None:
        """Write one line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class ProgressBar(TrainerCallback):
    """Progress on stderr: steps, time left, sessions/s, the last loss and validation metric."""

    def __init__(self, loader: SessionLoader) -> None:
        self.loader = loader
        self._bar: Any = None
        self._begin = 0.0
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Open the bar."""
        self._bar = tqdm(
            total=state.max_steps, desc="train", unit="step", file=sys.stderr, mininterval=0.5
        )
        self._begin = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Advance by a step."""
        self._bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **_others: Any,
    ) -> None:
        """Show loss and metric of the epoch."""
        if "loss" in logs:
            self._shown["loss"] = f"{logs['loss']:.3f}"
        for name in ("ndcg@20", "recall@20"):
            if f"eval_{name}" in logs:
                self._shown[f"valid {name}"] = f"{logs[f'eval_{name}']:.3f}"
        seconds = time.monotonic() - self._begin
        done = (state.epoch or 0.0) * self.loader.num_sessions
        self._shown["sessions/s"] = f"{done / max(seconds, 1e-9):,.0f}"
        self._bar.set_postfix(self._shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Close the bar."""
        self._bar.close()


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and torch's global generators."""
    set_seed(seed)


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
