"""A model from its config, and its weights to and from disk, without running anything."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.core.artifact import read_json, write_json
from pipeline.core.columns import TIMESTAMP
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.schema import Schema, Tags
from pipeline.model.architectures import find_architecture
from pipeline.model.blocks import ParallelBlock, SequentialBlock, TransformerBlock
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.ensemble import Ensemble
from pipeline.model.head import Head, Task
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.inputs.pretrained import PretrainedEmbeddings, PretrainedEmbeddingsInitializer
from pipeline.model.inputs.selection import together
from pipeline.model.inputs.transformations import (
    StochasticSharedEmbeddings,
    StochasticSwapNoise,
    TabularDropout,
    TabularLayerNorm,
)
from pipeline.model.masking import ARGUMENTS
from pipeline.model.mlp import MLPBlock
from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import (
    BinaryClassificationTask,
    ColumnValues,
    Recency,
    RegressionTask,
)
from pipeline.recipe.durations import duration_seconds
from pipeline.recipe.model import ModelConfig, Tower
from pipeline.recipe.train import TrainConfig

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class FromData:
    """What a model takes from the training data beside the schema."""

    vectors: dict[int, Tensor] = field(default_factory=dict)
    """(rows, P) of each entry of `pretrained`, by its place."""
    item_vectors: dict[int, Tensor] = field(default_factory=dict)
    """By width, (rows, width) of length 1 to begin the item's table with; 0 of those not known."""
    item_counts: Tensor | None = None
    """(items,) how often each was interacted with."""
    positives: dict[str, Tensor] = field(default_factory=dict)
    """(rows,) 1 for the values of a categorical target that count as yes, by feature."""
    weights: Tensor | None = None
    """(rows,) of the values of the feature that weighs interactions."""
    newest: int | None = None
    """Microseconds since 1970 of the newest interaction of training."""


@torch.inference_mode(False)  # weights that one may train, wherever it is called
def build_model(
    schema: Schema,
    config: ModelConfig,
    max_sequence_length: int,
    train: TrainConfig | None = None,
    known: FromData | None = None,
) -> Model:
    """The recipe's model with fresh weights; `max_sequence_length` is L.

    `train` and `known` say what its loss is; a model that only predicts does without.
    """
    known = known or FromData()
    members = config.each_member
    heads = [
        _head(schema, member, max_sequence_length, train or TrainConfig(), known, number)
        for number, member in enumerate(members)
    ]
    return Ensemble(*heads) if len(heads) > 1 else Model(*heads)


def _head(
    schema: Schema,
    config: ModelConfig,
    max_sequence_length: int,
    train: TrainConfig,
    known: FromData,
    number: int,
) -> Head:
    """One model of the recipe; `number` is its place among the members."""
    vectors = known.item_vectors.get(config.item_width)
    if config.item_vectors == "random":
        vectors = None
    inputs = build_inputs(schema, config, max_sequence_length, known.vectors, vectors)
    masking = inputs.masking
    assert masking is not None  # noqa: S101
    weights = _weights(train, known)
    tasks: list[Task] = [
        NextItemPredictionTask(
            task_name=f"next-item-{number + 1}" if number else "next-item",
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
            item_counts=known.item_counts,
            gbce_t=train.gbce_t,
            regularization=train.regularization,
            recompute=train.recompute,
            weights=weights,
        )
    ]
    # what is a target is read by no member, and learned once
    targets = () if number else config.targets
    for target in targets:
        column = ColumnValues(target.feature, known.positives.get(target.feature))
        summary = None if schema[target.feature].is_list else target.summary
        if target.kind == "binary":
            tasks.append(BinaryClassificationTask(column, summary_type=summary))
        else:
            tasks.append(RegressionTask(column, summary_type=summary, loss=target.loss))
    task_weights = [1.0, *(target.weight for target in targets)]
    body = SequentialBlock(inputs, *_blocks(config, inputs, max_sequence_length))
    return Head(body, tasks, task_weights=task_weights, loss_reduction="sum")


def _weights(train: TrainConfig, known: FromData) -> ColumnValues | Recency | None:
    """How much each interaction counts as a target."""
    by_value = None
    if train.weights is not None:
        by_value = ColumnValues(train.weights.feature, known.weights)
    if train.half_life is None or known.newest is None:
        return by_value
    return Recency(
        TIMESTAMP,
        newest=known.newest,
        half_life=duration_seconds(train.half_life, "`half_life`") * 1e6,
        others=by_value,
    )


