"""`pipeline train`: a data directory in, a run out."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import identity
from pipeline.core.allocator import keep_heap
from pipeline.core.artifact import new_artifact, read_manifest
from pipeline.core.columns import SCHEMA_FILE, SESSIONS_DIRECTORY
from pipeline.core.errors import ConfigError
from pipeline.core.fitted import Fitted
from pipeline.core.recipe import ModelConfig, TrainConfig
from pipeline.core.schema import Schema
from pipeline.model.build import build_model, save_model
from pipeline.model.model import Model
from pipeline.train.from_data import from_data
from pipeline.train.interactions import read_interactions
from pipeline.train.loader import SessionLoader

LOG_FILE = "metrics.jsonl"
_EVALUATION_SESSIONS = 1024
_POOL_BATCHES = 16
"""Batches whose sessions are sorted by length among each other."""


def train(
    data: Path, model_config: ModelConfig, train_config: TrainConfig, out: Path
) -> dict[str, Any]:
    """Train a model on `data` and write the run to `out`; return the manifest's facts."""
    # Hugging Face's Trainer takes ten seconds to import, which evaluation does without
    from transformers import set_seed

    from pipeline.train.trainer import Trainer

    keep_heap()
    read_manifest(data, "data")
    schema = Schema.from_json(data / SCHEMA_FILE)
    fitted = Fitted.read(data)
    known = from_data(data, fitted, model_config, train_config)
    made_from = identity.of_run(data, model_config, train_config)
    longest = fitted.recipe.max_sequence_length
    facts: dict[str, Any] = {}
    with new_artifact(out, "run", facts, made_from=made_from) as directory:
        set_seed(train_config.seed)
        model = build_model(schema, model_config, longest, train_config, known)
        loaders = {
            "train": _loader(
                data,
                "train",
                model,
                _POOL_BATCHES * train_config.batch_size,
                model.training_columns,
                train_config.seed,
            )
        }
        if _has_targets(data, "valid"):
            loaders["valid"] = _loader(data, "valid", model, _EVALUATION_SESSIONS)
        trainer = Trainer(
            model,
            train_config,
            train_loader=loaders["train"],
            valid_loader=loaders.get("valid"),
            log_path=directory / LOG_FILE,
        )
        begin = time.monotonic()
        result = trainer.train()
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise ConfigError(
                "Training diverged: weights are not finite. Lower `train.learning_rate`, or raise "
                "`model.temperature`."
            )
        facts.update(
            seconds=round(time.monotonic() - begin, 1),
            device=str(trainer.args.device),
            steps=result.global_step,
            epochs=trainer.state.epoch,
            train_loss=result.training_loss,
            parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            model=model_config.model_dump(mode="json"),
            train=train_config.model_dump(mode="json"),
        )
        if trainer.best is not None:
            facts["best_epoch"] = trainer.best.epoch
            facts[f"valid_{train_config.metric}"] = trainer.best.value
        save_model(directory, model, schema, model_config, longest)
        # a run serves and evaluates without the data it came from
        fitted.write(directory)
        (directory / SCHEMA_FILE).write_bytes((data / SCHEMA_FILE).read_bytes())
    return facts


def _loader(
    data: Path,
    part: str,
    model: Model,
    batch_size: int,
    columns: list[str] | None = None,
    seed: int | None = None,
) -> SessionLoader:
    return SessionLoader(
        data,
        part,
        item=model.inputs.item,
        features=columns or model.inputs.feature_names,
        batch_size=batch_size,
        shuffle=seed is not None,
        seed=seed or 0,
    )


def _has_targets(data: Path, part: str) -> bool:
    """Whether a part is there and holds a session of two interactions."""
    if not (data / SESSIONS_DIRECTORY / part).is_dir():
        return False
    return bool((np.diff(read_interactions(data, part).offsets) > 1).any())
