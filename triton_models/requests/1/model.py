"""Triton adapter: raw sessions in, lists of raw item ids out; asks the model in between.

All requests of an execution are encoded together and go to the model as one. Triton's own
ensemble would take each of them through three models by itself, which on a CPU costs more than
the work.
"""

import sys
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # a repository may be mounted read-only
sys.path.insert(0, str(Path(__file__).resolve().parent))

from front.answer import Lists, answers  # noqa: E402  (beside this file in a repository)
from front.encoder import Encoder  # noqa: E402
from front.errors import RequestError  # noqa: E402
from front.program import Program  # noqa: E402
from front.request import Reader  # noqa: E402

OUTPUTS = ["numbers__0", "items__1"]
LOADING_SECONDS = 60
"""How long a request waits for the model beside this one, which loads at the same time."""


class TritonPythonModel:
    """Answers all requests of an execution in one pass of the model."""

    def initialize(self, args):
        directory = Path(__file__).resolve().parent
        self.encoder = Encoder(directory)
        self.reader = Reader(self.encoder)
        self.program = Program(self.encoder, self._ask)

    def execute(self, requests):
        responses = [None] * len(requests)
        accepted = []
        for index, request in enumerate(requests):
            try:
                accepted.append((index, self.reader.read(self._tensors(request))))
            except RequestError as error:
                responses[index] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
        try:
            found = self.program([request for _, request in accepted]) if accepted else None
        except ModelError as error:
            for index, _ in accepted:
                responses[index] = _failure(str(error), pb_utils.TritonError.INTERNAL)
            return responses
        first = 0
        for index, request in accepted:
            last = first + len(request.rows.lengths)
            lists = Lists(*(values[first:last] for values in found))
            wanted = requests[index].requested_output_names()
            responses[index] = pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor(name, values)
                    for name, values in answers(request, lists, self.encoder.items).items()
                    if name in wanted
                ]
            )
            first = last
        return responses

    def _tensors(self, request):
        # `inputs` holds what was sent; to look for each that might have been costs more
        return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def _ask(self, inputs):
        """One pass of the model."""
        tensors = [pb_utils.Tensor(name, values) for name, values in inputs.items()]
        until = time.monotonic() + LOADING_SECONDS
        while True:
            request = pb_utils.InferenceRequest(
                model_name=self.encoder.spec["model"],
                requested_output_names=OUTPUTS,
                inputs=tensors,
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            )
            response = request.exec()
            if not response.has_error():
                return [_array(response, name) for name in OUTPUTS]
            message = response.error().message()
            loading = "is not ready" in message or "unknown model" in message
            if not loading or time.monotonic() > until:
                raise ModelError(message)
            time.sleep(0.05)


class ModelError(Exception):
    """What the model said."""


def _array(response, name):
    return pb_utils.get_output_tensor_by_name(response, name).as_numpy()


def _failure(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