def _blocks(config: ModelConfig, inputs: TabularSequenceFeatures, longest: int) -> list[nn.Module]:
    """What follows the input block."""
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
    """The input block of the recipe."""
    item = schema.item_id.name
    features, _ = together(input_features(schema, config))
    for name in (*config.embedding_dims, *(t for group in config.shared_tables for t in group)):
        features.select_by_name(name)
    summed = config.aggregation != "concat"
    added = {}
    initial = functools.partial(nn.init.normal_, std=config.embedding_deviation)
    # one object, so that features that share a table agree
    begun: dict[str, Any] = dict.fromkeys(
        features.select_by_tag(Tags.CATEGORICAL).column_names, initial
    )
    if item_vectors is not None:
        begun[item] = functools.partial(
            begin_with, vectors=item_vectors, deviation=config.embedding_deviation
        )
    filled = set()
    for place, pretrained in enumerate(config.pretrained):
        if place not in vectors:
            raise ConfigError(f"The vectors of {pretrained.file} were not read.")
        if pretrained.use == "table":
            filled.add(pretrained.feature)
            begun[pretrained.feature] = PretrainedEmbeddingsInitializer(
                vectors[place], trainable=pretrained.trainable
            )
        else:
            added[pretrained.feature] = PretrainedEmbeddings(
                vectors[place],
                trainable=pretrained.trainable,
                output_dim=pretrained.output_dim,
                normalizer="layer-norm" if pretrained.layer_norm else None,
            )
    dims = {**config.embedding_dims}
    if item not in filled:
        dims.setdefault(item, config.item_width)
    pre: list[nn.Module] = []
    if config.swap_noise:
        pre.append(StochasticSwapNoise(replacement_prob=config.swap_noise))
    if config.shared_embedding_noise:
        pre.append(StochasticSharedEmbeddings(replacement_prob=config.shared_embedding_noise))
    post: list[nn.Module] = []
    if config.feature_layer_norm:
        post.append(TabularLayerNorm())
    if config.feature_dropout:
        post.append(TabularDropout(dropout_rate=config.feature_dropout))
    return TabularSequenceFeatures.from_schema(
        input_features(schema, config),
        max_sequence_length=longest,
        embedding_dims=dims,
        embedding_dim_default=config.d_model if summed else config.embedding_dim,
        infer_embedding_sizes=config.infer_embedding_sizes,
        infer_embedding_sizes_multiplier=config.infer_embedding_sizes_multiplier,
        shared_tables=[list(group) for group in config.shared_tables],
        embeddings_initializers=begun,
        pretrained_embeddings=added or None,
        continuous_projection=config.continuous_projection,
        continuous_soft_embeddings=config.continuous_soft_embeddings,
        soft_embedding_cardinality_default=config.soft_embedding_cardinality,
        soft_embedding_dim_default=config.soft_embedding_dim,
        pre=pre or None,
        post=post or None,
        aggregation=config.aggregation,
        # an item alone needs no layer between its embedding and the encoder
        d_output=config.d_model if len(features) > 1 or added else None,
        masking=config.masking,
        **masking_arguments(config),
    )


@torch.no_grad()
def begin_with(table: Tensor, vectors: Tensor, deviation: float) -> None:
    """Random (rows, width) of `deviation`, and as long as those the `vectors` that are not 0."""
    nn.init.normal_(table, std=deviation)
    known = vectors.any(1)
    table[known] = vectors[known].to(table) * deviation * table.size(1) ** 0.5


def input_features(schema: Schema, config: ModelConfig) -> Schema:
    """Columns that the model reads. ConfigError if it predicts one that is not there."""
    targets = [target.feature for target in config.targets]
    schema.select_by_name(*targets)
    features = schema.select_by_tag(Tags.CATEGORICAL, Tags.CONTINUOUS)
    return Schema(tuple(column for column in features if column.name not in targets))


def masking_arguments(config: ModelConfig) -> dict[str, Any]:
    """Arguments of the masking alone that was chosen."""
    return {name: getattr(config, name) for name in ARGUMENTS[config.masking]}


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


def save_model(
    directory: Path, model: Model, schema: Schema, config: ModelConfig, max_sequence_length: int
) -> None:
    """Write `model.json` and `model.safetensors`."""
    features = schema.select_by_tag(Tags.CATEGORICAL, Tags.CONTINUOUS)
    description = {
        "model": config.model_dump(mode="json"),
        "max_sequence_length": max_sequence_length,
        "schema": features.to_dicts(),
        "vectors": _vector_shapes(model, config),
    }
    write_json(directory / MODEL_FILE, description)
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        kept = value.detach().cpu().contiguous()
        # tables that are shared have two names; of others a copy would be a second table in memory
        weights[name] = kept.clone() if kept.data_ptr() in seen else kept
        seen.add(kept.data_ptr())
    write_tensors(weights, directory / WEIGHTS_FILE)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write safetensors. OSError where the disk does not take them."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {' '.join(str(error).split())}") from None


def load_model(directory: Path) -> Model:
    """Rebuild a model in evaluation mode. ArtifactError if the files do not fit each other."""
    description = read_json(directory / MODEL_FILE)
    try:
        config = ModelConfig.from_dict(description["model"], str(directory / MODEL_FILE))
        schema = Schema.from_dicts(description["schema"])
        vectors = {
            place: torch.zeros(rows, width)
            for place, (rows, width) in enumerate(description["vectors"])
        }
        longest = int(description["max_sequence_length"])
        model = build_model(schema, config, longest, known=FromData(vectors=vectors))
        model.load_state_dict(load_file(directory / WEIGHTS_FILE))
    except (
        KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError, ConfigError
    ) as error:  # fmt: skip
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{directory} does not hold a model of this version: {line}") from None
    return model.eval()


def _vector_shapes(model: Model, config: ModelConfig) -> list[list[int]]:
    """Rows and width of each entry of `pretrained`."""
    shapes = []
    for pretrained in config.pretrained:
        table = model.inputs.table(pretrained.feature)
        if pretrained.use == "input":
            table = model.inputs.pretrained_table(pretrained.feature)
        shapes.append([table.num_embeddings, table.embedding_dim])
    return shapes
