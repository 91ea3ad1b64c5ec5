"""Triton's model configurations, built with its own proto."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

CONFIG_FILE = "config.pbtxt"

Device = Literal["cpu", "gpu"]


class TensorConfig(NamedTuple):
    """An input or output of a model, without the batch dimension."""

    name: str
    type: str
    """Such as TYPE_INT64."""
    dims: tuple[int, ...]
    """-1 for a dimension of any size."""
    optional: bool = False


class EnsembleStep(NamedTuple):
    """One model of an ensemble, with the ensemble's names of its inputs and outputs."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def python_model(
    name: str,
    inputs: Iterable[TensorConfig],
    outputs: Iterable[TensorConfig],
    max_batch: int,
) -> proto.ModelConfig:
    """Configure a model of the Python backend whose batches hold sessions of different lengths.

    A batch forms from the waiting requests, without a delay to fill it. There is no queue policy:
    with any, Triton 2.51 leaves some requests in the queue for half a second.
    """
    config = proto.ModelConfig(name=name, backend="python", max_batch_size=max_batch)
    _add_tensors(config, inputs, outputs)
    for tensor in config.input:
        tensor.allow_ragged_batch = True
    config.dynamic_batching.max_queue_delay_microseconds = 0
    _set_device(config, "cpu")
    return config


def torchscript_model(
    name: str,
    inputs: Iterable[TensorConfig],
    outputs: Iterable[TensorConfig],
    max_batch: int,
    device: Device,
) -> proto.ModelConfig:
    """Configure a model of the PyTorch backend; its tensor names must end in `__<position>`.

    There is no dynamic batching: the request runtime has merged requests into rows whose layout
    depends on their sizes.
    """
    config = proto.ModelConfig(
        name=name, backend="pytorch", platform="pytorch_libtorch", max_batch_size=max_batch
    )
    _add_tensors(config, inputs, outputs)
    config.parameters["INFERENCE_MODE"].string_value = "true"
    # otherwise the first call, and the first of each shape, takes seconds longer
    config.parameters["DISABLE_OPTIMIZED_EXECUTION"].string_value = "true"
    _set_device(config, device)
    return config


def ensemble(
    name: str,
    inputs: Iterable[TensorConfig],
    outputs: Iterable[TensorConfig],
    steps: Iterable[EnsembleStep],
    max_batch: int,
    parameters: dict[str, str],
    *,
    version: int,
) -> proto.ModelConfig:
    """Configure the model that clients ask, with this version only.

    Triton reads a configuration some time before it lists the versions. Without a version in the
    configuration, an export in between would serve this configuration as its own version.
    """
    config = proto.ModelConfig(name=name, platform="ensemble", max_batch_size=max_batch)
    config.version_policy.specific.versions.append(version)
    _add_tensors(config, inputs, outputs)
    for step in steps:
        added = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        added.input_map.update(step.inputs)
        added.output_map.update(step.outputs)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def add_warm_up(config: proto.ModelConfig, samples: dict[str, dict[str, np.ndarray]]) -> None:
    """Add samples, inputs by name, that Triton runs before it reports the model as ready.

    Arrays have a batch dimension; `write_samples` writes its first row, which Triton repeats.
    """
    kinds = {tensor.name: tensor.data_type for tensor in config.input}
    for name, inputs in samples.items():
        added = config.model_warmup.add(name=name, batch_size=len(next(iter(inputs.values()))))
        for tensor, values in inputs.items():
            added.inputs[tensor].data_type = kinds[tensor]
            added.inputs[tensor].dims.extend(values.shape[1:])
            added.inputs[tensor].input_data_file = f"{name}_{tensor}"


def write_samples(directory: Path, samples: dict[str, dict[str, np.ndarray]]) -> None:
    """Write the samples of `add_warm_up` into the directory of a model, where Triton reads them."""
    folder = directory / "warmup"
    folder.mkdir()
    for name, inputs in samples.items():
        for tensor, values in inputs.items():
            (folder / f"{name}_{tensor}").write_bytes(np.ascontiguousarray(values[0]).tobytes())


def write_config(directory: Path, config: proto.ModelConfig) -> None:
    """Write `config.pbtxt` into the directory of a model."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(text_format.MessageToString(config), encoding="utf-8")


def read_config(directory: Path) -> Any:
    """Read `config.pbtxt` back."""
    text = (directory / CONFIG_FILE).read_text(encoding="utf-8")
    return text_format.Parse(text, proto.ModelConfig())


def type_name(tensor: Any) -> str:
    """Return the type of a tensor of a parsed configuration, such as TYPE_INT64."""
    return str(proto.DataType.Name(tensor.data_type))


def _add_tensors(
    config: proto.ModelConfig, inputs: Iterable[TensorConfig], outputs: Iterable[TensorConfig]
) -> None:
    for tensor in inputs:
        config.input.add(
            name=tensor.name,
            data_type=proto.DataType.Value(tensor.type),
            dims=tensor.dims,
            optional=tensor.optional,
        )
    for tensor in outputs:
        config.output.add(
            name=tensor.name, data_type=proto.DataType.Value(tensor.type), dims=tensor.dims
        )


def _set_device(config: proto.ModelConfig, device: Device) -> None:
    kinds = proto.ModelInstanceGroup
    group = config.instance_group.add(count=1, kind=kinds.KIND_CPU)
    if device == "gpu":
        group.kind = kinds.KIND_GPU
        group.gpus.append(0)  # a traced program runs on the device that it was traced on
