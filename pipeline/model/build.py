"""Build a model from its config, and save and load its weights."""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.columns import TIMESTAMP
from pipeline.core.errors import ConfigError
from pipeline.data.schema import Schema, Tags
from pipeline.model.architectures import find_architecture
from pipeline.model.architectures.hstu import HSTUEncoder
from pipeline.model.blocks import ParallelBlock, SequentialBlock, TransformerBlock
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.ensemble import Ensemble
from pipeline.model.head import Head, Task
from pipeline.model.inputs.columns import Initializer, merge_multi_valued
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.inputs.pretrained import PretrainedEmbeddings
from pipeline.model.inputs.tables import PretrainedEmbeddingsInitializer
from pipeline.model.inputs.transformations import (
    StochasticSharedEmbeddings,
    StochasticSwapNoise,
    TabularDropout,
    TabularLayerNorm,
)
from pipeline.model.masking import ARGUMENTS
from pipeline.model.mlp import MLPBlock
from pipeline.model.model import Model
from pipeline.model.repeats import Repeats
from pipeline.model.target_labels import Labels, Units
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import (
    BinaryClassificationTask,
    ColumnValues,
    Recency,
    RegressionTask,
    TargetTask,
)
from pipeline.recipe.durations import duration_seconds
from pipeline.recipe.model import ModelConfig, Target, Tower
from pipeline.recipe.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainingStatistics:
    """Values of a model that come from the training data rather than the schema."""

    vectors: dict[int, Tensor] = field(default_factory=dict)
    """(rows, P) vectors of the entries of `pretrained`, by position in the list."""
    item_vectors: dict[int, Tensor] = field(default_factory=dict)
    """(rows, width) initial item vectors of length 1, by width; rows without a vector are 0."""
    item_counts: Tensor | None = None
    """(items,) number of interactions of each item."""
    labels: dict[str, Labels] = field(default_factory=dict)
    """Labels of `targets`, by feature."""
    weights: Tensor | None = None
    """(rows,) weight of each value of the feature that weights interactions."""
    elapsed: Units | None = None
    """Units of the feature `elapsed`."""
    newest: int | None = None
    """Time of the newest training interaction, microseconds since 1970."""


@torch.inference_mode(False)  # weights must be trainable even if inference mode is on
def build_model(
    schema: Schema,
    config: ModelConfig,
    max_sequence_length: int,
    train: TrainConfig | None = None,
    statistics: TrainingStatistics | None = None,
) -> Model:
    """Build the model of a recipe with fresh weights; `max_sequence_length` is L.

    `train` and `statistics` define the loss; a model that only predicts needs neither. ConfigError
    for a counting model, which is fitted to sessions.
    """
    if config.counting is not None:
        raise ConfigError(
            f"{config.architecture} is fitted to sessions, as `pipeline train` does, and has no "
            "weights to begin with."
        )
    statistics = statistics or TrainingStatistics()
    heads = [
        _head(schema, member, max_sequence_length, train or TrainConfig(), statistics, number)
        for number, member in enumerate(config.each_member)
    ]
    model = Ensemble(*heads) if len(heads) > 1 else Model(*heads, rank_by=config.rank_by)
    if config.repeats:
        model.repeats = Repeats.of(config.repeats, max_sequence_length, model.num_rows)
    return model


def _head(
    schema: Schema,
    config: ModelConfig,
    max_sequence_length: int,
    train: TrainConfig,
    statistics: TrainingStatistics,
    number: int,
) -> Head:
    """Build the head of a member of the recipe; `number` is its position among the members."""
    vectors = statistics.item_vectors.get(config.item_width)
    if config.item_vectors == "random":
        vectors = None
    inputs = build_inputs(schema, config, max_sequence_length, statistics.vectors, vectors)
    name = f"next-item-{number + 1}" if number else "next-item"
    # no member reads the targets, and the first one learns them
    targets = () if number else config.targets
    tasks: list[Task] = [_target_task(schema, target, statistics) for target in targets]
    task_weights = [target.weight for target in targets]
    if config.next_item:
        tasks = [_next_item_task(name, config, train, statistics), *tasks]
        task_weights = [1.0, *task_weights]
    body = SequentialBlock(inputs, *_blocks(config, inputs, max_sequence_length))
    for module in body.modules():
        if isinstance(module, HSTUEncoder) and statistics.elapsed is not None:
            module.set_units(statistics.elapsed.mean, statistics.elapsed.deviation)
    return Head(body, tasks, task_weights=task_weights, loss_reduction="sum")


