"""Checks for requests that crash or block Triton 2.51, and default outputs of requests.

docs/concepts/proxy.md has the list. The checks refuse nothing else: the request runtime checks the
content of a request.
"""

import json
import zlib
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest

from pipeline.serve.client.answers import OUTPUTS
from pipeline.serve.proxy.limits import DEFAULT_LIMITS, Limits
from pipeline.serve.proxy.session_names import session_of, session_of_message
from pipeline.serve.runtime.request import MAX_REQUEST_VALUES

CLASSIFICATION = "classification"
"""Parameter of an output. For a text tensor, it crashes Triton by a division by zero."""
NO_CLASSIFICATION = (
    "classification is not supported: lists are ranked already. Leave the parameter out."
)
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_ANY_WINDOW_BITS = zlib.MAX_WBITS | 32
"""Window bits with which zlib detects gzip or deflate."""
_JSON_OUTPUTS = [{"name": name} for name in OUTPUTS]
_BINARY_OUTPUTS = [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS]
_MESSAGE_OUTPUTS = ModelInferRequest(
    outputs=[ModelInferRequest.InferRequestedOutputTensor(name=name) for name in OUTPUTS]
).SerializeToString()


class RefusedRequestError(ValueError):
    """A request that does not reach Triton, with the reason."""

    def __init__(self, reason: str, status: int = 400, *, retry_seconds: int = 0) -> None:
        super().__init__(reason)
        self.status = status
        """HTTP status."""
        self.retry_seconds = retry_seconds
        """Seconds after which the client may retry, 0 if a retry cannot succeed."""


class LargeContentError(Exception):
    """Content that is too large to be checked in the proxy's thread."""


class CheckedBody(NamedTuple):
    """Body of a request for Triton."""

    content: bytes
    json_length: int | None
    """Size of the JSON before binary tensors, None if the body is only JSON."""
    session: str | None = None
    """Session that the parameters of the request name."""


class CheckedMessage(NamedTuple):
    """gRPC message for Triton."""

    content: bytes
    model: str = ""
    """Name of the model whose inputs the message holds, empty for other messages."""
    version: str = ""
    """Requested version, empty for the served one."""
    session: str | None = None
    """Session that the parameters of the request name."""


def inflate(body: bytes, encoding: str, max_bytes: int, large_bytes: int | None = None) -> bytes:
    """Decompress a body with a Content-Encoding, up to a bound.

    RefusedRequestError for more than `max_bytes`, LargeContentError for more than `large_bytes`.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise RefusedRequestError("Content-Encoding is not one of gzip and deflate.", 415)
    return _inflate(body, _WINDOW_BITS[encoding], f"body is not {encoding}", max_bytes, large_bytes)


def inflate_message(message: bytes, max_bytes: int, large_bytes: int | None = None) -> bytes:
    """Decompress a gRPC message, as `inflate` does."""
    refusal = "message is not gzip or deflate"
    return _inflate(message, _ANY_WINDOW_BITS, refusal, max_bytes, large_bytes)


def _inflate(
    packed: bytes, window_bits: int, refusal: str, max_bytes: int, large_bytes: int | None
) -> bytes:
    stream = zlib.decompressobj(window_bits)
    what = refusal.split()[0]
    bound = max_bytes if large_bytes is None else min(max_bytes, large_bytes)
    try:
        content = stream.decompress(packed, bound + 1)
    except zlib.error:
        raise RefusedRequestError(f"the {refusal}") from None
    if bound < len(content) <= max_bytes:
        raise LargeContentError
    if len(content) > max_bytes:
        raise RefusedRequestError(f"the {what} inflates to more than {max_bytes} bytes.", 413)
    if not stream.eof:
        raise RefusedRequestError(f"the {what} ends within its compressed content")
    return content


def check_body(
    body: bytes,
    json_lengths: list[str],
    model: str = "",
    ranking_models: Container[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> CheckedBody:
    """Check the body of a POST; `json_lengths` are the Inference-Header-Content-Length headers.

    JSON that Python and Triton could parse differently, such as a duplicate key, is refused. A
    request for a model that recommends items gets `OUTPUTS` if it names no outputs.
    """
    head = body
    if json_lengths:
        if len(json_lengths) > 1 or not (json_lengths[0].isascii() and json_lengths[0].isdecimal()):
            raise RefusedRequestError("Inference-Header-Content-Length is not one whole number")
        length = json_lengths[0].lstrip("0")
        if not length or len(length) > len(str(len(body))) or int(length) > len(body):
            raise RefusedRequestError("Inference-Header-Content-Length is not within the body")
        head = body[: int(length)]
    request = _read_json(head, limits) if head else None
    session = None
    if isinstance(request, dict):
        session = session_of(request.get("parameters"))
        _check_inputs(request.get("inputs"), len(body), is_bounded=model in ranking_models)
        _check_outputs(request.get("outputs"))
        if not request.get("outputs", ()) and model in ranking_models:
            body, head = _with_outputs(body, head, request)
    return CheckedBody(body, len(head) if json_lengths else None, session)


def check_message(
    message: bytes, ranking_models: Container[str] = (), limits: Limits = DEFAULT_LIMITS
) -> CheckedMessage:
    """Check a message of gRPC.

    A request for a model that recommends items gets `OUTPUTS` if it names no outputs. A message of
    another method than ModelInfer has no inputs, or does not parse as ModelInfer.
    """
    try:
        request = ModelInferRequest.FromString(message)
    except DecodeError:
        if CLASSIFICATION.encode() in message:
            raise RefusedRequestError("the message is no ModelInferRequest") from None
        return CheckedMessage(message)
    _check_counts(request, limits)
    if any(CLASSIFICATION in output.parameters for output in request.outputs):
        raise RefusedRequestError(NO_CLASSIFICATION)
    if not request.inputs:
        return CheckedMessage(message)
    for tensor in request.inputs:
        _check_shape(tensor.shape, len(message))
    name, session = request.model_name, session_of_message(request.parameters)
    if not request.outputs and name in ranking_models:
        # concatenated messages parse as one message with the fields of both
        message += _MESSAGE_OUTPUTS
    return CheckedMessage(message, name, request.model_version, session)


def for_model(message: bytes, name: str) -> bytes:
    """Return a message for another model: of two names, protobuf takes the last."""
    return message + ModelInferRequest(model_name=name).SerializeToString()


def _read_json(head: bytes, limits: Limits) -> Any:
    if head.count(b"{") + head.count(b"[") > limits.max_brackets:
        raise RefusedRequestError(
            f"the JSON has more than {limits.max_brackets} objects and lists (or brackets in text)"
        )
    if head.count(b",") > limits.max_values:
        raise RefusedRequestError(
            f"the JSON has more than {limits.max_values} values (or commas in text)"
        )

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > limits.max_keys:
            raise RefusedRequestError(
                f"an object of the JSON has {len(pairs)} keys, expected at most {limits.max_keys}"
            )
        values = dict(pairs)
        if len(values) < len(pairs):
            raise RefusedRequestError("an object of the JSON has a key twice")
        return values

    try:
        # Triton checks for invalid UTF-8
        text = head.decode("utf-8", "surrogateescape")
        return json.loads(text, strict=False, object_pairs_hook=unique_keys)
    except RefusedRequestError:
        raise
    except RecursionError:
        raise RefusedRequestError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise RefusedRequestError(f"the body is not JSON: {error}") from None


def _with_outputs(body: bytes, head: bytes, request: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return body and JSON with `OUTPUTS` as the first key, otherwise unchanged."""
    parameters = request.get("parameters")
    is_binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    outputs = json.dumps(_BINARY_OUTPUTS if is_binary else _JSON_OUTPUTS)
    start = head.index(b"{") + 1
    longer = head[:start] + f'"outputs": {outputs}, '.encode() + head[start:]
    return longer + body[len(head) :], longer


