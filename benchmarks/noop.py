"""A Triton Python model that does nothing: how long a request takes on the way alone.

Copied into a model repository, so it imports nothing of this project.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """Answers with zeros, as long as a list of recommendations."""

    def initialize(self, args: dict[str, str]) -> None:
        """Make the answer."""
        self.scores = np.zeros((1, 10), np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        """The same for all."""
        answers = []
        for request in requests:
            items = pb_utils.get_input_tensor_by_name(request, "item_id").as_numpy()
            scores = np.repeat(self.scores, len(items), axis=0)
            tensors = [pb_utils.Tensor("scores", scores)]
            answers.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return answers