def _next_item_task(
    name: str, config: ModelConfig, train: TrainConfig, statistics: TrainingStatistics
) -> NextItemPredictionTask:
    return NextItemPredictionTask(
        task_name=name,
        loss=train.loss,
        task_block=MLPBlock([*config.task_mlp]) if config.task_mlp else None,
        weight_tying=config.weight_tying,
        softmax_temperature=config.temperature,
        normalize=config.normalize,
        item_dropout=config.item_dropout,
        label_smoothing=train.label_smoothing,
        negatives=train.negatives,
        num_negatives=train.num_negatives,
        shared_negatives=train.shared_negatives,
        item_counts=statistics.item_counts,
        gbce_t=train.gbce_t,
        regularization=train.regularization,
        recompute=train.recompute,
        weights=_weights(train, statistics),
    )


def _target_task(schema: Schema, target: Target, statistics: TrainingStatistics) -> TargetTask:
    name, labels = target.feature, statistics.labels.get(target.feature)
    of_session = target.per_item or not schema[name].is_list
    options: dict[str, Any] = {
        "task_name": name,
        "summary_type": target.summary if of_session else None,
        "per_item": target.per_item,
    }
    if target.per_item and not schema[name].is_list:
        raise ConfigError(
            f"`model.targets`: {name!r} is one value of a session; `per_item` is for a feature of "
            "interactions."
        )
    if target.kind == "binary":
        table = None if isinstance(labels, Units) else labels
        return BinaryClassificationTask(ColumnValues(name, table), **options)
    units = labels if isinstance(labels, Units) else Units()
    return RegressionTask(name, loss=target.loss, units=units, **options)


def _weights(train: TrainConfig, statistics: TrainingStatistics) -> ColumnValues | Recency | None:
    """Weights of the interactions as targets."""
    by_value = None
    if train.weights is not None:
        by_value = ColumnValues(train.weights.feature, statistics.weights)
    if train.half_life is None or statistics.newest is None:
        return by_value
    return Recency(
        TIMESTAMP,
        newest=statistics.newest,
        half_life=duration_seconds(train.half_life, "`half_life`") * 1e6,
        others=by_value,
    )


def _blocks(config: ModelConfig, inputs: TabularSequenceFeatures, longest: int) -> list[nn.Module]:
    masking = inputs.masking
    assert masking is not None  # noqa: S101
    blocks: list[nn.Module] = []
    width = inputs.output_size
    if config.mlp:
        blocks.append(MLPBlock([*config.mlp]))
        width = config.mlp[-1]
    if width != config.d_model:
        blocks.append(nn.Linear(width, config.d_model))
    positions = longest + masking.extra_positions
    encoders: list[ModelConfig | Tower] = [config, *config.towers]
    towers = [
        TransformerBlock(_encoder(config, encoder, positions), masking=masking)
        for encoder in encoders
    ]
    blocks.append(ParallelBlock(*towers) if config.towers else towers[0])
    return blocks


