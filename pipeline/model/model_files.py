"""Files of a model: its config and schema as JSON and its weights as safetensors."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.core.artifact import read_json, write_json
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.tensor_header import check_tensor_header
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema, Tags
from pipeline.model.build import TrainingStatistics, build_model
from pipeline.model.counting.model import load_counting_model, read_columns
from pipeline.model.model import Model
from pipeline.model.target_labels import target_labels
from pipeline.recipe.model import ModelConfig

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"


def save_model(
    directory: Path, model: Model, schema: Schema, config: ModelConfig, max_sequence_length: int
) -> None:
    """Write `model.json` and `model.safetensors`."""
    if config.counting is not None:
        features = read_columns(schema, config)
    else:
        features = schema.select_by_tag(Tags.CATEGORICAL, Tags.CONTINUOUS)
    description = {
        "model": config.settings(),
        "max_sequence_length": max_sequence_length,
        "schema": features.to_dicts(),
        "vectors": _vector_shapes(model, config),
    }
    write_json(directory / MODEL_FILE, description)
    write_tensors(model.state_dict(), directory / WEIGHTS_FILE)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. OSError if the write fails."""
    separate: dict[str, Tensor] = {}
    pointers: set[int] = set()
    for name, value in tensors.items():
        kept = value.detach().cpu().contiguous()
        # only shared tables, which have two names, are copied, to save memory
        separate[name] = kept.clone() if kept.data_ptr() in pointers else kept
        pointers.add(kept.data_ptr())
    try:
        save_file(separate, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name. ArtifactError for a missing or damaged file."""
    try:
        check_tensor_header(path)
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is missing or damaged: {line}") from None


def load_model(directory: Path, fitted: Fitted | None = None) -> Model:
    """Load a model in evaluation mode. ArtifactError if the files do not fit each other.

    `fitted` has the labels of the targets; without it, targets cannot be evaluated.
    """
    description = read_json(directory / MODEL_FILE)
    try:
        config = ModelConfig.from_dict(description["model"], str(directory / MODEL_FILE))
        schema = Schema.from_dicts(description["schema"])
        longest = int(description["max_sequence_length"])
        vector_shapes = [(int(rows), int(width)) for rows, width in description["vectors"]]
        num_bytes = (directory / WEIGHTS_FILE).stat().st_size
        _check_sizes(config, schema, longest, vector_shapes, num_bytes)
        if config.counting is not None:
            tables = read_tensors(directory / WEIGHTS_FILE)
            return load_counting_model(schema, config, longest, tables)
        vectors = {position: torch.zeros(shape) for position, shape in enumerate(vector_shapes)}
        labels = {} if fitted is None else target_labels(fitted, config)
        statistics = TrainingStatistics(vectors=vectors, labels=labels)
        model = build_model(schema, config, longest, statistics=statistics)
        weights = read_tensors(directory / WEIGHTS_FILE)
        _check_weights(weights, model.state_dict())
        model.load_state_dict(weights)
    except (
        KeyError, TypeError, ValueError, RuntimeError, OSError, ConfigError
    ) as error:  # fmt: skip
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{directory} does not hold a model of this version: {line}") from None
    return model.eval()


def _check_sizes(
    config: ModelConfig,
    schema: Schema,
    longest: int,
    vector_shapes: list[tuple[int, int]],
    num_bytes: int,
) -> None:
    """ValueError for a model larger than the file of its weights, before it is built.

    A table has at least one number per row, and a layer at least the square of its width.
    """
    most = num_bytes // 4
    sizes = {f"rows of {column.name}": column.num_rows or 0 for column in schema}
    sizes["max_sequence_length"] = longest
    sizes |= {f"numbers of vectors {n}": r * w for n, (r, w) in enumerate(vector_shapes)}
    if config.counting is None:
        sizes["weights"] = sum(each.d_model**2 * each.n_layer for each in config.each_member)
    for name, size in sizes.items():
        if not 0 <= size <= most:
            raise ValueError(f"{size} {name}, and {WEIGHTS_FILE} has {most} numbers")


def _check_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """ValueError for weights of another type or that are not finite."""
    for name, tensor in weights.items():
        if name in expected and tensor.dtype != expected[name].dtype:
            raise ValueError(f"{name} is of {tensor.dtype}, expected {expected[name].dtype}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has a number that is not finite")


def _vector_shapes(model: Model, config: ModelConfig) -> list[list[int]]:
    """Rows and width of each entry of `pretrained`."""
    shapes = []
    for pretrained in config.pretrained:
        table = model.inputs.table(pretrained.feature)
        if pretrained.use == "input":
            table = model.inputs.pretrained_table(pretrained.feature)
        shapes.append([table.num_embeddings, table.embedding_dim])
    return shapes
