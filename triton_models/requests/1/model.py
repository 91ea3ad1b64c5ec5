"""Triton adapter: encodes raw sessions, calls the model, and returns lists of raw item ids.

All requests of an execution are encoded together and sent to the model as one. An ensemble of three
steps would pass each request through three models separately, which on a CPU costs more than the
computation.
"""

import asyncio  # noqa: F401  Triton's stub imports it at the first request, which takes 40 ms
import sys
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # a repository may be mounted read-only
sys.path.insert(0, str(Path(__file__).resolve().parent))

from request_runtime import RequestError  # noqa: E402  (beside this file in a repository)
from request_runtime.batching import (  # noqa: E402
    BatchRunner,
    Recommendations,
    response_tensors,
)
from request_runtime.lookups import FIRST_ITEM  # noqa: E402
from request_runtime.request import RequestReader  # noqa: E402
from request_runtime.request_encoder import Encoder  # noqa: E402

INPUT, OUTPUT = "packed__0", "lists__0"
"""Tensor names of the model."""
LOADING_SECONDS = 60
"""Longest time that a request waits for the model, which loads at the same time as this one."""


class TritonPythonModel:
    """Answers all requests of an execution with one call of the model."""

    def initialize(self, args):
        self.encoder = _encoder(Path(__file__).resolve().parent)
        self.reader = RequestReader(self.encoder)
        self.runner = BatchRunner(self.encoder, self._run_model)
        self._warm_up()

    def _warm_up(self):
        """Answer two requests without the model, as the first calls of NumPy are slow.

        Triton's own warm-up may not call another model, on which Triton 2.51 crashes.
        """
        encoder = self.encoder
        lists = ("item_ids", "scores") if encoder.spec["ranks_items"] else ()
        columns = len(lists) + self.runner.width + len(self.runner.targets)
        columns += len(self.runner.item_targets)
        output = np.full((1, columns), FIRST_ITEM, np.int32)
        runner = BatchRunner(encoder, lambda _: output)
        for ids in (encoder.items[:1], encoder.items[:1].repeat(5)):
            request = self.reader.read({"item_id": ids[np.newaxis]})
            response_tensors(request, runner([request]), encoder, lists)

    def execute(self, requests):
        responses = [None] * len(requests)
        accepted = []
        for index, request in enumerate(requests):
            try:
                # a loop over the sent inputs costs less than a lookup of each possible one
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                accepted.append((index, self.reader.read(tensors)))
            except Exception as error:
                responses[index] = _failure(error)
        results = self._recommend([request for _, request in accepted])
        for (index, request), result in zip(accepted, results, strict=True):
            if isinstance(result, Exception):
                responses[index] = _failure(result)
                continue
            outputs = requests[index].requested_output_names()
            tensors = response_tensors(request, result, self.encoder, outputs)
            responses[index] = pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor(name, array) for name, array in tensors.items()]
            )
        return responses

    def _recommend(self, requests):
        """Return recommendations or an exception for each request."""
        if not requests:
            return []
        try:
            whole = self.runner(requests)
        except Exception as error:
            if len(requests) == 1 or isinstance(error, NotLoadedError):
                return [error] * len(requests)
            # a request that fails must not fail the others
            return [result for request in requests for result in self._recommend([request])]
        if len(requests) == 1:
            return [whole]
        ends = np.cumsum([len(request.rows.lengths) for request in requests])[:-1]
        parts = zip(*(np.split(array, ends) for array in whole), strict=True)
        return [Recommendations(*part) for part in parts]

    def _run_model(self, packed):
        """Run the model on one batch."""
        inputs = [pb_utils.Tensor(INPUT, packed)]
        deadline = time.monotonic() + LOADING_SECONDS
        while True:
            request = pb_utils.InferenceRequest(
                model_name=self.encoder.spec["model"],
                requested_output_names=[OUTPUT],
                inputs=inputs,
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            )
            response = request.exec()
            if not response.has_error():
                return pb_utils.get_output_tensor_by_name(response, OUTPUT).as_numpy()
            message = response.error().message()
            if "is not ready" not in message and "unknown model" not in message:
                raise ModelError(message)
            if time.monotonic() > deadline:
                raise NotLoadedError(message)
            time.sleep(0.05)


def _encoder(directory):
    """Return the encoder of the repository: tables, or the user's NVTabular workflow."""
    if not (directory / "workflow").is_dir():
        return Encoder(directory)
    from request_runtime.workflows.encoder import WorkflowEncoder

    return WorkflowEncoder(directory)


class ModelError(Exception):
    """Error of the model."""


class NotLoadedError(Exception):
    """The model is not loaded."""


def _failure(error):
    if isinstance(error, RequestError):
        return pb_utils.InferenceResponse(
            error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        )
    line = " ".join(str(error).split())[:300] or type(error).__name__
    pb_utils.Logger.log_error(_escaped(f"{type(error).__name__}: {line}"))
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(line, pb_utils.TritonError.INTERNAL)
    )


def _escaped(line):
    r"""Line of a log: an escape such as \x1b in place of a letter that is not printed."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in line
    )
