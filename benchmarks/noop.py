"""Triton Python model that does nothing, to measure only the transport of a request.

It is copied into a model repository and imports nothing of this project.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """Answer every request with ten zeros."""

    def initialize(self, args: dict[str, str]) -> None:
        """Allocate the answer to one session."""
        self.scores = np.zeros((1, 10), np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a row of zeros for each session."""
        answers = []
        for request in requests:
            items = pb_utils.get_input_tensor_by_name(request, "item_id").as_numpy()
            scores = np.repeat(self.scores, len(items), axis=0)
            tensors = [pb_utils.Tensor("scores", scores)]
            answers.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return answers
