"""Triton backend "pytorch" as a Python file: serves `<version>/model.pt` in TorchScript.

It reads the same model repository as NVIDIA's LibTorch backend, and answers as that one does:
`forward` takes inputs `NAME__INDEX` in the order of INDEX and returns a tuple (or a single tensor)
of outputs `NAME__INDEX` in that order, and an output of another data type than the
configuration says is an error. The requests of one dynamic batch become one `forward`.

Runs inside the stub of Triton's Python backend, so it imports nothing of this project. Tensors
come and go by DLPack: no copy, and no dependence on the NumPy that the stub was built with.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from torch import Tensor
from torch.utils.dlpack import from_dlpack

DEFAULT_FILENAME = "model.pt"
DTYPES = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
}


class Field(NamedTuple):
    """One input or output of the model, as config.pbtxt names it."""

    name: str
    dtype: torch.dtype


class TritonPythonModel:
    """One instance of a TorchScript model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artifact; an exception here becomes Triton's "failed to load" message."""
        config = json.loads(args["model_config"])
        self.inputs = fields_by_index(config["input"], "input")
        self.outputs = fields_by_index(config["output"], "output")
        self.can_batch = config["max_batch_size"] > 0
        self.device = choose_device(args)
        torch.set_num_threads(num_threads(config))
        if parameter(config, "DISABLE_OPTIMIZED_EXECUTION") == "true":
            # The optimiser compiles during the first calls, and anew for shapes it has not seen.
            torch._C._set_graph_executor_optimize(False)
        path = artifact_path(args, config)
        self.model = torch.jit.load(str(path), map_location=self.device).eval()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails gets an error of its own, its batch mates do not."""
        responses: list[Any] = [None] * len(requests)
        readable: dict[int, list[Tensor]] = {}
        for i, request in enumerate(requests):
            try:
                readable[i] = self.read(request)
            except Exception as error:
                responses[i] = failure(error)
        for i, outcome in self.run(readable).items():
            try:
                responses[i] = self.respond(requests[i], outcome)
            except Exception as error:
                responses[i] = failure(error)
        return responses

    def read(self, request: Any) -> list[Tensor]:
        """The inputs of a request in the order in which `forward` takes them."""
        tensors = []
        for name, _ in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise ValueError(f"input {name} is missing; a TorchScript model needs all of them")
            tensors.append(from_dlpack(tensor.to_dlpack()))
        if self.can_batch and len({len(tensor) for tensor in tensors}) > 1:
            shapes = {
                field.name: tuple(tensor.shape)
                for field, tensor in zip(self.inputs, tensors, strict=True)
            }
            raise ValueError(f"inputs of one request differ in their number of rows: {shapes}")
        return tensors

    def run(self, requests: dict[int, list[Tensor]]) -> dict[int, list[Tensor] | Exception]:
        """Return the outputs of each request, or its exception."""
        if self.can_batch and len(requests) > 1:
            try:
                return dict(zip(requests, self.forward(list(requests.values())), strict=True))
            except Exception:
                # One bad request, such as an index beyond the table, fails the whole batch. Alone,
                # each of the others gets its answer.
                pb_utils.Logger.log_warn("a batch failed; its requests run one by one")
        outcomes: dict[int, list[Tensor] | Exception] = {}
        for i, tensors in requests.items():
            try:
                outcomes[i] = self.forward([tensors])[0]
            except Exception as error:
                outcomes[i] = error
        return outcomes

    @torch.inference_mode()
    def forward(self, batch: list[list[Tensor]]) -> list[list[Tensor]]:
        """Run one forward over the rows of all requests; return the outputs of each, in order."""
        inputs = [
            (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.device)
            for parts in zip(*batch, strict=True)
        ]
        returned = self.model(*inputs)
        tensors = list(returned) if isinstance(returned, tuple | list) else [returned]
        if len(tensors) < len(self.outputs):
            raise ValueError(
                f"the model returned {len(tensors)} outputs, config.pbtxt names {len(self.outputs)}"
            )
        outputs = [
            checked(tensor, field) for tensor, field in zip(tensors, self.outputs, strict=False)
        ]
        if not self.can_batch:
            return [outputs]
        num_rows = [len(request[0]) for request in batch]
        for tensor, field in zip(outputs, self.outputs, strict=True):
            if len(tensor) != sum(num_rows):
                raise ValueError(
                    f"{field.name} has {len(tensor)} rows for a batch of {sum(num_rows)}"
                )
        parts = [tensor.split(num_rows) for tensor in outputs]
        return [list(request) for request in zip(*parts, strict=True)]

    def respond(self, request: Any, outcome: list[Tensor] | Exception) -> Any:
        """A response with the outputs that the request asked for; raises what `run` caught."""
        if isinstance(outcome, Exception):
            raise outcome
        requested = set(request.requested_output_names())
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor.from_dlpack(field.name, tensor)
                for field, tensor in zip(self.outputs, outcome, strict=True)
                if field.name in requested
            ]
        )


def fields_by_index(entries: list[dict[str, Any]], kind: str) -> list[Field]:
    """Fields ordered by the INDEX of their `NAME__INDEX`; raises ValueError for other names."""
    by_index: dict[int, Field] = {}
    for entry in entries:
        name, data_type = entry["name"], entry["data_type"]
        _, _, index = name.partition("__")
        if not index.isdecimal():
            raise ValueError(f"{kind} {name!r} is not of the form NAME__INDEX, as in {name}__0")
        if data_type not in DTYPES:
            raise ValueError(f"{kind} {name} is {data_type}; expected one of {', '.join(DTYPES)}")
        if int(index) in by_index:
            raise ValueError(f"{kind}s {by_index[int(index)].name} and {name} share an index")
        by_index[int(index)] = Field(name, DTYPES[data_type])
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"{kind} indices are {sorted(by_index)}; they must count up from 0")
    return [by_index[index] for index in sorted(by_index)]


def parameter(config: dict[str, Any], key: str) -> str | None:
    """A value of `parameters` in config.pbtxt, or None."""
    value = config.get("parameters", {}).get(key)
    return None if value is None else value["string_value"]


def num_threads(config: dict[str, Any]) -> int:
    """Threads of one forward: LibTorch's own parameter, else OMP_NUM_THREADS, else 1.

    Few by default: the instances that Triton runs share the cores better than threads do.
    """
    count = parameter(config, "INTRA_OP_THREAD_COUNT") or os.environ.get("OMP_NUM_THREADS", "1")
    return max(1, int(count))


def choose_device(args: dict[str, str]) -> torch.device:
    """The GPU that Triton chose for an instance of kind GPU, otherwise the CPU."""
    if args["model_instance_kind"] == "GPU" and torch.cuda.is_available():
        return torch.device("cuda", int(args["model_instance_device_id"]))
    return torch.device("cpu")


def artifact_path(args: dict[str, str], config: dict[str, Any]) -> Path:
    """The artifact of this version; raises FileNotFoundError that names it."""
    filename = config.get("default_model_filename") or DEFAULT_FILENAME
    path = Path(args["model_repository"], args["model_version"], filename)
    if not path.is_file():
        raise FileNotFoundError(f"no TorchScript model at {path}")
    return path


def checked(tensor: Tensor, field: Field) -> Tensor:
    """The output on the CPU and contiguous; raises ValueError if it is not what the config says."""
    if tensor.dim() == 0:
        raise ValueError(f"{field.name} is a scalar; an output needs at least one dimension")
    if tensor.dtype != field.dtype:
        raise ValueError(f"{field.name} is {tensor.dtype}, config.pbtxt says {field.dtype}")
    return tensor.detach().cpu().contiguous()


def failure(error: Exception) -> Any:
    """An error response with the last line of the exception, where TorchScript puts the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[-1] if lines else type(error).__name__
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
