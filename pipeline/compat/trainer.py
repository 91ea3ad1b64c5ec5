"""Trainer and its arguments under the names of Transformers4Rec, on `pipeline.training`.

Each `train` is a training of `pipeline.training.trainer.Trainer` on the present training files.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PredictionOutput, TrainOutput

from pipeline.compat.arguments import expect
from pipeline.compat.dataloader import MerlinDataLoader, Paths, T4RecDataLoader, session_loader
from pipeline.compat.evaluation import evaluate_batches, positions_of, whole_sessions
from pipeline.compat.model import Model, set_longest
from pipeline.compat.windows import wipe_memory
from pipeline.core.errors import ConfigError
from pipeline.core.files import atomic_write
from pipeline.model.build import WEIGHTS_FILE, write_tensors
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.recipe.train import TrainConfig, check_trainer_arguments
from pipeline.training.distributed.processes import announced_processes
from pipeline.training.trainer import Trainer as SessionTrainer

_POOL_BATCHES = 16
"""Number of batches whose sessions are sorted by length together."""
_STATE_FILE = "trainer.json"
_TRANSLATED = {
    "num_train_epochs", "per_device_train_batch_size", "learning_rate", "weight_decay",
    "warmup_steps", "max_grad_norm", "seed", "metric_for_best_model", "eval_strategy",
    "eval_steps", "lr_scheduler_type", "lr_scheduler_kwargs",
}  # fmt: skip
"""Arguments that `training_config` and `further_arguments` set by other names."""
_WITHOUT_EFFECT = {
    "output_dir", "per_device_eval_batch_size", "dataloader_drop_last", "disable_tqdm",
    "remove_unused_columns", "save_strategy", "save_steps", "save_total_limit",
    "load_best_model_at_end", "greater_is_better", "label_smoothing_factor",
    "do_train", "do_eval", "do_predict",
}  # fmt: skip
"""Arguments that this Trainer reads itself, or that only Hugging Face's own loop reads."""


@dataclass
class T4RecTrainingArguments(TrainingArguments):
    """Hugging Face's TrainingArguments with those of Transformers4Rec.

    Names that Hugging Face has changed since are taken too: `no_cuda`, `evaluation_strategy`.
    """

    max_sequence_length: int | None = None
    """Newest interactions of a session that are read, unless the input block has a number."""
    shuffle_buffer_size: int = 0
    """Without effect: whole files are shuffled."""
    data_loader_engine: str = "merlin"
    """Without effect: the loader is Merlin's."""
    eval_on_test_set: bool = False
    """Without effect, as there."""
    eval_steps_on_train_set: int = 20
    """Batches that `evaluate(metric_key_prefix="train")` reads."""
    predict_top_k: int | None = 100
    """K of the lists of `predict`; None for the `top_k` of the model, or all scores."""
    learning_rate_num_cosine_cycles_by_epoch: float = 1.25
    """Cycles of a cosine schedule for each epoch."""
    log_predictions: bool = False
    """Not supported: `predict` returns predictions."""
    compute_metrics_each_n_steps: int = 1
    """An evaluation ranks the targets of every n-th batch; its loss is that of all batches."""
    experiments_group: str = "default"
    """Without effect, as there."""
    avg_session_length: int | None = None
    """Older name of `max_sequence_length`."""
    no_cuda: bool = False
    """Older name of `use_cpu`."""
    evaluation_strategy: str | None = None
    """Older name of `eval_strategy`."""
    overwrite_output_dir: bool = False
    """Without effect."""

    def __post_init__(self) -> None:
        """Translate older names. ConfigError for what is not supported."""
        self.use_cpu = self.use_cpu or self.no_cuda
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.max_sequence_length is None:
            self.max_sequence_length = self.avg_session_length
        expect("log_predictions", self.log_predictions, False, because="`predict` returns them")
        T4RecDataLoader.parse(self.data_loader_engine)
        lengths = [self.compute_metrics_each_n_steps, self.predict_top_k or 1]
        if min(lengths) < 1:
            raise ConfigError("compute_metrics_each_n_steps and predict_top_k are 1 or more.")
        super().__post_init__()


def _alias(name: str) -> Any:
    """Another name of an attribute."""

    def get(trainer: "Trainer") -> Any:
        return getattr(trainer, name)

    def set_value(trainer: "Trainer", value: Any) -> None:
        setattr(trainer, name, value)

    return property(get, set_value, doc=f"Another name of `{name}`.")


