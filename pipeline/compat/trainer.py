"""Trainer under the names of Transformers4Rec, on `pipeline.training`.

Each `train` runs `pipeline.training.trainer.Trainer` on the current training files.
"""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import PredictionOutput, TrainOutput

from pipeline.compat.arguments import expect
from pipeline.compat.dataloader import MerlinDataLoader, Paths, session_loader
from pipeline.compat.evaluation import evaluate_batches, positions_of, whole_sessions
from pipeline.compat.model import Model, set_longest
from pipeline.compat.saving import refuse_pickles
from pipeline.compat.trainer_arguments import (
    T4RecTrainingArguments,
    further_arguments,
    training_config,
)
from pipeline.compat.windows import wipe_memory
from pipeline.core.artifact import read_json
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.files import atomic_write
from pipeline.model.model_files import WEIGHTS_FILE, read_tensors, write_tensors
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.recipe.train import TrainConfig
from pipeline.training.distributed.processes import announced_processes
from pipeline.training.trainer import Trainer as SessionTrainer

_POOL_BATCHES = 16
"""Batches per pool of sessions sorted by length."""
_STATE_FILE = "trainer.json"


def _alias(name: str) -> Any:
    """Property that is an alias of an attribute."""

    def get(trainer: "Trainer") -> Any:
        return getattr(trainer, name)

    def set_value(trainer: "Trainer", value: Any) -> None:
        setattr(trainer, name, value)

    return property(get, set_value, doc=f"Another name of `{name}`.")


class Trainer:
    """Trains and evaluates a model on Parquet files, which may change between calls.

    `train_dataset_or_path` and `eval_dataset_or_path` are files, folders, globs, a
    `merlin.io.Dataset` or a MerlinDataLoader. Optimizer and schedule are kept between calls of
    `train`: without `reset_lr_scheduler` the learning rate stays at its final value. With
    `eval_strategy` the weights of the best evaluation are kept, else the last weights.
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
        """State of Hugging Face's Trainer; steps accumulate over calls of `train`."""
        set_longest(model, args.max_sequence_length)

    # names by which the original's notebooks set data
    train_dataset = train_dataloader = _alias("train_dataset_or_path")
    eval_dataset = eval_dataloader = _alias("eval_dataset_or_path")
    test_dataset = test_dataloader = _alias("test_dataset_or_path")

    def add_callback(self, callback: TrainerCallback) -> None:
        """Add a callback of Hugging Face to the next trainings."""
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def reset_lr_scheduler(self) -> None:
        """Restart the schedule of the learning rate in the next `train`."""
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
        """Predict the next items of each session.

        `predictions` are (item indices, scores), (sessions, `predict_top_k`) each, best first; an
        array for another task; a dictionary by name for several tasks.
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

        With `save_model_class`, `Model.load` can read it.
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
        """Read weights and step of a checkpoint; optimizer and schedule restart.

        ConfigError if the weights are not those of the model, ArtifactError for a checkpoint of
        Transformers4Rec.
        """
        path = Path(checkpoint_path)
        refuse_pickles(path)
        if model is not None:
            self.model = model
        try:
            self.model.load_state_dict(read_tensors(path / WEIGHTS_FILE))
            self.state.global_step = read_json(path / _STATE_FILE)["global_step"]
        except (OSError, RuntimeError, KeyError, ValueError, ArtifactError) as error:
            line = " ".join(str(error).split())[:200]
            raise ConfigError(f"{path} is not a checkpoint of this model: {line}") from None
        self.optimizer, self.lr_scheduler = None, None

    @staticmethod
    def wipe_memory() -> None:
        """Release unused memory, including that of the GPU."""
        wipe_memory()


def _either(paths: Paths, dataloader: Any) -> Paths:
    return dataloader if paths is None else paths


def _ranks(task: Any) -> bool:
    return isinstance(task, NextItemPredictionTask)


def _joined(parts: list[Any]) -> Any:
    """Arrays, or pairs of arrays, of all batches."""
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return np.concatenate(parts)
