"""A model from its config, and its weights to and from disk, without running anything."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.core.artifact import read_json, write_json
from pipeline.core.errors import ArtifactError
from pipeline.core.recipe import ModelConfig
from pipeline.core.schema import Schema, Tags
from pipeline.model.features import TabularSequenceFeatures
from pipeline.model.model import Model
from pipeline.model.task import NextItemPredictionTask
from pipeline.model.transformer import BUILDERS

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"


def build_model(
    schema: Schema, config: ModelConfig, max_sequence_length: int, *, label_smoothing: float = 0.0
) -> Model:
    """The recipe's model with fresh weights; `max_sequence_length` is L."""
    item = schema.item_id
    features = schema.select_by_tag(Tags.CATEGORICAL, Tags.CONTINUOUS)
    inputs = TabularSequenceFeatures.from_schema(
        features,
        max_sequence_length=max_sequence_length,
        embedding_dims={item.name: config.d_model},
        embedding_dim_default=(
            config.embedding_dim if config.aggregation == "concat" else config.d_model
        ),
        continuous_projection=config.continuous_projection,
        aggregation=config.aggregation,
        # an item alone needs no layer between its embedding and the encoder
        d_output=config.d_model if len(features) > 1 else None,
        masking=config.masking,
        mlm_probability=config.mlm_probability,
    )
    masking = inputs.masking
    assert masking is not None  # noqa: S101
    encoder = BUILDERS[config.architecture](
        d_model=config.d_model,
        n_head=config.n_head,
        n_layer=config.n_layer,
        total_seq_length=max_sequence_length + masking.extra_positions,
        initializer_range=0.02,
        layer_norm_eps=1e-5,
        dropout=config.dropout,
    )
    task = NextItemPredictionTask(
        weight_tying=config.weight_tying,
        softmax_temperature=config.temperature,
        normalize=config.normalize,
        label_smoothing=label_smoothing,
    )
    return encoder.to_torch_model(inputs, task)


def save_model(
    directory: Path, model: Model, schema: Schema, config: ModelConfig, max_sequence_length: int
) -> None:
    """Write `model.json` and `model.safetensors`."""
    features = schema.select_by_tag(Tags.CATEGORICAL, Tags.CONTINUOUS)
    description = {
        "model": config.model_dump(mode="json"),
        "max_sequence_length": max_sequence_length,
        "schema": features.to_dicts(),
    }
    write_json(directory / MODEL_FILE, description)
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    save_file(weights, directory / WEIGHTS_FILE)


def load_model(directory: Path) -> Model:
    """Rebuild a model in evaluation mode. ArtifactError if the files do not fit each other."""
    description = read_json(directory / MODEL_FILE)
    try:
        config = ModelConfig.from_dict(description["model"], str(directory / MODEL_FILE))
        schema = Schema.from_dicts(description["schema"])
        model = build_model(schema, config, int(description["max_sequence_length"]))
        model.load_state_dict(load_file(directory / WEIGHTS_FILE))
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{directory} does not hold a model of this version: {line}") from None
    return model.eval()
