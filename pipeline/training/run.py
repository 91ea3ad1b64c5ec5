"""`pipeline train`: a data directory in, a run out."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.allocator import keep_heap
from pipeline.core.artifact import new_artifact
from pipeline.core.columns import SCHEMA_FILE, SESSIONS_DIRECTORY
from pipeline.core.errors import ConfigError, ProcessError
from pipeline.data.directory import Data
from pipeline.data.fingerprint import run_fingerprint
from pipeline.data.index_mapping import TRAINED_ON
from pipeline.data.interactions import read_interactions
from pipeline.data.loader import SessionLoader, count_sessions
from pipeline.model.build import build_model, save_model
from pipeline.model.model import Model
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.checkpoint import Abandoned, Checkpoints
from pipeline.training.distributed.processes import (
    TIMEOUT_SECONDS,
    Processes,
    gather_bytes,
    is_lost_process,
    joined_processes,
)
from pipeline.training.incremental.warm_start import begin_from
from pipeline.training.report.run import write_training_report
from pipeline.training.training_statistics import from_data

LOG_FILE = "metrics.jsonl"
_EVALUATION_SESSIONS = 1024
_POOL_BATCHES = 16
"""Batches whose sessions are sorted by length among each other."""


def train(
    data: Data | Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    *,
    restart: bool = False,
    callbacks: Sequence[Any] = (),
    start: Path | None = None,
) -> dict[str, Any]:
    """Train a model on `data` and write the run to `out`; return the manifest's facts.

    Goes on from the last checkpoint of a training of the same settings and data that was to write
    `out` and was interrupted, unless `restart`. Started by `torchrun`, it trains together with the
    other processes, of which the first writes. `callbacks` are Hugging Face's TrainerCallbacks:
    what one raises ends the training, and no run is written; after `Abandoned` there are no
    checkpoints either. `start` is an earlier run whose weights the model begins from.
    """
    with joined_processes(train_config.arguments.get("ddp_timeout", TIMEOUT_SECONDS)) as processes:
        try:
            return _train(
                Data.open(data),
                model_config,
                train_config,
                out,
                restart,
                processes,
                [*callbacks],
                start,
            )
        except Exception as error:
            if not is_lost_process(error):
                raise
            raise ProcessError(
                "Another process of this training ended, or did not answer in time: "
                f"{' '.join(str(error).split())[:200]} Start all of them again; they go on from "
                "the last checkpoint."
            ) from None


def _train(
    data: Data,
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    restart: bool,
    processes: Processes,
    callbacks: list[Any],
    start: Path | None,
) -> dict[str, Any]:
    # Hugging Face's Trainer takes ten seconds to import, which evaluation does without
    from transformers import set_seed

    from pipeline.training.trainer import Trainer

    keep_heap()
    schema, fitted = data.schema, data.fitted
    positions = fitted.recipe.target_positions
    if train_config.metric == "loss" and positions != "all":
        raise ConfigError(
            "`train.metric` is loss, which is over all interactions of a session; this split "
            "keeps the last alone for validation. Choose another metric, such as ndcg@10."
        )
    known = from_data(data.path, fitted, model_config, train_config)
    fingerprint = run_fingerprint(data.path, model_config, train_config, start=start)
    train_config = train_config.for_sessions(count_sessions(data.path, "train"))
    longest = fitted.recipe.max_sequence_length
    facts: dict[str, Any] = {}
    checkpoints = Checkpoints(out, fingerprint, processes.count)
    with _written_by_first(processes, out, facts, fingerprint) as directory:
        found = _interrupted(checkpoints, processes, restart)
        set_seed(train_config.seed)
        model = build_model(schema, model_config, longest, train_config, known)
        if start is not None:
            begin_from(model, start, data.path, fitted, model_config, train_config.new_items)
        trainer = Trainer(
            model,
            train_config,
            train_loader=training_loader(data.path, model, train_config, processes),
            valid_loader=evaluation_loader(
                data.path, "valid", model, with_loss=train_config.metric == "loss"
            )
            if _has_targets(data.path, "valid")
            else None,
            valid_positions=positions,
            filter_seen=fitted.recipe.filter_seen,
            log_path=directory / LOG_FILE if directory else None,
            callbacks=callbacks,
            checkpoints=checkpoints,
            processes=processes,
        )
        try:
            result = trainer.train(resume_from_checkpoint=None if found is None else str(found))
        except Abandoned:
            if processes.is_first:
                checkpoints.remove()
            raise
        except BaseException:
            if processes.is_first and checkpoints.last_step is not None:
                _say(f"Interrupted. The same command goes on from step {checkpoints.last_step:,}.")
            raise
        try:
            check_finite(model)
        except ConfigError:
            if processes.is_first:
                checkpoints.remove()  # there is nothing to go on with
            raise
        facts.update(
            seconds=round(trainer.stopwatch.seconds(), 1),
            device=str(trainer.args.device),
            processes=processes.count,
            steps=result.global_step,
            epochs=trainer.state.epoch,
            train_loss=result.training_loss,
            parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            model=model_config.model_dump(mode="json"),
            train=train_config.model_dump(mode="json"),
            **{TRAINED_ON: data.training_fingerprint},
        )
        if trainer.best is not None:
            facts["best_epoch"] = trainer.best.epoch
            facts[f"valid_{train_config.metric}"] = trainer.best.value
        if directory is not None:
            write_run(directory, data, model, model_config)
            write_training_report(directory, facts, out.resolve().name, fitted.recipe)
    if processes.is_first:
        checkpoints.remove()
    return facts


def check_finite(model: Model) -> None:
    """ConfigError if training diverged."""
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ConfigError(
            "Training diverged: weights are not finite. Lower `train.learning_rate`, or raise "
            "`model.temperature`."
        )


def write_run(directory: Path, data: Data, model: Model, model_config: ModelConfig) -> None:
    """Write the model and what it serves and evaluates by without the data it came from."""
    save_model(directory, model, data.schema, model_config, data.recipe.max_sequence_length)
    data.fitted.write(directory)
    (directory / SCHEMA_FILE).write_bytes((data.path / SCHEMA_FILE).read_bytes())


def _written_by_first(
    processes: Processes, out: Path, facts: dict[str, Any], fingerprint: str
) -> AbstractContextManager[Path | None]:
    """The directory of the run in the process that writes it, None in the others."""
    if processes.is_first:
        return new_artifact(out, "run", facts, fingerprint=fingerprint)
    return nullcontext()


def _interrupted(checkpoints: Checkpoints, processes: Processes, restart: bool) -> Path | None:
    """Where to go on, for all processes as the first one finds it, which says so."""
    found = None
    if processes.is_first and not restart:
        found, reason = checkpoints.newest()
        if found is not None:
            _say(f"Going on from step {checkpoints.last_step:,}.")
        elif reason is not None:
            _say(f"Starting anew: the checkpoints in {checkpoints.folder} {reason}.")
    name = gather_bytes(b"" if found is None else found.name.encode())[0].decode()
    return checkpoints.folder / name if name else None


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201  (stdout is for results)


def training_loader(
    data: Path, model: Model, config: TrainConfig, processes: Processes
) -> SessionLoader:
    """Training sessions in pools of many batches, in a random order."""
    accumulated = config.arguments.get(
        "gradient_accumulation_steps", config.gradient_accumulation_steps
    )
    own = config.process_data == "partitions"
    config = config.for_sessions(count_sessions(data, "train"))
    assert config.batch_size is not None  # noqa: S101
    step = config.batch_size * accumulated * (1 if own else processes.count)
    return SessionLoader(
        data,
        "train",
        item=model.inputs.item,
        features=model.training_columns,
        batch_size=_POOL_BATCHES * step,
        shuffle=True,
        seed=config.seed,
        rank=processes.rank if own else 0,
        processes=processes.count if own else 1,
    )


def evaluation_loader(
    data: Path, part: str, model: Model, *, with_loss: bool = False
) -> SessionLoader:
    """Sessions of a part in their order, with what a loss needs to know if `with_loss`."""
    return SessionLoader(
        data,
        part,
        item=model.inputs.item,
        features=model.training_columns if with_loss else model.inputs.feature_names,
        batch_size=_EVALUATION_SESSIONS,
    )


def _has_targets(data: Path, part: str) -> bool:
    """Whether a part is there and holds a session of two interactions."""
    if not (data / SESSIONS_DIRECTORY / part).is_dir():
        return False
    return bool((np.diff(read_interactions(data, part).offsets) > 1).any())
