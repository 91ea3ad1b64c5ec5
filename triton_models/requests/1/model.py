"""Triton adapter: raw sessions in, lists of raw item ids out; asks the model in between.

All requests of an execution are encoded together and go to the model as one. Triton's own
ensemble would take each of them through three models by itself, which on a CPU costs more than
the work.
"""

import asyncio  # noqa: F401  Triton's stub wants it at the first request, 40 ms of import
import sys
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # a repository may be mounted read-only
sys.path.insert(0, str(Path(__file__).resolve().parent))

from request_runtime.answer import Lists, answers  # noqa: E402  (beside this file in a repository)
from request_runtime.encoder import Encoder  # noqa: E402
from request_runtime.errors import RequestError  # noqa: E402
from request_runtime.lookups import FIRST_ITEM  # noqa: E402
from request_runtime.program import Program  # noqa: E402
from request_runtime.request import Reader  # noqa: E402

INPUT, OUTPUT = "packed__0", "lists__0"
"""Of the model."""
LOADING_SECONDS = 60
"""How long a request waits for the model beside this one, which loads at the same time."""


class TritonPythonModel:
    """Answers all requests of an execution in one pass of the model."""

    def initialize(self, args):
        directory = Path(__file__).resolve().parent
        self.encoder = Encoder(directory)
        self.reader = Reader(self.encoder)
        self.program = Program(self.encoder, self._ask)
        self._warm_up()

    def _warm_up(self):
        """Answer a request out of nothing: the first calls of NumPy are slow. Triton's own warm-up
        is no place to ask another model in, its 2.51 ends there."""
        encoder = self.encoder
        nothing = np.full((1, 2 + self.program.width), FIRST_ITEM, np.int32)
        ask = Program(encoder, lambda _: nothing)
        for ids in (encoder.items[:1], encoder.items[:1].repeat(5)):
            request = self.reader.read({"item_id": ids[np.newaxis]})
            answers(request, ask([request]), encoder.items, ("item_ids", "scores"))

    def execute(self, requests):
        responses = [None] * len(requests)
        accepted = []
        for index, request in enumerate(requests):
            try:
                accepted.append((index, self.reader.read(self._tensors(request))))
            except Exception as error:
                responses[index] = _failure(error)
        found = self._answered([request for _, request in accepted])
        for (index, request), lists in zip(accepted, found, strict=True):
            if isinstance(lists, Exception):
                responses[index] = _failure(lists)
                continue
            wanted = requests[index].requested_output_names()
            responses[index] = pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor(name, values)
                    for name, values in answers(request, lists, self.encoder.items, wanted).items()
                ]
            )
        return responses

    def _answered(self, requests):
        """For each request its lists, or why there are none."""
        if not requests:
            return []
        try:
            whole = self.program(requests)
        except Exception as error:
            if len(requests) == 1 or isinstance(error, NotLoadedError):
                return [error] * len(requests)
            # one that fails must not take the others with it
            return [found for request in requests for found in self._answered([request])]
        if len(requests) == 1:
            return [whole]
        ends = np.cumsum([len(request.rows.lengths) for request in requests])[:-1]
        return [Lists(*parts) for parts in zip(*(np.split(v, ends) for v in whole), strict=True)]

    def _tensors(self, request):
        # `inputs` holds what was sent; to look for each that might have been costs more
        return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def _ask(self, packed):
        """One pass of the model."""
        tensors = [pb_utils.Tensor(INPUT, packed)]
        until = time.monotonic() + LOADING_SECONDS
        while True:
            request = pb_utils.InferenceRequest(
                model_name=self.encoder.spec["model"],
                requested_output_names=[OUTPUT],
                inputs=tensors,
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            )
            response = request.exec()
            if not response.has_error():
                return pb_utils.get_output_tensor_by_name(response, OUTPUT).as_numpy()
            message = response.error().message()
            if "is not ready" not in message and "unknown model" not in message:
                raise ModelError(message)
            if time.monotonic() > until:
                raise NotLoadedError(message)
            time.sleep(0.05)


class ModelError(Exception):
    """What the model said."""


class NotLoadedError(Exception):
    """There is no model to ask."""


def _failure(error):
    if isinstance(error, RequestError):
        return pb_utils.InferenceResponse(
            error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        )
    line = " ".join(str(error).split())[:300] or type(error).__name__
    pb_utils.Logger.log_error(f"{type(error).__name__}: {line}")
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(line, pb_utils.TritonError.INTERNAL)
    )
