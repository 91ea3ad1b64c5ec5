"""Triton adapter: item indices of the model in, raw item ids out."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # a repository may be mounted read-only
sys.path.insert(0, str(Path(__file__).resolve().parent))

from encoder import FIRST_ITEM, read_values  # noqa: E402  (beside this file in a repository)


class TritonPythonModel:
    """Looks ids up and cuts the lists to the length that was asked for."""

    def initialize(self, args):
        directory = Path(__file__).resolve().parent
        spec = json.loads((directory / "decoder.json").read_text("utf-8"))
        values = read_values(directory, "item_id", spec["type"])
        if isinstance(values, list):
            self.items = np.empty(len(values), object)
            self.items[:] = values
        else:
            self.items = values

    def execute(self, requests):
        answers = []
        for request in requests:
            indices = pb_utils.get_input_tensor_by_name(request, "item_index").as_numpy()
            scores = pb_utils.get_input_tensor_by_name(request, "item_score").as_numpy()
            num_items = pb_utils.get_input_tensor_by_name(request, "num_items").as_numpy()
            k = int(num_items[0, 0])
            items = self.items[indices[:, :k] - FIRST_ITEM]
            answers.append(
                pb_utils.InferenceResponse(
                    output_tensors=[
                        pb_utils.Tensor("item_ids", np.ascontiguousarray(items)),
                        pb_utils.Tensor("scores", np.ascontiguousarray(scores[:, :k])),
                    ]
                )
            )
        return answers
