"""Warm start: weights of an earlier run for a model whose catalogue may be larger.

Rows of embedding tables are matched by value; all other weights are copied. A row without a source
starts at the mean of the copied rows of its table, or of the items with the same features: a random
vector would have random scores, and a new item has few interactions to correct them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.artifact import read_json
from pipeline.core.columns import FIRST_ITEM, ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted, Vocabulary
from pipeline.data.sessions import read_sessions
from pipeline.model.model import Model
from pipeline.model.model_files import MODEL_FILE
from pipeline.model.run import PROGRAM, Run
from pipeline.model.tasks.item_output import ItemOutput
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import TargetTask
from pipeline.recipe.model import ModelConfig

_TRAINING_SETTINGS = (
    *("dropout", "feature_dropout", "swap_noise", "shared_embedding_noise"),
    *("embedding_deviation", "mlm_probability", "plm_probability", "max_span_length"),
    *("generator_loss_weight", "discriminator_loss_weight", "train_on_last_item_seq_only"),
    *("rank_by", "repeats"),
)
"""Settings of training and of lists, which may differ from those of the source run."""


@dataclass(frozen=True, eq=False)
class SourceCheckpoint:
    """Initial weights of a model."""

    weights: Mapping[str, Tensor]
    """By name in `state_dict`."""
    rows: Mapping[str, NDArray[Any]]
    """By categorical feature, (V,) row in these weights of each index of the new model, -1 for
    none."""

    @classmethod
    def of_run(cls, run: Run, fitted: Fitted, config: ModelConfig) -> Self:
        """Weights of a run, with rows matched to the raw values of `fitted`.

        ConfigError, which names the first difference, unless the run has the architecture, widths
        and features of `config` and `fitted`, and at least one common item.
        """
        described = read_json(run.path / MODEL_FILE)
        if PROGRAM in described:
            raise ConfigError(
                f"{run.path} holds a program, which cannot be trained. Train the model where it is "
                "made, and save it again."
            )
        # settings that an older version lacks have their defaults
        earlier = ModelConfig.from_dict(described["model"], str(run.path / MODEL_FILE))
        _check_settings(run.path, earlier, config)
        length = described["max_sequence_length"]
        for name, of_run, of_data in (
            ("features", feature_descriptions(run.fitted), feature_descriptions(fitted)),
            ("max_sequence_length", length, fitted.recipe.max_sequence_length),
        ):
            if of_run != of_data:
                raise ConfigError(
                    f"{run.path} has {name} {of_run}, the data {of_data}. A warm start needs the "
                    "same; preprocess the new logs with the run's recipe, or leave out --from."
                )
        check_separate_tables(config)
        rows = {
            name: matched_rows(run.fitted.vocabularies[name], vocabulary)
            for name, vocabulary in fitted.vocabularies.items()
        }
        if not (rows[ITEM][FIRST_ITEM:] >= 0).any():
            raise ConfigError(
                f"{run.path} knows none of the {len(fitted.item.values):,} items of the data. Is "
                "it the run of another shop? Leave out --from."
            )
        return cls(run.model.state_dict(), rows)


class _Table(NamedTuple):
    """An embedding table of the model."""

    feature: str
    from_file: bool
    """Whether the table is initialized with vectors of a file."""
    is_trained: bool


def warm_start(model: Model, run: Run, data: Data, config: ModelConfig, new_items: str) -> None:
    """Copy the weights of `run` into a fresh `model` for the catalogue of `data`.

    `new_items` is `TrainConfig.new_items`. ConfigError if the models differ in more than their
    catalogues.
    """
    source = SourceCheckpoint.of_run(run, data.fitted, config)
    features = None
    if new_items == "features":
        columns = item_feature_columns(data.fitted)
        sessions = read_sessions(data.path, "train", [ITEM, *columns])
        features = item_feature_values(sessions, columns, data.fitted.item.num_rows)
    check_shapes(run.path, model, config, source)
    copy_weights(model, config, source, item_features=features)


def check_separate_tables(config: ModelConfig) -> None:
    """ConfigError if features share a table, whose rows belong to several vocabularies."""
    if config.shared_tables:
        raise ConfigError(
            "`model.shared_tables` keeps several features in one table, which cannot get rows for "
            "new values. Leave it out, or do without --from and --windows."
        )


def matched_rows(source: Vocabulary, target: Vocabulary) -> NDArray[Any]:
    """(V,) index in `source` of the raw value of each index of `target`, -1 for none.

    Reserved indices and hash buckets are the same in both.
    """
    values, source_values = target.values, source.values
    if target.type != source.type:  # the logs may differ in the type of a column
        values, source_values = values.cast(pa.string()), source_values.cast(pa.string())
    positions = pc.fill_null(pc.index_in(values, value_set=source_values), -1 - source.first)
    indices = np.asarray(positions.to_numpy(zero_copy_only=False), dtype=np.int64) + source.first
    return np.concatenate([np.arange(target.first), indices])


def item_feature_columns(fitted: Fitted) -> list[str]:
    """Columns of the categorical features of the item, in the order of the recipe."""
    return [feature.columns[0] for feature in fitted.categorical if feature.of == "item"]


def item_feature_values(sessions: pa.Table, columns: list[str], num_rows: int) -> NDArray[Any]:
    """(V, F) first index of each feature of each item in `sessions`, 0 for none."""
    features = np.zeros((num_rows, len(columns)), np.int64)
    items = sessions[ITEM].combine_chunks().flatten().to_numpy()
    for position, name in enumerate(columns):
        values = sessions[name].combine_chunks().flatten().to_numpy()
        has_value = values >= FIRST_ITEM
        rows, first = np.unique(items[has_value], return_index=True)
        features[rows, position] = values[has_value][first]
    return features


@torch.no_grad()
def copy_weights(
    model: Model,
    config: ModelConfig,
    source: SourceCheckpoint,
    *,
    item_features: NDArray[Any] | None = None,
) -> None:
    """Copy the weights of a source into `model`, in place; rows without one are initialized.

    `item_features` (V, F) are for `initialize_new_rows`. Frozen tables with vectors of a file keep
    these vectors.
    """
    tables = _tables(model, config)
    for name, weight in model.state_dict().items():  # shares memory with the model
        values = source.weights[name].to(weight.device)
        table = tables.get(name)
        if table is None:
            weight.copy_(values)
            continue
        if not table.is_trained:
            continue
        rows = torch.from_numpy(source.rows[table.feature]).to(weight.device)
        has_source = rows >= 0
        weight[has_source] = values[rows[has_source]]
        if not table.from_file:
            is_item = table.feature == model.inputs.item
            initialize_new_rows(weight, has_source, item_features if is_item else None)


@torch.no_grad()
def initialize_new_rows(
    weight: Tensor, is_copied: Tensor, features: NDArray[Any] | None = None
) -> None:
    """Set the rows of `weight` (V, D) outside `is_copied` (V,) to means of copied rows, in place.

    The mean is over rows with the same `features` (V, F): with all F equal, else the first F - 1,
    and so on, finally over all rows.
    """
    is_value = torch.arange(len(weight), device=weight.device) >= FIRST_ITEM
    new, old = is_value & ~is_copied, is_value & is_copied
    if not new.any() or not old.any():
        return
    remaining = new.clone()
    for width in range(0 if features is None else features.shape[1], 0, -1):
        assert features is not None  # noqa: S101
        values = torch.from_numpy(features[:, :width]).to(weight.device)
        has_all = (values >= FIRST_ITEM).all(1)
        _, group = values.unique(dim=0, return_inverse=True)
        members = old & has_all
        num_groups = int(group.max()) + 1
        sums = weight.new_zeros(num_groups, weight.size(1), dtype=torch.float64)
        sums.index_add_(0, group[members], weight[members].double())
        counts = torch.bincount(group[members], minlength=num_groups)
        chosen = remaining & has_all & (counts[group] > 0)
        means = sums[group[chosen]] / counts[group[chosen]].unsqueeze(1)
        weight[chosen] = means.to(weight.dtype)
        remaining &= ~chosen
    weight[remaining] = weight[old].double().mean(0).to(weight.dtype)


def check_shapes(run: Path, model: Model, config: ModelConfig, source: SourceCheckpoint) -> None:
    """ConfigError unless the weights of the run fit the model, except for numbers of rows."""
    tables = _tables(model, config)
    expected = {name: _shape(w, name in tables) for name, w in model.state_dict().items()}
    shapes = {name: _shape(w, name in tables) for name, w in source.weights.items()}
    for name in sorted({*shapes, *expected}):
        if shapes.get(name) != expected.get(name):
            raise ConfigError(
                f"{run} has the weight {name} of shape {shapes.get(name)}, the recipe's model "
                f"{expected.get(name)}. A warm start needs the same architecture, widths and "
                "features; change the recipe, or leave out --from."
            )


def _shape(weight: Tensor, is_table: bool) -> tuple[int, ...]:
    return tuple(weight.shape[1:] if is_table else weight.shape)


def _tables(model: Model, config: ModelConfig) -> dict[str, _Table]:
    """Weights with a row per value of a feature, by name in `state_dict`."""
    filled = {vectors.feature for vectors in config.pretrained if vectors.use == "table"}
    owners: dict[int, tuple[str, bool]] = {}
    for head, task in model.tasks_with_heads:
        inputs = head.body.inputs
        owners |= {id(t.weight): (name, name in filled) for name, t in inputs.tables.items()}
        for name in inputs.pretrained_names:
            owners[id(inputs.pretrained_table(name).weight)] = (name, True)
        if isinstance(task, NextItemPredictionTask) and task.output_table is not None:
            owners[id(task.output_table)] = (inputs.item, False)
        elif isinstance(task, TargetTask) and isinstance(task.output, ItemOutput):
            owners[id(task.output.item_bias)] = (inputs.item, False)
    return {
        name: _Table(*owners[id(weight)], is_trained=weight.requires_grad)
        for name, weight in model.named_parameters(remove_duplicate=False)
        if id(weight) in owners
    }


def _check_settings(run: Path, earlier: ModelConfig, config: ModelConfig) -> None:
    """ConfigError for the first setting by which the scores of the models would differ."""
    # paths of files of vectors may differ
    ignored: Any = dict.fromkeys(_TRAINING_SETTINGS, True) | {"pretrained": {"__all__": {"file"}}}
    of_run, of_recipe = (c.model_dump(mode="json", exclude=ignored) for c in (earlier, config))
    for name, value in of_recipe.items():
        if of_run.get(name) != value:
            raise ConfigError(
                f"{run} has `model.{name}: {of_run.get(name)}`, the recipe {value}. A warm start "
                "needs the same architecture, widths and features; change the recipe, or leave "
                "out --from."
            )


def feature_descriptions(fitted: Fitted) -> list[str]:
    """Text of each feature except the item; equal texts mean equal inputs of a model."""
    recipe = fitted.recipe
    meanings = {meaning.pop("name"): meaning for meaning in recipe.feature_meanings}
    descriptions = [
        f"{feature.name} ({', '.join(f'{k}: {v}' for k, v in meanings[feature.name].items())})"
        for feature in recipe.features
    ]
    return [*descriptions, *recipe.time_feature_names]
