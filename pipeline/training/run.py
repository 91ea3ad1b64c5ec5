"""`pipeline train`: reads a data directory, writes a run."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.allocator import keep_heap
from pipeline.core.artifact import new_artifact
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.data.fingerprint import origin_facts, run_fingerprint
from pipeline.data.index_mapping import TRAINED_ON
from pipeline.data.loader import SessionLoader
from pipeline.data.sessions import count_sessions
from pipeline.evaluation.targets import evaluation_loader
from pipeline.model.build import TrainingStatistics, build_model
from pipeline.model.model import Model
from pipeline.model.run import Run, check_fits, write_program_run
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.checkpoint import Checkpoints, TrainingAbandoned
from pipeline.training.counting import train_counting
from pipeline.training.distributed.processes import TIMEOUT_SECONDS, Processes, joined_processes
from pipeline.training.incremental.warm_start import warm_start
from pipeline.training.interruption import keep_checkpoints
from pipeline.training.report.run import write_training_report
from pipeline.training.run_files import EVALUATION_SESSIONS, LOG_FILE, has_targets, write_run
from pipeline.training.training_statistics import training_statistics

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer

logger = logging.getLogger(__name__)

_POOL_BATCHES = 16
"""Batches per pool of sessions sorted by length."""


class DivergenceError(ConfigError, TrainingAbandoned):
    """Weights are not finite."""


def train(
    data: Data | Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    *,
    restart: bool = False,
    callbacks: Sequence[Any] = (),
    start: Path | None = None,
    model: Model | None = None,
    plugins: Path | None = None,
) -> dict[str, Any]:
    """Train a model on `data`, write the run to `out` and return the facts of its manifest.

    Continues from the latest checkpoint of an interrupted training of the same settings and data,
    unless `restart`. Under `torchrun`, all processes train one model and the first one writes.
    `callbacks` are Hugging Face's TrainerCallbacks; an exception in one ends the training without a
    run, and `TrainingAbandoned` without checkpoints. `start` is the run with the initial weights.
    `model` is a model built in Python that replaces that of `model_config`; it has no checkpoints,
    as they could not be matched to the model.
    """
    data = Data.open(data)
    data.check_sessions("train", "valid")
    if model is None and model_config.counting is not None:
        return train_counting(data, model_config, train_config, out, start=start, plugins=plugins)
    if model is None:
        train_config = train_config.for_model(model_config)
    else:
        check_fits(model, data)
    _check_metric(data, train_config)
    timeout_seconds = train_config.arguments.get("ddp_timeout", TIMEOUT_SECONDS)
    with joined_processes(timeout_seconds) as processes:
        keep_heap()
        # first, as it checks the vector files that the fingerprint reads
        statistics = training_statistics(data.path, data.fitted, model_config, train_config)
        fingerprint = run_fingerprint(
            data.path, model_config, train_config, start=start, plugins=plugins
        )
        config = train_config.for_sessions(count_sessions(data.path, "train"))
        checkpoints = Checkpoints(out, fingerprint, processes)
        facts: dict[str, Any] = {}
        run = new_artifact(out, "run", facts, fingerprint=fingerprint)
        with run if processes.is_first else nullcontext() as directory:
            latest = None if restart or model is not None else checkpoints.latest()
            initial = model or _initial_model(data, model_config, config, statistics, start)
            trainer = _trainer(data, initial, config, checkpoints, directory, callbacks)
            with keep_checkpoints(checkpoints):
                path = None if latest is None else str(latest)
                result = trainer.train(resume_from_checkpoint=path)
                data.check_unchanged()
                check_finite(initial)
            facts |= _facts(data, model_config, trainer, result) | origin_facts(start, plugins)
            if directory is not None and model is not None:
                facts["model"] = write_program_run(directory, data, model)
                write_training_report(directory, facts, out.resolve().name, data.recipe)
            elif directory is not None:
                write_run(directory, data, initial, model_config)
                write_training_report(directory, facts, out.resolve().name, data.recipe)
        checkpoints.remove()
    return facts


def _check_metric(data: Data, config: TrainConfig) -> None:
    """ConfigError for a validation metric without targets in the split."""
    if config.metric == "loss" and data.recipe.target_positions != "all":
        raise ConfigError(
            "`train.metric` is loss, which is over all interactions of a session; this split "
            "keeps the last alone for validation. Choose another metric, such as ndcg@10."
        )


def _initial_model(
    data: Data,
    model_config: ModelConfig,
    config: TrainConfig,
    statistics: TrainingStatistics,
    start: Path | None,
) -> Model:
    from transformers import set_seed

    set_seed(config.seed)
    max_length = data.recipe.max_sequence_length
    model = build_model(data.schema, model_config, max_length, config, statistics)
    if start is not None:
        warm_start(model, Run.open(start), data, model_config, config.new_items)
    return model


def _trainer(
    data: Data,
    model: Model,
    config: TrainConfig,
    checkpoints: Checkpoints,
    directory: Path | None,
    callbacks: Sequence[Any],
) -> "Trainer":
    # importing Hugging Face's Trainer takes seconds
    from pipeline.training.callbacks import DataWatch
    from pipeline.training.trainer import Trainer

    valid_loader = None
    if has_targets(data, "valid"):
        valid_loader = evaluation_loader(
            data.path, "valid", model, EVALUATION_SESSIONS, with_loss=config.metric == "loss"
        )
    return Trainer(
        model,
        config,
        train_loader=training_loader(data.path, model, config, checkpoints.processes),
        valid_loader=valid_loader,
        valid_positions=data.recipe.target_positions,
        filter_seen=data.recipe.filter_seen,
        log_path=None if directory is None else directory / LOG_FILE,
        callbacks=[DataWatch(data), *callbacks],
        checkpoints=checkpoints,
    )


def _facts(
    data: Data, model_config: ModelConfig, trainer: "Trainer", result: Any
) -> dict[str, Any]:
    config = trainer.config
    facts = {
        "seconds": round(trainer.stopwatch.seconds(), 1),
        "device": str(trainer.args.device),
        "processes": trainer.processes.count,
        "steps": result.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": result.training_loss,
        "parameters": num_parameters(trainer.session_model),
        "model": model_config.model_dump(mode="json"),
        "train": config.model_dump(mode="json"),
        TRAINED_ON: data.training_fingerprint,
    }
    if trainer.best is not None:
        facts["best_epoch"] = trainer.best.epoch
        facts[f"valid_{config.metric}"] = trainer.best.value
    return facts


def num_parameters(model: Model) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def check_finite(model: Model) -> None:
    """DivergenceError, a ConfigError, if a weight is not finite."""
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise DivergenceError(
            "Training diverged: weights are not finite. Lower `train.learning_rate`, or raise "
            "`model.temperature`."
        )


def training_loader(
    data: Path, model: Model, config: TrainConfig, processes: Processes
) -> SessionLoader:
    """Training sessions in pools of many batches, in random order."""
    accumulated = config.arguments.get(
        "gradient_accumulation_steps", config.gradient_accumulation_steps
    )
    partitions = config.process_data == "partitions"
    config = config.for_sessions(count_sessions(data, "train"))
    assert config.batch_size is not None  # noqa: S101
    step_size = config.batch_size * accumulated * (1 if partitions else processes.count)
    return SessionLoader(
        data,
        "train",
        item=model.inputs.item,
        features=model.training_columns,
        batch_size=_POOL_BATCHES * step_size,
        shuffle=True,
        seed=config.seed,
        rank=processes.rank if partitions else 0,
        processes=processes.count if partitions else 1,
    )
