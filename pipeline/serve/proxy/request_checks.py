"""Checks of requests that end or block Triton 2.51, see docs/serving.md, and their default outputs.

They refuse what Triton cannot stand and nothing else: the request runtime checks what a request
says.
"""

import json
import zlib
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest

from pipeline.serve.client.answers import OUTPUTS
from pipeline.serve.proxy.session_names import session_of, session_of_message

MAX_BODY_BYTES = 64 << 20
"""Largest body of HTTP and message of gRPC, inflated."""
MAX_KEYS = 1_000
"""Most keys of a JSON object: Triton takes quadratic time in them."""
CLASSIFICATION = "classification"
"""Parameter of an output. Asked of text, it ends Triton by a division by zero."""
NO_CLASSIFICATION = (
    "classification is not supported: lists are ranked already. Leave the parameter out."
)
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_ANY_WINDOW_BITS = zlib.MAX_WBITS | 32
"""Of both: zlib sees by the first bytes which one it is."""
_JSON_OUTPUTS = [{"name": name} for name in OUTPUTS]
_BINARY_OUTPUTS = [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS]
_MESSAGE_OUTPUTS = ModelInferRequest(
    outputs=[ModelInferRequest.InferRequestedOutputTensor(name=name) for name in OUTPUTS]
).SerializeToString()


class RefusedRequestError(ValueError):
    """A request that does not reach Triton, with the reason."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status
        """Status of HTTP."""


class CheckedBody(NamedTuple):
    """Body of a request as Triton gets it."""

    content: bytes
    json_length: int | None
    """Size of the JSON before binary tensors, None where the body is JSON alone."""
    session: str | None = None
    """Session that the parameters of the request name."""


class CheckedMessage(NamedTuple):
    """Message of gRPC as Triton gets it."""

    content: bytes
    model: str = ""
    """Name of the model that the message has inputs for; empty for other messages."""
    version: str = ""
    """Version that it asks for, empty for the served one."""
    session: str | None = None
    """Session that the parameters of the request name."""


def inflate(body: bytes, encoding: str) -> bytes:
    """Return the content of a body with a Content-Encoding; a bounded part of it is inflated."""
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise RefusedRequestError("Content-Encoding is not one of gzip and deflate.", 415)
    return _inflate(body, _WINDOW_BITS[encoding], f"body is not {encoding}")


def inflate_message(message: bytes) -> bytes:
    """Return the content of a compressed message of gRPC; a bounded part of it is inflated."""
    return _inflate(message, _ANY_WINDOW_BITS, "message is not gzip or deflate")


def _inflate(packed: bytes, window_bits: int, refusal: str) -> bytes:
    stream = zlib.decompressobj(window_bits)
    what = refusal.split()[0]
    try:
        content = stream.decompress(packed, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise RefusedRequestError(f"the {refusal}") from None
    if len(content) > MAX_BODY_BYTES:
        raise RefusedRequestError(f"the {what} inflates to more than {MAX_BODY_BYTES} bytes.", 413)
    if not stream.eof:
        raise RefusedRequestError(f"the {what} ends within its compressed content")
    return content


def check_body(
    body: bytes, json_lengths: list[str], model: str = "", ranking_models: Container[str] = ()
) -> CheckedBody:
    """Check the body of a POST; `json_lengths` are the Inference-Header-Content-Length headers.

    JSON that Python and Triton could read differently, such as an object with a key twice, is
    refused. A request for one of the models that recommend gets `OUTPUTS` if it names no outputs.
    """
    head = body
    if json_lengths:
        if len(json_lengths) > 1 or not (json_lengths[0].isascii() and json_lengths[0].isdecimal()):
            raise RefusedRequestError("Inference-Header-Content-Length is not one whole number")
        length = json_lengths[0].lstrip("0")
        if not length or len(length) > len(str(len(body))) or int(length) > len(body):
            raise RefusedRequestError("Inference-Header-Content-Length is not within the body")
        head = body[: int(length)]
    request = _read_json(head) if head else None
    session = None
    if isinstance(request, dict):
        session = session_of(request.get("parameters"))
        _check_shapes(request.get("inputs"), len(body))
        _check_outputs(request.get("outputs"))
        if not request.get("outputs", ()) and model in ranking_models:
            body, head = _with_outputs(body, head, request)
    return CheckedBody(body, len(head) if json_lengths else None, session)


def check_message(message: bytes, ranking_models: Container[str] = ()) -> CheckedMessage:
    """Check a message of gRPC.

    A request for one of the models that recommend gets `OUTPUTS` if it names no outputs. A message
    of another method than ModelInfer has no inputs, or is none of ModelInfer at all.
    """
    try:
        request = ModelInferRequest.FromString(message)
    except DecodeError:
        if CLASSIFICATION.encode() in message:
            raise RefusedRequestError("the message is no ModelInferRequest") from None
        return CheckedMessage(message)
    if any(CLASSIFICATION in output.parameters for output in request.outputs):
        raise RefusedRequestError(NO_CLASSIFICATION)
    if not request.inputs:
        return CheckedMessage(message)
    name, session = request.model_name, session_of_message(request.parameters)
    if not request.outputs and name in ranking_models:
        # messages one after the other are one message with the fields of both
        message += _MESSAGE_OUTPUTS
    return CheckedMessage(message, name, request.model_version, session)


def for_model(message: bytes, name: str) -> bytes:
    """Return a message that asks another model: its last name counts."""
    return message + ModelInferRequest(model_name=name).SerializeToString()


def _read_json(head: bytes) -> Any:
    try:
        # bytes that are no UTF-8 are left to Triton
        text = head.decode("utf-8", "surrogateescape")
        return json.loads(text, strict=False, object_pairs_hook=_unique_keys)
    except RefusedRequestError:
        raise
    except RecursionError:
        raise RefusedRequestError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise RefusedRequestError(f"the body is not JSON: {error}") from None


def _with_outputs(body: bytes, head: bytes, request: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return body and JSON with `OUTPUTS` as the first key, all else as it was sent."""
    parameters = request.get("parameters")
    is_binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    outputs = json.dumps(_BINARY_OUTPUTS if is_binary else _JSON_OUTPUTS)
    start = head.index(b"{") + 1
    longer = head[:start] + f'"outputs": {outputs}, '.encode() + head[start:]
    return longer + body[len(head) :], longer


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise RefusedRequestError(
            f"an object of the JSON has {len(pairs)} keys, expected at most {MAX_KEYS}"
        )
    values = dict(pairs)
    if len(values) < len(pairs):
        raise RefusedRequestError("an object of the JSON has a key twice")
    return values


def _dicts(values: Any) -> Iterable[dict[str, Any]]:
    return (v for v in values if isinstance(v, dict)) if isinstance(values, list) else ()


def _check_shapes(inputs: Any, num_bytes: int) -> None:
    """Refuse a shape with more values than a body has bytes: Triton allocates them all at once."""
    for tensor in _dicts(inputs):
        size = 1
        for dimension in shape if isinstance(shape := tensor.get("shape"), list) else ():
            if not isinstance(dimension, int):
                raise RefusedRequestError("a shape holds something else than whole numbers")
            size *= max(1, abs(dimension))
            if size > num_bytes:
                raise RefusedRequestError(
                    f"a shape has {size} values or more, and the request {num_bytes} bytes"
                )


def _check_outputs(outputs: Any) -> None:
    for output in _dicts(outputs):
        parameters = output.get("parameters")
        if isinstance(parameters, dict) and CLASSIFICATION in parameters:
            raise RefusedRequestError(NO_CLASSIFICATION)
