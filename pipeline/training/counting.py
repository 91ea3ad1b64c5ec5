"""`pipeline train` of a counting model: one pass over the training sessions, no epochs."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.artifact import new_artifact
from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.data.fingerprint import origin_facts, run_fingerprint
from pipeline.data.index_mapping import TRAINED_ON
from pipeline.data.sessions import interactions_of, read_sessions
from pipeline.evaluation.targets import evaluation_loader
from pipeline.model.counting.fitting import TrainingSessions, fit_scorer
from pipeline.model.counting.model import CountingModel, counting_model, read_columns
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.distributed.processes import announced_processes
from pipeline.training.report.run import write_training_report
from pipeline.training.run_files import EVALUATION_SESSIONS, LOG_FILE, has_targets, write_run
from pipeline.training.validation import validate

logger = logging.getLogger(__name__)


def fit_model(data: Data, config: ModelConfig) -> CountingModel:
    """Fit the counting model of `config` to the train part of `data`.

    ConfigError for a column that the data lack, and for data that do not suit the model.
    """
    options = config.counting
    assert options is not None  # noqa: S101
    item, *others = read_columns(data.schema, config)
    columns = [ITEM, TIMESTAMP, *(column.name for column in others)]
    table = read_sessions(data.path, "train", columns)
    times = table[TIMESTAMP].combine_chunks()
    ends = times.flatten().to_numpy()[times.offsets.to_numpy()[1:] - 1]
    order = np.argsort(ends, kind="stable")
    table = table.take(order)
    history = interactions_of(table)
    by, num_values = None, 0
    if others:
        values = table[others[0].name].combine_chunks()
        is_list = pa.types.is_list(values.type)
        by = values.flatten().to_numpy() if is_list else values.to_numpy(zero_copy_only=False)
        by = by if is_list else np.repeat(by, np.diff(history.offsets))
        num_values = others[0].num_rows
    longest = data.recipe.max_sequence_length
    sessions = TrainingSessions(
        history.values,
        history.offsets,
        item.num_rows,
        longest,
        ends=None if data.recipe.timestamp is None else ends[order],
        by=by,
        num_values=num_values,
    )
    return counting_model(data.schema, config, longest, fit_scorer(sessions, options))


def train_counting(
    data: Data,
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    *,
    start: Path | None = None,
    plugins: Path | None = None,
) -> dict[str, Any]:
    """Fit a counting model to `data`, write the run and return the facts of its manifest.

    With `start` too it is fitted from scratch, without the counts of that run. Of the `train`
    section it reads only `metric`, by which `tune` compares trials. ConfigError for several
    processes and for the metric `loss`.
    """
    name = model_config.architecture
    if announced_processes().count > 1:
        raise ConfigError(f"{name} is fitted in one process. Start it without torchrun.")
    if train_config.metric == "loss":
        raise ConfigError(f"`train.metric` is loss, and {name} has none. Choose another metric.")
    _note_unread_settings(model_config, train_config)
    if start is not None:
        logger.info("Note: %s counts these sessions alone, and nothing of %s.", name, start)
    fingerprint = run_fingerprint(
        data.path, model_config, train_config, start=start, plugins=plugins
    )
    facts: dict[str, Any] = {}
    with new_artifact(out, "run", facts, fingerprint=fingerprint) as directory:
        begin = time.monotonic()
        model = fit_model(data, model_config)
        seconds = round(time.monotonic() - begin, 1)
        metrics = _valid_metrics(data, model, train_config)
        data.check_unchanged()
        facts |= {
            "seconds": seconds,
            "device": "cpu",
            "processes": 1,
            "table_values": model.num_values,
            "model": model_config.settings(),
            "train": {"metric": train_config.metric},
            TRAINED_ON: data.training_fingerprint,
            **origin_facts(start, plugins),
        }
        if train_config.metric in metrics:
            facts[f"valid_{train_config.metric}"] = metrics[train_config.metric]
        line = {"seconds": seconds, **{f"eval_{n}": value for n, value in metrics.items()}}
        (directory / LOG_FILE).write_text(json.dumps(line) + "\n", encoding="utf-8")
        write_run(directory, data, model, model_config)
        write_training_report(directory, facts, out.resolve().name, data.recipe)
    return facts


def _valid_metrics(data: Data, model: CountingModel, config: TrainConfig) -> dict[str, float]:
    """Metrics of the validation sessions; empty without a target."""
    if not has_targets(data, "valid"):
        return {}
    return validate(
        model,
        evaluation_loader(data.path, "valid", model, EVALUATION_SESSIONS),
        config.metric,
        processes=announced_processes(),
        seed=config.seed,
        positions=data.recipe.target_positions,
        filter_seen=data.recipe.filter_seen,
    )


def _note_unread_settings(model: ModelConfig, train: TrainConfig) -> None:
    """Log the settings of the recipe that a counting model does not read, in one line."""
    unread = [f"model.{name}" for name in model.model_fields_set - {"architecture", "options"}]
    unread += [f"train.{name}" for name in train.model_fields_set - {"metric"}]
    if unread:
        logger.info(
            "Note: %s counts and does not read %s.", model.architecture, ", ".join(sorted(unread))
        )
