"""A model repository that needs nothing but NumPy, so that it starts in a second."""

from pathlib import Path

DOUBLE_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "weight").as_numpy() for r in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("doubled", 2 * array)]) for array in inputs
        ]
"""

DOUBLE_CONFIG = """
name: "double"
backend: "python"
max_batch_size: 32
input [ { name: "weight" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "doubled" data_type: TYPE_FP32 dims: [ 4 ] } ]
instance_group [ { kind: KIND_CPU } ]
dynamic_batching { max_queue_delay_microseconds: 50000 }
"""


def add_double(repository: Path, code: str = DOUBLE_MODEL) -> None:
    version = repository / "double" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code)
    (version.parent / "config.pbtxt").write_text(DOUBLE_CONFIG)
