"""Training statistics: values that a model needs from its data besides the schema, such as item
counts."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.core.columns import ELAPSED, FIRST_ITEM, ITEM, TIMESTAMP
from pipeline.core.errors import ConfigError, InputWarning
from pipeline.data.fitted import Fitted
from pipeline.data.sessions import read_sessions
from pipeline.model.build import TrainingStatistics
from pipeline.model.inputs.vectors import read_vectors
from pipeline.model.target_labels import Units, target_labels, value_table, vocabulary_values
from pipeline.recipe.choices import FULL_LOSSES
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.item_vectors import co_visitation_vectors


def training_statistics(
    data: Path, fitted: Fitted, model: ModelConfig, train: TrainConfig
) -> TrainingStatistics:
    """Compute the statistics of the settings. ConfigError or DataError if the data lack them."""
    statistics = TrainingStatistics(
        vectors=_pretrained_vectors(fitted, model),
        labels=target_labels(fitted, model),
        weights=_weights(fitted, train),
        elapsed=_elapsed(fitted),
    )

    def column(name: str) -> pa.Array:
        return read_sessions(data, "train", [name])[name].combine_chunks()

    for target in model.targets:
        if target.kind == "regression":
            _warn_of_missing(target.feature, column(target.feature))
    return with_session_statistics(statistics, column, fitted, model, train)


def with_session_statistics(
    statistics: TrainingStatistics,
    column: Callable[[str], pa.ListArray],
    fitted: Fitted,
    model: ModelConfig,
    train: TrainConfig,
) -> TrainingStatistics:
    """Add the statistics of sessions; `column` reads a column of the sessions by its name."""
    counts, vectors, newest = None, {}, None
    num_rows = fitted.item.num_rows
    if train.loss not in FULL_LOSSES and train.negatives in ("popularity", "in-batch"):
        items = column(ITEM).flatten().to_numpy()
        counts = torch.from_numpy(np.bincount(items, minlength=num_rows)[FIRST_ITEM:])
        if train.negatives == "popularity" and train.popularity_exponent != 1:
            counts = counts.double() ** train.popularity_exponent
    # the members that are initialized with co-visitation vectors
    widths = {m.item_width for m in model.each_member if m.item_vectors == "co-visitation"}
    if widths:
        sessions = column(ITEM)
        ragged = sessions.flatten().to_numpy(), sessions.offsets.to_numpy()
        vectors = {
            width: torch.from_numpy(co_visitation_vectors(*ragged, num_rows, width, train.seed))
            for width in sorted(widths)
        }
    if train.half_life is not None:
        if fitted.recipe.timestamp is None:
            raise ConfigError(
                "`train.half_life` needs to know when interactions were, and the recipe of the "
                "data has no `timestamp`. Add one and preprocess again, or leave it out."
            )
        newest = int(column(TIMESTAMP).flatten().to_numpy().max())
    return replace(statistics, item_counts=counts, item_vectors=vectors, newest=newest)


def _elapsed(fitted: Fitted) -> Units | None:
    statistics = fitted.standardizations.get(ELAPSED)
    if statistics is None:
        return None
    return Units(statistics.mean, statistics.deviation or 1.0, log=True)


def _warn_of_missing(name: str, values: pa.Array) -> None:
    """Warn of missing numbers of a target, which preprocessing set to the mean."""
    numbers = (values.flatten() if pa.types.is_list(values.type) else values).to_numpy()
    if missing := int((numbers == 0).sum()):
        warnings.warn(
            f"`model.targets`: {name!r} is missing, or exactly its mean, in {missing:,} of "
            f"{len(numbers):,} training targets, which are learned as the mean. Leave such rows "
            "out of the log if they are missing.",
            InputWarning,
            stacklevel=2,
        )


def _pretrained_vectors(fitted: Fitted, model: ModelConfig) -> dict[int, Tensor]:
    """Vectors (V, P) of each entry of `model.pretrained`, by its index in the list."""
    vectors = {}
    for index, pretrained in enumerate(model.pretrained):
        ids = vocabulary_values(fitted, pretrained.feature, "`model.pretrained`")
        rows, _ = read_vectors(Path(pretrained.file), ids)
        buckets = fitted.vocabularies[pretrained.feature].hash_buckets
        if buckets:  # hash buckets have the mean of all vectors
            mean = rows[FIRST_ITEM:].mean(0, keepdim=True).expand(buckets, -1)
            rows = torch.cat([rows[:FIRST_ITEM], mean, rows[FIRST_ITEM:]])
        vectors[index] = rows
    return vectors


def _weights(fitted: Fitted, train: TrainConfig) -> Tensor | None:
    """(V,) weight of a target by the value of the feature in `train.weights`."""
    weights = train.weights
    if weights is None:
        return None
    table = value_table(fitted, weights.feature, weights.values, weights.default, "`train.weights`")
    # interactions have the values of the vocabulary, and index 1 or 2 only where that is short
    if not table[fitted.vocabularies[weights.feature].first :].any():
        raise ConfigError(
            f"`train.weights`: every value of {weights.feature!r} in training has weight 0, so "
            f"nothing would be learned. Give one of {', '.join(map(str, weights.values))} a weight "
            "above 0."
        )
    return table
