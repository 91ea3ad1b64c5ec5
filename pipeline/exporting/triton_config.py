"""Triton's model configurations, checked and written with its own proto.

A configuration is a dict with the names of the proto's fields.
"""

from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as proto

from pipeline.exporting.options import Device

CONFIG_FILE = "config.pbtxt"

ModelConfig = dict[str, Any]
TensorConfig = dict[str, Any]


def tensor(name: str, data_type: str, size: int = -1, *, optional: bool = False) -> TensorConfig:
    """Configure an input or output of (B, `size`), -1 for any; `data_type` is like TYPE_INT64."""
    options = {"optional": True} if optional else {}
    return {"name": name, "data_type": data_type, "dims": [size], **options}


def python_model(
    name: str, inputs: list[TensorConfig], outputs: list[TensorConfig], max_batch: int
) -> ModelConfig:
    """Configure a model of the Python backend whose batches hold sessions of different lengths.

    Waiting requests form a batch without a delay to fill it. There is no queue policy, as with any
    policy Triton 2.51 leaves some requests in the queue for half a second.
    """
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch,
        "input": [config | {"allow_ragged_batch": True} for config in inputs],
        "output": outputs,
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
    }


def torchscript_model(
    name: str,
    request: TensorConfig,
    answer: TensorConfig,
    max_batch: int,
    device: Device,
    samples: dict[str, NDArray[Any]],
) -> ModelConfig:
    """Configure a model of the PyTorch backend; its tensor names must end in `__<position>`.

    Triton runs the `samples`, (B, n) requests by name, before it reports the model as ready. There
    is no dynamic batching, as the request runtime merges requests into rows whose layout depends on
    their sizes.
    """
    # a traced program runs on the device that it was traced on
    instances = {"kind": "KIND_GPU", "gpus": [0]} if device == "gpu" else {"kind": "KIND_CPU"}
    return {
        "name": name,
        "backend": "pytorch",
        "platform": "pytorch_libtorch",
        "max_batch_size": max_batch,
        "input": [request],
        "output": [answer],
        "parameters": {
            "INFERENCE_MODE": {"string_value": "true"},
            # with optimization the first call, and the first of each shape, takes seconds longer
            "DISABLE_OPTIMIZED_EXECUTION": {"string_value": "true"},
        },
        "instance_group": [{"count": 1, **instances}],
        "model_warmup": [
            {
                "name": sample,
                "batch_size": len(rows),
                "inputs": {
                    request["name"]: {
                        "data_type": request["data_type"],
                        "dims": rows.shape[1:],
                        "input_data_file": f"{sample}_{request['name']}",
                    }
                },
            }
            for sample, rows in samples.items()
        ],
    }


def ensemble(
    name: str,
    inputs: list[TensorConfig],
    outputs: list[TensorConfig],
    step: str,
    max_batch: int,
    parameters: dict[str, str],
    *,
    version: int,
) -> ModelConfig:
    """Configure the model that clients call: one step, the model `step`, with the same tensors.

    Triton reads a configuration some time before it lists the versions. The configuration names its
    one version, as otherwise an export in between would be served with this configuration.
    """
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": max_batch,
        "version_policy": {"specific": {"versions": [version]}},
        "input": inputs,
        "output": outputs,
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": step,
                    "model_version": -1,
                    "input_map": {config["name"]: config["name"] for config in inputs},
                    "output_map": {config["name"]: config["name"] for config in outputs},
                }
            ]
        },
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }


def write_config(directory: Path, config: ModelConfig) -> None:
    """Write `config.pbtxt` into the directory of a model. ParseError for a wrong field."""
    directory.mkdir(parents=True, exist_ok=True)
    text = text_format.MessageToString(json_format.ParseDict(config, proto.ModelConfig()))
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")


def write_samples(directory: Path, samples: dict[str, NDArray[Any]], request: TensorConfig) -> None:
    """Write the first row of each sample, which Triton repeats, to the directory of a model."""
    folder = directory / "warmup"
    folder.mkdir()
    for sample, rows in samples.items():
        (folder / f"{sample}_{request['name']}").write_bytes(rows[0].tobytes())


def read_config(directory: Path) -> Any:
    """Read `config.pbtxt` back."""
    text = (directory / CONFIG_FILE).read_text(encoding="utf-8")
    return text_format.Parse(text, proto.ModelConfig())


def type_name(tensor: Any) -> str:
    """Return the type of a tensor of a parsed configuration, such as TYPE_INT64."""
    return str(proto.DataType.Name(tensor.data_type))
