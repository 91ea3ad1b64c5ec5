"""`pipeline train`: a data directory in, a run out; `pipeline evaluate`: a run and data in."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core import identity
from pipeline.core.artifact import new_artifact, read_manifest
from pipeline.core.columns import FIRST_ITEM, ITEM, SCHEMA_FILE, SESSIONS_DIRECTORY, TIMESTAMP
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.fitted import Fitted
from pipeline.core.recipe import ModelConfig, TrainConfig
from pipeline.core.schema import Schema
from pipeline.model.build import build_model, load_model, save_model
from pipeline.model.model import Model
from pipeline.train.baselines import BASELINES, rank_by_baselines
from pipeline.train.device import best_device
from pipeline.train.evaluation import Positions, prefixes, rank_targets
from pipeline.train.from_data import from_data
from pipeline.train.loader import SessionLoader, read_sessions
from pipeline.train.metrics import list_metrics, ranking_metrics

if TYPE_CHECKING:
    from transformers import TrainerCallback

LOG_FILE = "metrics.jsonl"
_EVALUATION_SESSIONS = 1024
_POOL_BATCHES = 16
"""Batches whose sessions are sorted by length among each other."""


def train(
    data: Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    *,
    callbacks: "list[TrainerCallback] | None" = None,
) -> dict[str, Any]:
    """Train a model on `data` and write the run to `out`; return the manifest's facts.

    What one of `callbacks` raises ends the training; nothing is written then.
    """
    # Hugging Face's Trainer takes ten seconds to import, which evaluation does without
    from transformers import set_seed

    from pipeline.train.trainer import Trainer

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
            valid_positions=fitted.recipe.target_positions,
            filter_seen=fitted.recipe.filter_seen,
            callbacks=callbacks,
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


def evaluate(
    run: Path,
    data: Path,
    *,
    part: str = "test",
    positions: Positions | None = None,
    cutoffs: tuple[int, ...] = (5, 10, 20),
    baselines: bool = True,
    filter_seen: bool | None = None,
) -> dict[str, Any]:
    """Metrics of a run, and of the baselines, on one part of `data`, over the full catalogue.

    Where `positions` is not given, every position but the first is a target, or the last alone in
    data that were split by leave-one-out; where `filter_seen` is not given, the recipe of the data
    decides whether what came before a target is ranked.
    Returns {"part", "positions", "filter_seen", "targets", "unknown_targets", "catalogue_items",
    "results"} where results maps a model's name to its metrics: those of ranks and those of its
    top-K lists, a list for each target; None for what is not defined, such as the popularity bias
    where training saw none of the targets. ArtifactError if the run was trained on another
    catalogue, or on other features or other statistics of them, than those of `data`.
    """
    read_manifest(run, "run")
    read_manifest(data, "data")
    check_same_preprocessing(run, data)
    recipe = Fitted.read(data).recipe
    positions = positions or recipe.target_positions
    filter_seen = recipe.filter_seen if filter_seen is None else filter_seen
    model = load_model(run).to(best_device())
    longest = model.inputs.max_sequence_length
    assert longest is not None  # noqa: S101
    ranked = rank_targets(
        model,
        _loader(data, part, model, _EVALUATION_SESSIONS),
        positions,
        list_lengths=cutoffs,
        filter_seen=filter_seen,
    )
    if not len(ranked.ranks):
        raise ArtifactError(
            f"{data} has no {part} session of two interactions or more: nothing to predict."
        )
    num_rows = model.inputs.item_table.num_embeddings
    train_sessions = _items(data, "train", by_time=True)
    counts = np.bincount(train_sessions[0], minlength=num_rows)[FIRST_ITEM:]
    rankings = {_name(run): ranked}
    if baselines:
        before = prefixes(*_items(data, part), positions, longest)
        # baselines see the same prefixes and targets as the model
        assert np.array_equal(before.targets, ranked.targets)  # noqa: S101
        seen = prefixes(*_items(data, part), positions, 2**31)[:2] if filter_seen else None
        rankings |= rank_by_baselines(
            *train_sessions, num_rows, *before, list_lengths=cutoffs, seen=seen
        )
    results = {
        name: {
            **ranking_metrics(found.ranks, cutoffs),
            **list_metrics(found.exposure, cutoffs, found.targets, counts),
        }
        for name, found in rankings.items()
    }
    return {
        "part": part,
        "positions": positions,
        "filter_seen": filter_seen,
        "targets": len(ranked.ranks),
        "unknown_targets": int((ranked.targets < FIRST_ITEM).sum()),
        "catalogue_items": num_rows - FIRST_ITEM,
        "results": results,
    }


def check_same_preprocessing(run: Path, data: Path) -> None:
    """ArtifactError unless the indices and numbers of `data` mean what the run learned."""
    learned, found = Fitted.read(run), Fitted.read(data)
    same_items = learned.item.values.equals(found.item.values)
    same = (
        same_items
        and learned.recipe.features == found.recipe.features
        and learned.recipe.timestamp == found.recipe.timestamp
        and learned.recipe.max_sequence_length == found.recipe.max_sequence_length
        and learned.standardisations == found.standardisations
        and learned.vocabularies.keys() == found.vocabularies.keys()
        and all(
            v.values.equals(found.vocabularies[n].values) for n, v in learned.vocabularies.items()
        )
    )
    if not same:
        what = "other features" if same_items else "another catalogue"
        raise ArtifactError(
            f"{run} was trained on {what} than those of {data}. Use the data directory that "
            "it was trained on, or train again."
        )


def _name(run: Path) -> str:
    name = run.resolve().name
    return f"{name} (run)" if name in BASELINES else name


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
    return bool((np.diff(_items(data, part)[1]) > 1).any())


def _items(data: Path, part: str, *, by_time: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Item indices of a part and where its sessions begin, oldest session first if `by_time`."""
    table = read_sessions(data, part, [ITEM, TIMESTAMP])
    if by_time:
        times = table[TIMESTAMP].combine_chunks()
        ends = times.flatten().to_numpy()[times.offsets.to_numpy()[1:] - 1]
        table = table.take(np.argsort(ends, kind="stable"))
    lists = table[ITEM].combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    return lists.flatten().to_numpy(), np.concatenate([[0], np.cumsum(lengths)])
