"""Triton backend "pytorch" as a Python file: serves `<version>/model.pt` in TorchScript.

It reads the same model repository as NVIDIA's LibTorch backend, and answers as that one does:
inputs `NAME__INDEX` are given to `forward` by INDEX, outputs `NAME__INDEX` are taken by INDEX from
the tuple (or the single tensor) that it returns, and an output of another data type than the
configuration says is an error. The requests of one dynamic batch become one `forward`.

Runs inside the stub of Triton's Python backend, so it imports nothing of this project.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

DEFAULT_FILENAME = "model.pt"


class Port(NamedTuple):
    """One input or output of the model, as config.pbtxt names it."""

    name: str
    dtype: np.dtype[Any]


class TritonPythonModel:
    """One instance of a TorchScript model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artifact; an exception here becomes Triton's "failed to load" message."""
        config = json.loads(args["model_config"])
        self.inputs = ports_by_index(config["input"], "input")
        self.outputs = ports_by_index(config["output"], "output")
        self.can_batch = config["max_batch_size"] > 0
        self.device = choose_device(args)
        torch.set_num_threads(num_threads(config))
        if parameter(config, "DISABLE_OPTIMIZED_EXECUTION") == "true":
            # The optimiser compiles anew for the first calls and for shapes it has not seen.
            torch._C._set_graph_executor_optimize(False)
        path = artifact_path(args, config)
        self.model = torch.jit.load(str(path), map_location=self.device).eval()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails gets an error of its own, its batch mates do not."""
        inputs: list[list[np.ndarray] | None] = []
        responses: list[Any] = []
        for request in requests:
            try:
                inputs.append(self.read(request))
                responses.append(None)
            except Exception as error:
                inputs.append(None)
                responses.append(failure(error))
        readable = [i for i, arrays in enumerate(inputs) if arrays is not None]
        for group in [readable] if self.can_batch else [[i] for i in readable]:
            self.answer(group, inputs, requests, responses)
        return responses

    def answer(
        self, group: list[int], inputs: list[Any], requests: list[Any], responses: list[Any]
    ) -> None:
        """Fill `responses` at the places in `group` with the results of one forward."""
        if not group:
            return
        try:
            results = self.forward([inputs[i] for i in group])
        except Exception as error:
            if len(group) == 1:
                responses[group[0]] = failure(error)
                return
            # One bad request, such as an index beyond the table, fails the whole forward. Alone,
            # each of the others gets its answer.
            for i in group:
                self.answer([i], inputs, requests, responses)
            return
        for i, arrays in zip(group, results, strict=True):
            responses[i] = self.respond(requests[i], arrays)

    def read(self, request: Any) -> list[np.ndarray]:
        """The inputs of a request in the order in which `forward` takes them."""
        arrays = []
        for name, _ in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise ValueError(f"input {name} is missing; a TorchScript model needs all of them")
            arrays.append(tensor.as_numpy())
        if self.can_batch and len({len(array) for array in arrays}) > 1:
            rows = {port.name: len(array) for port, array in zip(self.inputs, arrays, strict=True)}
            raise ValueError(f"inputs of one request differ in their number of rows: {rows}")
        return arrays

    @torch.inference_mode()
    def forward(self, batch: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        """One forward over the rows of all requests: for each request its outputs, in order."""
        joined = [
            torch.from_numpy(part[0] if len(batch) == 1 else np.concatenate(part)).to(self.device)
            for part in zip(*batch, strict=True)
        ]
        returned = self.model(*joined)
        outputs = list(returned) if isinstance(returned, tuple | list) else [returned]
        if len(outputs) < len(self.outputs):
            raise ValueError(
                f"the model returned {len(outputs)} outputs, config.pbtxt names {len(self.outputs)}"
            )
        arrays = [
            checked(tensor, port) for tensor, port in zip(outputs, self.outputs, strict=False)
        ]
        if not self.can_batch:
            return [arrays]
        rows = [len(request[0]) for request in batch]
        for array, port in zip(arrays, self.outputs, strict=True):
            if len(array) != sum(rows):
                raise ValueError(f"{port.name} has {len(array)} rows for a batch of {sum(rows)}")
        ends = np.cumsum(rows)
        return [
            [array[end - n : end] for array in arrays] for n, end in zip(rows, ends, strict=True)
        ]

    def respond(self, request: Any, arrays: list[np.ndarray]) -> Any:
        """A response with the outputs that the request asked for."""
        requested = set(request.requested_output_names())
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(port.name, array)
                for port, array in zip(self.outputs, arrays, strict=True)
                if port.name in requested
            ]
        )


def ports_by_index(fields: list[dict[str, Any]], kind: str) -> list[Port]:
    """Ports ordered by the INDEX of their `NAME__INDEX`; raises ValueError for other names."""
    by_index: dict[int, Port] = {}
    for field in fields:
        name = field["name"]
        _, separator, index = name.partition("__")
        if not separator or not index.isdecimal():
            raise ValueError(f"{kind} {name!r} is not of the form NAME__INDEX, like {name}__0")
        if field["data_type"] == "TYPE_STRING":
            raise ValueError(f"{kind} {name} is of TYPE_STRING; this backend serves numbers only")
        if int(index) in by_index:
            raise ValueError(f"{kind}s {by_index[int(index)].name} and {name} share an index")
        dtype = np.dtype(pb_utils.triton_string_to_numpy(field["data_type"]))
        by_index[int(index)] = Port(name, dtype)
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"{kind} indices are {sorted(by_index)}; they must count from 0")
    return [by_index[index] for index in sorted(by_index)]


def parameter(config: dict[str, Any], key: str) -> str | None:
    """A value of `parameters` in config.pbtxt, or None."""
    value = config.get("parameters", {}).get(key)
    return None if value is None else value["string_value"]


def num_threads(config: dict[str, Any]) -> int:
    """Threads of one forward: LibTorch's own parameter, else OMP_NUM_THREADS, else 1.

    Few by default: instances, of which Triton runs several, scale better than threads.
    """
    value = parameter(config, "INTRA_OP_THREAD_COUNT") or os.environ.get("OMP_NUM_THREADS", "1")
    return max(1, int(value))


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


def checked(tensor: torch.Tensor, port: Port) -> np.ndarray:
    """The output as a contiguous array; raises ValueError where it is not what the config says."""
    array = tensor.detach().cpu().contiguous().numpy()
    if array.ndim == 0:
        raise ValueError(f"{port.name} is a scalar; an output needs at least one dimension")
    if array.dtype != port.dtype:
        raise ValueError(f"{port.name} is {array.dtype}, config.pbtxt says {port.dtype}")
    return array


def failure(error: Exception) -> Any:
    """An error response with the last line of the exception, where TorchScript puts the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = lines[-1].strip() if lines else type(error).__name__
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
