"""What a model takes from its training data beside the schema: vectors, counts, weights."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM, ITEM, TIMESTAMP
from pipeline.core.errors import ConfigError
from pipeline.data.fitted import Fitted
from pipeline.data.loader import read_sessions
from pipeline.model.build import FromData
from pipeline.model.inputs.vectors import read_vectors
from pipeline.recipe.choices import FULL_LOSSES
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.item_vectors import co_visitation_vectors


def from_data(data: Path, fitted: Fitted, model: ModelConfig, train: TrainConfig) -> FromData:
    """Read what the settings ask for. ConfigError or DataError for what is not there."""
    vectors = {}
    for place, pretrained in enumerate(model.pretrained):
        ids = _values(fitted, pretrained.feature, "`model.pretrained`")
        found, _ = read_vectors(Path(pretrained.file), ids)
        buckets = fitted.vocabularies[pretrained.feature].hash_buckets
        if buckets:  # what has no index of its own has no vector of its own
            mean = found[FIRST_ITEM:].mean(0, keepdim=True).expand(buckets, -1)
            found = torch.cat([found[:FIRST_ITEM], mean, found[FIRST_ITEM:]])
        vectors[place] = found
    positives = {}
    for target in model.targets:
        kinds = {feature.name: feature.kind for feature in fitted.recipe.features}
        if target.kind == "binary":
            chosen = dict.fromkeys(target.positive, 1.0)
            positives[target.feature] = _table(fitted, target.feature, chosen, 0.0, "a target")
        elif kinds.get(target.feature) == "categorical":
            raise ConfigError(
                f"`model.targets`: {target.feature!r} is categorical, so it cannot be a regression "
                "target. Choose a continuous feature, or kind: binary."
            )
    weights = None
    if train.weights is not None:
        weights = _table(
            fitted,
            train.weights.feature,
            train.weights.values,
            train.weights.default,
            "`train.weights`",
        )
    counts = None
    if train.loss not in FULL_LOSSES and train.negatives in ("popularity", "in-batch"):
        counts = torch.from_numpy(item_counts(data, fitted.item.num_rows))
    return FromData(
        vectors=vectors,
        item_vectors=_item_vectors(data, fitted, model, train),
        item_counts=counts,
        positives=positives,
        weights=weights,
        newest=None if train.half_life is None else _newest(data, fitted),
    )


def _newest(data: Path, fitted: Fitted) -> int:
    """Microseconds since 1970 of the newest training interaction. ConfigError without times."""
    if fitted.recipe.timestamp is None:
        raise ConfigError(
            "`train.half_life` needs to know when interactions were, and the recipe of the data "
            "has no `timestamp`. Add one and preprocess again, or leave it out."
        )
    times = read_sessions(data, "train", [TIMESTAMP])[TIMESTAMP].combine_chunks()
    return int(times.flatten().to_numpy().max())


def item_counts(data: Path, num_rows: int) -> np.ndarray:
    """(items,) interactions of each item in the training sessions."""
    indices = read_sessions(data, "train", [ITEM])[ITEM].combine_chunks().flatten().to_numpy()
    return np.bincount(indices, minlength=num_rows)[FIRST_ITEM:].astype(np.int64)


def _item_vectors(
    data: Path, fitted: Fitted, model: ModelConfig, train: TrainConfig
) -> dict[int, Tensor]:
    """(rows, width) to begin with, by the widths of those members that do not begin randomly."""
    widths = {m.item_width for m in model.each_member if m.item_vectors == "co-visitation"}
    if not widths:
        return {}
    sessions = read_sessions(data, "train", [ITEM])[ITEM].combine_chunks()
    values, offsets = sessions.flatten().to_numpy(), sessions.offsets.to_numpy()
    rows = fitted.item.num_rows
    return {
        width: torch.from_numpy(co_visitation_vectors(values, offsets, rows, width, train.seed))
        for width in sorted(widths)
    }


def _values(fitted: Fitted, feature: str, where: str) -> list[object]:
    if feature not in fitted.vocabularies:
        known = ", ".join(fitted.vocabularies)
        raise ConfigError(
            f"{where} names {feature!r}, which is no categorical feature of the data. These are: "
            f"{known}."
        )
    values: list[object] = fitted.vocabularies[feature].values.to_pylist()
    return values


def _table(
    fitted: Fitted, feature: str, numbers: dict[str | int | bool, float], other: float, where: str
) -> Tensor:
    """(rows,) the number of each value of a categorical feature, by its index."""
    values = _values(fitted, feature, where)
    first = fitted.vocabularies[feature].first
    if any(f.name == feature and len(f.columns) > 1 for f in fitted.recipe.features):
        raise ConfigError(f"{where} names {feature!r}, which has several values an interaction.")
    places = {str(value): place for place, value in enumerate(values)}
    table = torch.full((first + len(values),), other)
    for value, number in numbers.items():
        place = places.get(_text(value))
        if place is None:
            raise ConfigError(
                f"{where}: {feature!r} never is {value!r} in the training data. It is: "
                f"{_some(values)}."
            )
        table[first + place] = number
    return table


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _some(values: Iterable[object], most: int = 10) -> str:
    words = [str(value) for value in values]
    return ", ".join(words[:most]) + (" and others" if len(words) > most else "")
