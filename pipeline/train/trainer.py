"""Hugging Face's Trainer over session batches."""

import math
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers import Trainer as HuggingFaceTrainer

from pipeline.core.errors import ConfigError
from pipeline.core.recipe import TrainConfig
from pipeline.model.batch import SessionBatch
from pipeline.model.model import Model
from pipeline.train.callbacks import BestEpoch, JsonLines, ProgressBar
from pipeline.train.evaluation import Positions, rank_targets
from pipeline.train.loader import SessionLoader
from pipeline.train.metrics import METRICS, ranking_metrics

VALIDATION_CUTOFFS = (10, 20)


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
    length, so that hardly any position is padding, and cut where the interactions are shared out
    evenly: `batch_size` sessions on average, and as many targets in one step as in another. With
    as many sessions instead, targets of short sessions would weigh more. The order is random.
    """

    def __init__(self, loader: SessionLoader, batch_size: int, seed: int) -> None:
        self.loader = loader
        self.batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(self.loader.num_sessions / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for pool in self.loader:
            rows = torch.argsort(
                pool.lengths, stable=True
            )  # ties stay in the loader's random order
            sizes = even_shares(pool.lengths[rows].tolist(), self.batch_size)
            batches = rows.split(sizes)
            for index in torch.randperm(len(batches), generator=self._generator).tolist():
                lengths = pool.lengths[batches[index]]
                batch = pool.window(batches[index], torch.zeros_like(lengths), lengths)
                yield batch._asdict()


def even_shares(weights: list[int], mean_size: int) -> list[int]:
    """Sizes of ceil(n / mean_size) consecutive groups, none empty, of about equal weight."""
    num_groups = math.ceil(len(weights) / mean_size)
    reached = list(accumulate(weights))
    bounds = [0]
    for group in range(1, num_groups):
        bound = bisect_left(reached, reached[-1] * group / num_groups) + 1
        # room for one at least in this group and in each that follows
        bounds.append(min(max(bound, bounds[-1] + 1), len(weights) - (num_groups - group)))
    bounds.append(len(weights))
    return [stop - start for start, stop in pairwise(bounds)]


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
        valid_positions: Positions = "all",
        filter_seen: bool = False,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        check_metric(config.metric)
        self.session_model = model
        self.train_loader = train_loader
        self.valid_loader = valid_loader
        self.valid_positions: Positions = valid_positions
        self.filter_seen = filter_seen
        self.best = BestEpoch(model, config) if valid_loader is not None else None
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
        """Metrics `eval_<metric>@<K>` over the chosen positions of the validation sessions."""
        assert self.valid_loader is not None  # noqa: S101
        training = self.session_model.training
        self.session_model.eval()
        ranked = rank_targets(
            self.session_model,
            self.valid_loader,
            self.valid_positions,
            filter_seen=self.filter_seen,
        )
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
        lr_scheduler_type="constant_with_warmup"
        if config.schedule == "constant"
        else config.schedule,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        eval_strategy="epoch" if validate else "no",
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        logging_nan_inf_filter=False,  # a diverged loss must show
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # data parallelism is by processes, not by threads
    return arguments
