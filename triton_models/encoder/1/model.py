"""Triton adapter: raw columns of sessions in, tensors of the model out."""

import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # a repository may be mounted read-only
sys.path.insert(0, str(Path(__file__).resolve().parent))

from encoder import Encoder, RequestError  # noqa: E402  (beside this file in a repository)


class TritonPythonModel:
    """Encodes all requests of an execution in one pass."""

    def initialize(self, args):
        self.encoder = Encoder(Path(__file__).resolve().parent)
        names = [column["name"] for column in self.encoder.columns]
        self.inputs = [*names, "timestamp", "length"]

    def execute(self, requests):
        answers = [None] * len(requests)
        accepted = []
        for index, request in enumerate(requests):
            try:
                accepted.append((index, *self._read(request)))
            except RequestError as error:
                answers[index] = _refusal(str(error))
        whole = self._encode([rows for _, rows, _ in accepted])
        for (index, rows, k), encoded in zip(accepted, whole, strict=True):
            tensors = [pb_utils.Tensor(name, values) for name, values in encoded.items()]
            num_items = np.full((len(rows.lengths), 1), k, np.int32)
            tensors.append(pb_utils.Tensor("num_items", num_items))
            answers[index] = pb_utils.InferenceResponse(output_tensors=tensors)
        return answers

    def _read(self, request):
        tensors = {}
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                tensors[name] = tensor.as_numpy()
        k = pb_utils.get_input_tensor_by_name(request, "k")
        num_items = self.encoder.num_items(None if k is None else k.as_numpy())
        return self.encoder.read(tensors), num_items

    def _encode(self, parts):
        """All rows at once where they are alike, then apart again."""
        groups = {}
        for position, rows in enumerate(parts):
            groups.setdefault(rows.times is None, []).append(position)
        encoded = [None] * len(parts)
        for positions in groups.values():
            merged = _merge([parts[position] for position in positions])
            whole = self.encoder.encode(merged)
            first = 0
            for position in positions:
                last = first + len(parts[position].lengths)
                encoded[position] = {name: values[first:last] for name, values in whole.items()}
                first = last
        return encoded


def _merge(parts):
    if len(parts) == 1:
        return parts[0]
    names = parts[0].columns
    return type(parts[0])(
        {name: np.concatenate([part.columns[name] for part in parts]) for name in names},
        np.concatenate([part.lengths for part in parts]),
        None if parts[0].times is None else np.concatenate([part.times for part in parts]),
    )


def _refusal(message):
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
    )