class Trainer:
    """Trains and evaluates a model on Parquet files, which may be others for each call.

    `train_dataset_or_path` and `eval_dataset_or_path` are files, folders, globs, a
    `merlin.io.Dataset` or a MerlinDataLoader. The optimizer stays from one `train` to the next, and
    the schedule too: call `reset_lr_scheduler` before each, or the learning rate stays at its end.
    With `eval_strategy` the weights of the best evaluation are kept, else the last ones.
    """

    # Long: the keyword arguments are those of the original.
    def __init__(
        self,
        model: Model,
        args: T4RecTrainingArguments,
        schema: Any = None,
        train_dataset_or_path: Paths = None,
        eval_dataset_or_path: Paths = None,
        test_dataset_or_path: Paths = None,
        train_dataloader: Any = None,
        eval_dataloader: Any = None,
        test_dataloader: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        compute_metrics: Any = None,
        incremental_logging: bool = False,  # noqa: ARG002  (steps always continue)
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        self.model = model
        self.args = args
        self.schema = schema
        self.train_dataset_or_path = _either(train_dataset_or_path, train_dataloader)
        self.eval_dataset_or_path = _either(eval_dataset_or_path, eval_dataloader)
        self.test_dataset_or_path = _either(test_dataset_or_path, test_dataloader)
        self.callbacks = list(callbacks or [])
        self.compute_metrics = bool(compute_metrics)
        self.optimizer, self.lr_scheduler = optimizers
        self.state = TrainerState()
        """State of Hugging Face's Trainer; steps count on from one `train` to the next."""
        set_longest(model, args.max_sequence_length)

    # the original's documentation and notebooks set data by these names
    train_dataset = train_dataloader = _alias("train_dataset_or_path")
    eval_dataset = eval_dataloader = _alias("eval_dataset_or_path")
    test_dataset = test_dataloader = _alias("test_dataset_or_path")

    def add_callback(self, callback: TrainerCallback) -> None:
        """Add a callback of Hugging Face to the next trainings."""
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def reset_lr_scheduler(self) -> None:
        """Begin the schedule of the learning rate anew in the next `train`."""
        self.lr_scheduler = None

    def train(self, resume_from_checkpoint: Any = None) -> TrainOutput:
        """Train on `train_dataset_or_path` for `num_train_epochs`."""
        expect(
            "resume_from_checkpoint", resume_from_checkpoint, None, False,
            because="`pipeline train` resumes; here load_model_trainer_states_from_checkpoint",
        )  # fmt: skip
        before, config = self.state.global_step, self._config()
        trainer = self._session_trainer(config)
        result = trainer.train()
        self.optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        self.lr_scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
        self.state = trainer.state
        self.state.global_step += before
        metrics = {"epoch": self.state.epoch, "train_loss": result.training_loss}
        return TrainOutput(self.state.global_step, result.training_loss, metrics)

    def _config(self) -> TrainConfig:
        if self.train_dataset_or_path is None:
            raise ConfigError("Set `train_dataset_or_path` before `train`.")
        sessions = session_loader(self.model, self.train_dataset_or_path, 1).num_sessions
        config = training_config(self.args, sessions)
        return config if self.model.ranks_items else config.model_copy(update={"metric": "loss"})

    def _session_trainer(self, config: TrainConfig) -> SessionTrainer:
        assert config.batch_size is not None  # noqa: S101
        step = config.batch_size * config.gradient_accumulation_steps * announced_processes().count
        loader = session_loader(
            self.model,
            self.train_dataset_or_path,
            _POOL_BATCHES * step,
            shuffle=True,
            seed=config.seed + self.state.global_step,
        )
        validates = self.args.eval_strategy != "no" and self.eval_dataset_or_path is not None
        valid = None
        if validates:
            valid = session_loader(
                self.model, self.eval_dataset_or_path, self.args.per_device_eval_batch_size
            )
        return SessionTrainer(
            self.model,
            config,
            train_loader=loader,
            valid_loader=valid,
            valid_positions=positions_of(self.model),
            arguments=further_arguments(self.args),
            callbacks=self.callbacks,
            optimizers=(self.optimizer, self.lr_scheduler),
        )

    def evaluate(
        self,
        eval_dataset: Paths = None,
        ignore_keys: Any = None,  # noqa: ARG002  (there are none)
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Metrics of `eval_dataset_or_path` by `PREFIX_/TASK/METRIC`, and `PREFIX_/loss`.

        The prefix train reads the first `eval_steps_on_train_set` batches. Metrics need
        `compute_metrics`.
        """
        paths = self.eval_dataset_or_path if eval_dataset is None else eval_dataset
        if paths is None:
            raise ConfigError("Set `eval_dataset_or_path` before `evaluate`.")
        loader = session_loader(self.model, paths, self.args.per_device_eval_batch_size)
        steps = self.args.eval_steps_on_train_set if metric_key_prefix == "train" else None
        values = evaluate_batches(
            self.model,
            islice(loader, steps),
            prefix=metric_key_prefix,
            with_metrics=self.compute_metrics,
            metrics_every=self.args.compute_metrics_each_n_steps,
        )
        prefix = f"{metric_key_prefix}_/"
        self.model.last_metrics = {k.removeprefix(prefix): v for k, v in values.items()}
        self.log(values)
        return values

    def log(self, logs: dict[str, float]) -> None:
        """Add a line to the history of the log."""
        self.state.log_history.append({**logs, "step": self.state.global_step})

    @torch.no_grad()
    def predict(
        self,
        test_dataset: Paths = None,
        ignore_keys: Any = None,  # noqa: ARG002  (there are none)
        metric_key_prefix: str = "test",  # noqa: ARG002  (a prediction has no metrics)
    ) -> PredictionOutput:
        """Predict what follows each session.

        `predictions` are (item indices, scores), (sessions, `predict_top_k`) each, best first; of
        another task an array; of several tasks a dictionary by name.
        """
        paths = self.test_dataset_or_path if test_dataset is None else test_dataset
        if paths is None:
            raise ConfigError("Give `predict` a data set, or set `test_dataset_or_path`.")
        model, device = self.model, next(self.model.parameters()).device
        parts: dict[str, list[Any]] = {name: [] for name in model.prediction_tasks}
        training = model.training
        model.eval()
        try:
            for sessions in session_loader(model, paths, self.args.per_device_eval_batch_size):
                batch = whole_sessions(sessions).to(device)
                for name, values in self._predictions(batch).items():
                    parts[name].append(values)
        finally:
            model.train(training)
        joined = {name: _joined(values) for name, values in parts.items()}
        predictions: Any = joined if len(joined) > 1 else next(iter(joined.values()))
        return PredictionOutput(predictions=predictions, label_ids=None, metrics={})

    def _predictions(self, batch: Any) -> dict[str, Any]:
        """Predictions of a batch by task name."""
        model = self.model
        others = [t for t in model.prediction_tasks.values() if not _ranks(t)]
        values: dict[str, Any] = {}
        if others:
            predictions = model.predict(batch)
            values = {t.task_name: predictions[t.task_name].cpu().numpy() for t in others}
        for name, task in model.prediction_tasks.items():
            if _ranks(task):
                k = self.args.predict_top_k or model.list_length
                if k is None:
                    values[name] = model(batch).cpu().numpy()
                    continue
                best = model.top_k(batch, k)
                values[name] = best.items.cpu().numpy(), best.scores.cpu().numpy()
        return values

    @property
    def _directory(self) -> Path:
        if not self.args.output_dir:
            raise ConfigError("Set `output_dir` of the arguments, or name a folder.")
        return Path(self.args.output_dir)

    def get_train_dataloader(self) -> MerlinDataLoader:
        """Batches of the training files in random order."""
        return self._dataloader(self.train_dataset_or_path, self.args.per_device_train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Paths = None) -> MerlinDataLoader:
        """Batches of the evaluation files in their order."""
        paths = self.eval_dataset_or_path if eval_dataset is None else eval_dataset
        return self._dataloader(paths, self.args.per_device_eval_batch_size, shuffle=False)

    def get_test_dataloader(self, test_dataset: Paths = None) -> MerlinDataLoader:
        """Batches of the test files in their order."""
        paths = self.test_dataset_or_path if test_dataset is None else test_dataset
        return self._dataloader(paths, self.args.per_device_eval_batch_size, shuffle=False)

    def _dataloader(self, paths: Paths, batch_size: int, shuffle: bool = True) -> MerlinDataLoader:
        if isinstance(paths, MerlinDataLoader):
            return paths
        if self.schema is None:
            raise ConfigError("A loader needs the `schema` of the Trainer.")
        longest = self.model.inputs.max_sequence_length
        return MerlinDataLoader.from_schema(
            self.schema, paths, batch_size, longest, shuffle=shuffle
        )

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the model to `output_dir`, as `model.save` does."""
        self.model.save(self._directory if output_dir is None else output_dir)

    def _save_model_and_checkpoint(self, save_model_class: bool = False) -> Path:
        """Write weights and step to `checkpoint-STEP` in `output_dir`; return the path.

        With `save_model_class` `Model.load` reads it too.
        """
        path = self._directory / f"checkpoint-{self.state.global_step}"
        path.mkdir(parents=True, exist_ok=True)
        if save_model_class:
            self.model.save(path)
        else:
            write_tensors(self.model.state_dict(), path / WEIGHTS_FILE)
        with atomic_write(path / _STATE_FILE) as partial:
            partial.write_text(json.dumps({"global_step": self.state.global_step}))
        return path

    def load_model_trainer_states_from_checkpoint(
        self, checkpoint_path: str | Path, model: Any = None
    ) -> None:
        """Read weights and step of a checkpoint; optimizer and schedule begin anew.

        ConfigError if the weights are not those of the model.
        """
        path = Path(checkpoint_path)
        if model is not None:
            self.model = model
        try:
            self.model.load_state_dict(load_file(path / WEIGHTS_FILE))
            self.state.global_step = json.loads((path / _STATE_FILE).read_text())["global_step"]
        except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
            line = " ".join(str(error).split())[:200]
            raise ConfigError(f"{path} is no checkpoint of this model: {line}") from None
        self.optimizer, self.lr_scheduler = None, None

    @staticmethod
    def wipe_memory() -> None:
        """Give memory that is not used back, that of the GPU too."""
        wipe_memory()


def training_config(args: T4RecTrainingArguments, num_sessions: int) -> TrainConfig:
    """The train section of a recipe with the same settings, for so many sessions an epoch."""
    batch_size = args.per_device_train_batch_size
    steps = math.ceil(num_sessions / (batch_size * args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else steps * math.ceil(args.num_train_epochs)
    warmup = args.warmup_steps or 0
    every = None
    if args.eval_strategy == "steps":
        every = int(args.eval_steps or args.logging_steps)
    return TrainConfig(
        epochs=math.ceil(args.num_train_epochs),
        batch_size=batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        warmup_ratio=warmup if warmup < 1 else min(warmup / max(steps, 1), 0.99),
        max_grad_norm=args.max_grad_norm,
        seed=args.seed,
        validate_every=every,
        metric=metric_name(args.metric_for_best_model),
    )


def metric_name(key: str | None) -> str:
    """`eval_/next-item/ndcg_at_10` or `ndcg_at_10` -> `ndcg@10`, the name in a recipe."""
    if key is None:
        return TrainConfig().metric
    name = key.rpartition("/")[2].removeprefix("eval_")
    for theirs, ours in (("avg_precision", "map"), ("mean_reciprocal_rank", "mrr")):
        name = name.replace(theirs, ours)
    return name.replace("_at_", "@")


def further_arguments(args: T4RecTrainingArguments) -> dict[str, Any]:
    """Arguments of Hugging Face that differ from their default and have no other name here."""
    default = TrainingArguments(output_dir=args.output_dir or tempfile.gettempdir())
    arguments = {
        field.name: getattr(args, field.name)
        for field in fields(TrainingArguments)
        if field.init
        and field.name not in _TRANSLATED | _WITHOUT_EFFECT | {"gradient_accumulation_steps"}
        and getattr(args, field.name) != getattr(default, field.name)
    }
    try:
        check_trainer_arguments(arguments)
    except ValueError as error:
        raise ConfigError(f"T4RecTrainingArguments: {error}.") from None
    scheduler = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    keywords = args.lr_scheduler_kwargs
    options = dict(keywords) if isinstance(keywords, dict) else {}
    if scheduler in ("cosine", "cosine_with_restarts"):
        cycles = args.learning_rate_num_cosine_cycles_by_epoch * args.num_train_epochs
        restarts = scheduler == "cosine_with_restarts"
        options.setdefault("num_cycles", max(1, round(cycles)) if restarts else cycles)
    return {**arguments, "lr_scheduler_type": scheduler, "lr_scheduler_kwargs": options}


def _either(paths: Paths, dataloader: Any) -> Paths:
    return dataloader if paths is None else paths


def _ranks(task: Any) -> bool:
    return isinstance(task, NextItemPredictionTask)


def _joined(parts: list[Any]) -> Any:
    """Arrays, or pairs of arrays, of all batches."""
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return np.concatenate(parts)
