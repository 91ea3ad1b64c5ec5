"""Triton backend "pytorch" as a Python file: serves `<version>/model.pt` in TorchScript.

It reads what `pipeline export` writes for NVIDIA's LibTorch backend: `forward` takes the input
`NAME__0` and returns the output `NAME__0`; requests are not batched, because the request runtime
has merged them.

Runs inside the stub of Triton's Python backend, so it imports nothing of this project but copies
of `core/program_check.py` and `core/allocator.py` beside it: a program with an operator that no
model needs is not loaded, since it could read and write files. Tensors come and go by DLPack: no
copy, and no dependence on the NumPy that the stub was built with.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from torch.utils.dlpack import from_dlpack


def _module(name: str) -> Any:
    """Return a module beside this file, whose folder need not be on Python's path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None  # noqa: S101
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TritonPythonModel:
    """One instance of a TorchScript model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artifact; an exception here becomes Triton's "failed to load" message."""
        _module("allocator").keep_heap()
        config = json.loads(args["model_config"])
        (self.input,) = (field["name"] for field in config["input"])
        (self.output,) = (field["name"] for field in config["output"])
        self.device = torch.device("cpu")
        if args["model_instance_kind"] == "GPU" and torch.cuda.is_available():
            self.device = torch.device("cuda", int(args["model_instance_device_id"]))
        # few by default: the instances that Triton runs share the cores better than threads do
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        optimized = config["parameters"].get("DISABLE_OPTIMIZED_EXECUTION")
        if optimized is not None and optimized["string_value"] == "true":
            # the optimizer compiles during the first calls, and anew for shapes it has not seen
            torch._C._set_graph_executor_optimize(False)
        path = Path(args["model_repository"], args["model_version"], "model.pt")
        if not path.is_file():
            raise FileNotFoundError(f"no TorchScript model at {path}")
        with _module("program_check").checked_program(path) as copy:
            self.model = torch.jit.load(copy, map_location=self.device).eval()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails gets an error of its own."""
        return [self._respond(request) for request in requests]

    @torch.inference_mode()
    def _respond(self, request: Any) -> Any:
        try:
            tensor = pb_utils.get_input_tensor_by_name(request, self.input)
            returned = self.model(from_dlpack(tensor.to_dlpack()).to(self.device))
        except Exception as error:
            # TorchScript puts the cause into the last line
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            message = lines[-1] if lines else type(error).__name__
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
        output = pb_utils.Tensor.from_dlpack(self.output, returned.cpu().contiguous())
        return pb_utils.InferenceResponse([output])