def _dicts(values: Any) -> Iterable[dict[str, Any]]:
    return (v for v in values if isinstance(v, dict)) if isinstance(values, list) else ()


def _check_inputs(inputs: Any, num_bytes: int, *, is_bounded: bool) -> None:
    """Refuse inputs that cost Triton more than the client.

    Triton allocates a shape with more values than the body has bytes, and parses values that are
    not tensors or, with `is_bounded`, that the models of the repository refuse.
    """
    if isinstance(inputs, list) and not all(isinstance(tensor, dict) for tensor in inputs):
        raise RefusedRequestError("an input is no object")
    for tensor in _dicts(inputs):
        shape, data = tensor.get("shape"), tensor.get("data")
        if is_bounded and isinstance(data, list) and len(data) > MAX_REQUEST_VALUES:
            raise RefusedRequestError(
                f"an input has {len(data)} values, expected at most {MAX_REQUEST_VALUES}"
            )
        if isinstance(shape, list):
            _check_shape(shape, num_bytes)


def _check_shape(shape: Iterable[Any], num_bytes: int) -> None:
    size = 1
    for dimension in shape:
        if not isinstance(dimension, int):
            raise RefusedRequestError("a shape holds something else than whole numbers")
        size *= max(1, abs(dimension))
        if size > num_bytes:
            raise RefusedRequestError(
                f"a shape has {size} values or more, and the request {num_bytes} bytes"
            )


def _check_counts(request: Any, limits: Limits) -> None:
    """Refuse a message with more than `max_keys` fields of a kind."""
    most = limits.max_keys
    fields = (
        (request.inputs, "inputs"),
        (request.outputs, "outputs"),
        (request.parameters, "parameters"),
        (request.raw_input_contents, "raw inputs"),
    )
    for field, name in fields:
        if len(field) > most:
            raise RefusedRequestError(
                f"the message has {len(field)} {name}, expected at most {most}"
            )
    for tensor in (*request.inputs, *request.outputs):
        if len(tensor.parameters) > most:
            raise RefusedRequestError(
                f"a tensor has {len(tensor.parameters)} parameters, expected at most {most}"
            )


def _check_outputs(outputs: Any) -> None:
    for output in _dicts(outputs):
        parameters = output.get("parameters")
        if isinstance(parameters, dict) and CLASSIFICATION in parameters:
            raise RefusedRequestError(NO_CLASSIFICATION)
