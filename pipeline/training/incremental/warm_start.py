"""Weights of an earlier model as the beginning of another one, whose catalogue may be larger.

Rows of embedding tables go where their values stand now, all other weights stay as they are. A
value that the earlier model did not know begins at the mean of the rows that it did know, or an
item at the mean of those with the same features: a random vector would be scored by chance, and
training has few interactions of a new item to move it by.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.core.artifact import read_json, read_manifest
from pipeline.core.columns import FIRST_ITEM, ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.fitted import Fitted, Vocabulary
from pipeline.data.loader import read_sessions
from pipeline.model.build import MODEL_FILE, load_model
from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.recipe.features import (
    BucketFeature,
    CategoryFeature,
    Feature,
    NumberFeature,
    OperatorFeature,
    TargetEncodedFeature,
)
from pipeline.recipe.model import ModelConfig

NewItems = Literal["mean", "features"]

_MAY_DIFFER = (
    *("dropout", "feature_dropout", "swap_noise", "shared_embedding_noise"),
    *("embedding_deviation", "mlm_probability", "plm_probability", "max_span_length"),
    *("generator_loss_weight", "discriminator_loss_weight", "train_on_last_item_seq_only"),
)
"""Settings of the model that training alone looks at: the same weights give the same scores."""


class Earlier(NamedTuple):
    """What a model begins from."""

    weights: Mapping[str, Tensor]
    """By their names in `state_dict`."""
    rows: Mapping[str, np.ndarray]
    """By categorical feature, for each index of the data the row of its value; -1: it has none."""


class _Table(NamedTuple):
    feature: str
    from_file: bool
    """Its first weights are vectors that were learned elsewhere."""
    learned: bool
    """Training moves it."""


def begin_from(
    model: Model,
    start: Path,
    data: Path,
    fitted: Fitted,
    config: ModelConfig,
    new_items: NewItems,
) -> None:
    """Put the weights of the run `start` into a fresh `model` of the catalogue of `fitted`.

    ConfigError where the two models differ in more than their catalogues.
    """
    earlier = read_earlier(start, fitted, config)
    alike = None
    if new_items == "features":
        names = item_features(fitted)
        table = read_sessions(data, "train", [ITEM, *names])
        alike = features_of_items(table, names, fitted.item.num_rows)
    check_shapes(start, model, config, earlier)
    carry_over(model, config, earlier, alike=alike)


def read_earlier(start: Path, fitted: Fitted, config: ModelConfig) -> Earlier:
    """Weights of a run, and where the values of `fitted` stand in them, matched by raw values.

    ConfigError, which names the first difference, unless the run is of the same architecture,
    widths and features, and knows an item.
    """
    read_manifest(start, "run")
    described = read_json(start / MODEL_FILE)
    learned = Fitted.read(start)
    # what an older version did not know has its default
    before = ModelConfig.from_dict(described["model"], str(start / MODEL_FILE))
    found, wanted = (_settings(c.model_dump(mode="json")) for c in (before, config))
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{start} has `model.{name}: {found.get(name)}`, the recipe {value}. A warm start "
                "needs the same architecture, widths and features; change the recipe, or leave "
                "out --from."
            )
    for what, theirs, ours in (
        ("features", _features(learned), _features(fitted)),
        ("max_sequence_length", described["max_sequence_length"],
         fitted.recipe.max_sequence_length),
    ):  # fmt: skip
        if theirs != ours:
            raise ConfigError(
                f"{start} has {what} {theirs}, the data {ours}. A warm start needs the same; "
                "preprocess the new logs with the run's recipe, or leave out --from."
            )
    check_separate_tables(config)
    rows = {
        name: matched_rows(learned.vocabularies[name], vocabulary)
        for name, vocabulary in fitted.vocabularies.items()
    }
    if not (rows[ITEM][FIRST_ITEM:] >= 0).any():
        raise ConfigError(
            f"{start} knows none of the {len(fitted.item.values):,} items of the data. Is it the "
            "run of another shop? Leave out --from."
        )
    return Earlier(load_model(start).state_dict(), rows)


def check_separate_tables(config: ModelConfig) -> None:
    """ConfigError where features share a table, whose rows belong to several vocabularies."""
    if config.shared_tables:
        raise ConfigError(
            "`model.shared_tables` keeps several features in one table, which cannot get rows for "
            "new values. Leave it out, or do without --from and --windows."
        )


def matched_rows(learned: Vocabulary, found: Vocabulary) -> np.ndarray:
    """(V,) for each index of `found`, that of the same raw value in `learned`, or -1.

    The reserved indices are the same everywhere, and so are hash buckets, of which both have as
    many.
    """
    values, known = found.values, learned.values
    if found.type != learned.type:  # a log may give as text what another gives as a number
        values, known = values.cast(pa.string()), known.cast(pa.string())
    places = pc.fill_null(pc.index_in(values, value_set=known), -1 - learned.first)
    items = np.asarray(places.to_numpy(zero_copy_only=False), dtype=np.int64) + learned.first
    return np.concatenate([np.arange(found.first), items])


def item_features(fitted: Fitted) -> list[str]:
    """Columns of categorical features that describe the item, in the order of the recipe."""
    return [feature.columns[0] for feature in fitted.categorical if feature.of == "item"]


def features_of_items(sessions: pa.Table, names: list[str], num_rows: int) -> np.ndarray:
    """(V, F) index of each feature of each item where it first is known in `sessions`, else 0."""
    found = np.zeros((num_rows, len(names)), np.int64)
    items = _flat(sessions, ITEM)
    for place, name in enumerate(names):
        values = _flat(sessions, name)
        known = values >= FIRST_ITEM
        which, first = np.unique(items[known], return_index=True)
        found[which, place] = values[known][first]
    return found


@torch.no_grad()
def carry_over(
    model: Model, config: ModelConfig, earlier: Earlier, *, alike: np.ndarray | None = None
) -> None:
    """Put the weights of an `Earlier` into `model`, in place; its `rows` are those of the model.

    A row that is new begins at the mean of the known rows of its table; one of an item, where
    `alike` (V, F) has its features, at the mean of the known items with the same ones: with all F
    the same, else with the first F - 1, and so on. Tables of vectors from files keep those.
    """
    tables = _tables(model, config)
    for name, weight in model.state_dict().items():  # they share the memory of the model's
        before = earlier.weights[name].to(weight.device)
        table = tables.get(name)
        if table is None:
            weight.copy_(before)
            continue
        if not table.learned:
            continue  # the file's vectors of today
        rows = torch.from_numpy(earlier.rows[table.feature]).to(weight.device)
        known = rows >= 0
        weight[known] = before[rows[known]]
        if not table.from_file:
            begin_new_rows(weight, known, alike if table.feature == model.inputs.item else None)


@torch.no_grad()
def begin_new_rows(weight: Tensor, known: Tensor, alike: np.ndarray | None = None) -> None:
    """(V, d) with (V,) bool: fill in place the rows that are not known; see `carry_over`."""
    is_value = torch.arange(len(weight), device=weight.device) >= FIRST_ITEM
    new, old = is_value & ~known, is_value & known
    if not new.any() or not old.any():
        return
    todo = new.clone()
    for width in range(0 if alike is None else alike.shape[1], 0, -1):
        assert alike is not None  # noqa: S101
        features = torch.from_numpy(alike[:, :width]).to(weight.device)
        told = (features >= FIRST_ITEM).all(1)
        _, group = features.unique(dim=0, return_inverse=True)
        members = old & told
        num_groups = int(group.max()) + 1
        sums = weight.new_zeros(num_groups, weight.size(1), dtype=torch.float64)
        sums.index_add_(0, group[members], weight[members].double())
        counts = torch.bincount(group[members], minlength=num_groups)
        chosen = todo & told & (counts[group] > 0)
        means = sums[group[chosen]] / counts[group[chosen]].unsqueeze(1)
        weight[chosen] = means.to(weight.dtype)
        todo &= ~chosen
    weight[todo] = weight[old].double().mean(0).to(weight.dtype)


def check_shapes(start: Path, model: Model, config: ModelConfig, earlier: Earlier) -> None:
    """ConfigError unless the weights of the run fit the model, rows of its tables apart."""
    tables, found = _tables(model, config), model.state_dict()
    shapes = {name: _width(weight, name in tables) for name, weight in found.items()}
    before = {name: _width(weight, name in tables) for name, weight in earlier.weights.items()}
    for name in sorted({*shapes, *before}):
        if shapes.get(name) != before.get(name):
            raise ConfigError(
                f"{start} has the weight {name} of shape {before.get(name)}, the recipe's model "
                f"{shapes.get(name)}. A warm start needs the same architecture, widths and "
                "features; change the recipe, or leave out --from."
            )


def _width(weight: Tensor, is_table: bool) -> tuple[int, ...]:
    return tuple(weight.shape[1:] if is_table else weight.shape)


def _tables(model: Model, config: ModelConfig) -> dict[str, _Table]:
    """Weights with a row for each value of a feature, by their names in `state_dict`."""
    filled = {vectors.feature for vectors in config.pretrained if vectors.use == "table"}
    owners: dict[int, tuple[str, bool]] = {}
    for head, task in model.tasks_with_heads:
        inputs = head.body.inputs
        owners |= {id(t.weight): (name, name in filled) for name, t in inputs.tables.items()}
        for name in inputs.pretrained_names:
            owners[id(inputs.pretrained_table(name).weight)] = (name, True)
        if isinstance(task, NextItemPredictionTask) and task.output_table is not None:
            owners[id(task.output_table)] = (inputs.item, False)
    return {
        name: _Table(*owners[id(weight)], learned=weight.requires_grad)
        for name, weight in model.named_parameters(remove_duplicate=False)
        if id(weight) in owners
    }


def _settings(model: Mapping[str, object]) -> dict[str, object]:
    """Those that the scores depend on; the place of a file of vectors is none."""
    kept = {name: value for name, value in model.items() if name not in _MAY_DIFFER}
    pretrained = kept.get("pretrained")
    if isinstance(pretrained, list):
        kept["pretrained"] = [
            {key: value for key, value in entry.items() if key != "file"} for entry in pretrained
        ]
    return kept


def _features(fitted: Fitted) -> list[str]:
    """Descriptions of the features that the model reads beside the item."""
    return [*map(_description, fitted.recipe.features), *fitted.recipe.time_feature_names]


def _description(feature: Feature) -> str:
    log = "log " if isinstance(feature, NumberFeature) and feature.log else ""
    parts = [f"{log}{feature.kind} of {feature.of}"]
    if isinstance(feature, CategoryFeature) and feature.values_per_interaction > 1:
        parts.append(f"{feature.values_per_interaction} values")
    if isinstance(feature, CategoryFeature) and feature.hash_buckets:
        parts.append(f"{feature.hash_buckets} hash buckets")
    if isinstance(feature, BucketFeature):
        parts.append(f"buckets {list(feature.buckets)}")
    if isinstance(feature, OperatorFeature):
        parts.append(f"by operator {feature.operator}")
    if isinstance(feature, TargetEncodedFeature):
        parts.append(f"mean of {feature.mean_of}")
        parts.append(f"smoothing {feature.smoothing:g}, {feature.folds} folds")
    return f"{feature.name} ({', '.join(parts)})"


def _flat(sessions: pa.Table, name: str) -> np.ndarray:
    values: np.ndarray = sessions[name].combine_chunks().flatten().to_numpy()
    return values
