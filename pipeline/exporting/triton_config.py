"""Triton's model configurations as typed data, by its own proto."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

CONFIG_FILE = "config.pbtxt"

Device = Literal["cpu", "gpu"]


class Tensor(NamedTuple):
    """An input or output of a model, the batch dimension left out."""

    name: str
    type: str
    """Such as TYPE_INT64."""
    dims: tuple[int, ...]
    """-1 where it varies."""
    optional: bool = False


class Step(NamedTuple):
    """One model of an ensemble and how its tensors are named in the whole."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def python_model(
    name: str,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    max_batch: int,
) -> proto.ModelConfig:
    """A model of the Python backend that takes sessions of different lengths in one batch.

    Batches form from what waits already; nothing waits for a batch to fill. A queue policy has no
    place here: with one, whatever it says, Triton 2.51 leaves some requests lying for half a
    second, until its batcher looks again by itself.
    """
    config = proto.ModelConfig(name=name, backend="python", max_batch_size=max_batch)
    _add_tensors(config, inputs, outputs)
    for tensor in config.input:
        tensor.allow_ragged_batch = True
    config.dynamic_batching.max_queue_delay_microseconds = 0
    _place(config, "cpu")
    return config


def torchscript_model(
    name: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor], max_batch: int, device: Device
) -> proto.ModelConfig:
    """A model of the PyTorch backend; tensor names end in `__<position>`, as it wants them.

    Whoever asks it has put requests together already, in rows whose meaning depends on their
    sizes: Triton must not put further ones beside them.
    """
    config = proto.ModelConfig(
        name=name, backend="pytorch", platform="pytorch_libtorch", max_batch_size=max_batch
    )
    _add_tensors(config, inputs, outputs)
    config.parameters["INFERENCE_MODE"].string_value = "true"
    # else the first calls, and those of new shapes, are slower than the rest by seconds
    config.parameters["DISABLE_OPTIMIZED_EXECUTION"].string_value = "true"
    _place(config, device)
    return config


def ensemble(
    name: str,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    steps: Iterable[Step],
    max_batch: int,
    parameters: dict[str, str],
    *,
    version: int,
) -> proto.ModelConfig:
    """The whole, as clients see it, under this version alone.

    Triton reads a configuration some time before it looks for versions. One that named none would
    go under the version of the next export, if that came in between.
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


def warm_up(config: proto.ModelConfig, samples: dict[str, dict[str, np.ndarray]]) -> None:
    """Have Triton ask a model for these samples, inputs by name, before it calls it ready.

    Arrays have a batch dimension, which `write_samples` writes one row of: Triton repeats it.
    """
    kinds = {tensor.name: tensor.data_type for tensor in config.input}
    for name, inputs in samples.items():
        added = config.model_warmup.add(name=name, batch_size=len(next(iter(inputs.values()))))
        for tensor, values in inputs.items():
            added.inputs[tensor].data_type = kinds[tensor]
            added.inputs[tensor].dims.extend(values.shape[1:])
            added.inputs[tensor].input_data_file = f"{name}_{tensor}"


def write_samples(directory: Path, samples: dict[str, dict[str, np.ndarray]]) -> None:
    """Write the samples of `warm_up` where Triton looks for them, into the directory of a model."""
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
    """Of a tensor in a configuration that was read, such as TYPE_INT64."""
    return str(proto.DataType.Name(tensor.data_type))


def _add_tensors(
    config: proto.ModelConfig, inputs: Iterable[Tensor], outputs: Iterable[Tensor]
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


def _place(config: proto.ModelConfig, device: Device) -> None:
    kinds = proto.ModelInstanceGroup
    group = config.instance_group.add(count=1, kind=kinds.KIND_CPU)
    if device == "gpu":
        group.kind = kinds.KIND_GPU
        group.gpus.append(0)  # a traced program holds on to the device that it was traced on