def build_inputs(
    schema: Schema,
    config: ModelConfig,
    longest: int,
    vectors: dict[int, Tensor],
    item_vectors: Tensor | None = None,
) -> TabularSequenceFeatures:
    """Build the input block of the recipe.

    `vectors` (rows, P) are those of each entry of `pretrained` by its position, `item_vectors`
    (rows, width) initial item vectors. ConfigError if vectors are missing or columns unknown.
    """
    item = schema.item_id.name
    features, _ = merge_multi_valued(input_features(schema, config))
    for name in (*config.embedding_dims, *(t for group in config.shared_tables for t in group)):
        features.select_by_name(name)
    initializers = _initializers(features, config, vectors, item_vectors)
    pretrained = {
        entry.feature: PretrainedEmbeddings(
            vectors[position],
            trainable=entry.trainable,
            output_dim=entry.output_dim,
            normalizer="layer-norm" if entry.layer_norm else None,
        )
        for position, entry in enumerate(config.pretrained)
        if entry.use == "input"
    }
    dims = {**config.embedding_dims}
    if not isinstance(initializers.get(item), PretrainedEmbeddingsInitializer):
        dims.setdefault(item, config.item_width)
    summed = config.aggregation != "concat"
    swap, shared = config.swap_noise, config.shared_embedding_noise
    return TabularSequenceFeatures.from_schema(
        input_features(schema, config),
        max_sequence_length=longest,
        embedding_dims=dims,
        embedding_dim_default=config.d_model if summed else config.embedding_dim,
        infer_embedding_sizes=config.infer_embedding_sizes,
        infer_embedding_sizes_multiplier=config.infer_embedding_sizes_multiplier,
        shared_tables=[list(group) for group in config.shared_tables],
        embeddings_initializers=initializers,
        pretrained_embeddings=pretrained,
        continuous_projection=config.continuous_projection,
        continuous_soft_embeddings=config.continuous_soft_embeddings,
        soft_embedding_cardinality_default=config.soft_embedding_cardinality,
        soft_embedding_dim_default=config.soft_embedding_dim,
        pre=[
            *([StochasticSwapNoise(replacement_prob=swap)] if swap else []),
            *([StochasticSharedEmbeddings(replacement_prob=shared)] if shared else []),
        ],
        post=[
            *([TabularLayerNorm()] if config.feature_layer_norm else []),
            *([TabularDropout(config.feature_dropout)] if config.feature_dropout else []),
        ],
        aggregation=config.aggregation,
        # an item embedding alone needs no layer before the encoder
        d_output=config.d_model if len(features) > 1 or pretrained else None,
        masking=config.masking,
        **{name: getattr(config, name) for name in ARGUMENTS[config.masking]},
    )


def _initializers(
    features: Schema, config: ModelConfig, vectors: dict[int, Tensor], item_vectors: Tensor | None
) -> dict[str, Initializer]:
    """Initializer of each table, by feature. ConfigError if vectors of a file are missing."""
    deviation = config.embedding_deviation
    # one object, so that features that share a table have the same initializer
    normal: Initializer = functools.partial(nn.init.normal_, std=deviation)
    initializers = dict.fromkeys(features.select_by_tag(Tags.CATEGORICAL).column_names, normal)
    if item_vectors is not None:
        initializers[features.item_id.name] = functools.partial(
            fill_with_vectors, vectors=item_vectors, deviation=deviation
        )
    for position, entry in enumerate(config.pretrained):
        if position not in vectors:
            raise ConfigError(f"The vectors of {entry.file} were not read.")
        if entry.use == "table":
            initializers[entry.feature] = PretrainedEmbeddingsInitializer(
                vectors[position], trainable=entry.trainable
            )
    return initializers


@torch.no_grad()
def fill_with_vectors(table: Tensor, vectors: Tensor, deviation: float) -> None:
    """Fill a table (rows, width) with `vectors`, scaled to the expected length of random rows.

    Rows whose vector is 0 stay random, with standard `deviation`.
    """
    nn.init.normal_(table, std=deviation)
    present = vectors.any(1)
    table[present] = vectors[present].to(table) * deviation * table.size(1) ** 0.5


def input_features(schema: Schema, config: ModelConfig) -> Schema:
    """Columns that the model reads. ConfigError if the schema lacks a target."""
    targets = [target.feature for target in config.targets]
    schema.select_by_name(*targets)
    features = schema.select_by_tag(Tags.CATEGORICAL, Tags.CONTINUOUS)
    return Schema(tuple(column for column in features if column.name not in targets))


def _encoder(config: ModelConfig, encoder: ModelConfig | Tower, positions: int) -> EncoderConfig:
    shape: dict[str, Any] = {"model_type": encoder.model_type} if encoder.model_type else {}
    return find_architecture(encoder.architecture)(
        d_model=config.d_model,
        n_head=encoder.n_head,
        n_layer=encoder.n_layer,
        total_seq_length=positions,
        hidden_act=config.hidden_act,
        initializer_range=0.02,
        layer_norm_eps=1e-5,
        dropout=config.dropout,
        options=encoder.options,
        **shape,
    )
