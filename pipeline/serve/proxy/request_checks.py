"""Checks of requests that end or block Triton 2.51, see docs/serving.md.

They refuse what Triton cannot stand and nothing else: the request runtime checks what a request
says.
"""

import json
import zlib
from collections.abc import Iterable
from typing import Any

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


class RefusedRequestError(ValueError):
    """A request that does not reach Triton, with the reason."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status
        """Status of HTTP."""


def inflate(body: bytes, encoding: str) -> bytes:
    """Return the content of a body with a Content-Encoding; a bounded part of it is inflated."""
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise RefusedRequestError("Content-Encoding is not one of gzip and deflate.", 415)
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        content = stream.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise RefusedRequestError(f"the body is not {encoding}") from None
    if len(content) > MAX_BODY_BYTES:
        raise RefusedRequestError(f"the body inflates to more than {MAX_BODY_BYTES} bytes.", 413)
    if not stream.eof:
        raise RefusedRequestError(f"the body ends within its {encoding}")
    return content


def check_body(body: bytes, json_lengths: list[str]) -> None:
    """Check the body of a POST; `json_lengths` are the Inference-Header-Content-Length headers.

    JSON that Python and Triton could read differently, such as an object with a key twice, is
    refused.
    """
    head = body
    if json_lengths:
        if len(json_lengths) > 1 or not (json_lengths[0].isascii() and json_lengths[0].isdecimal()):
            raise RefusedRequestError("Inference-Header-Content-Length is not one whole number")
        length = json_lengths[0].lstrip("0")
        if not length or len(length) > len(str(len(body))) or int(length) > len(body):
            raise RefusedRequestError("Inference-Header-Content-Length is not within the body")
        head = body[: int(length)]
    if not head:
        return
    try:
        # bytes that are no UTF-8 are left to Triton
        text = head.decode("utf-8", "surrogateescape")
        request = json.loads(text, strict=False, object_pairs_hook=_unique_keys)
    except RefusedRequestError:
        raise
    except RecursionError:
        raise RefusedRequestError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise RefusedRequestError(f"the body is not JSON: {error}") from None
    if isinstance(request, dict):
        _check_shapes(request.get("inputs"), len(body))
        _check_outputs(request.get("outputs"))


def check_message(message: bytes) -> None:
    """Check a ModelInfer message of gRPC; one without the word `classification` is not parsed."""
    if CLASSIFICATION.encode() not in message:
        return
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2

    try:
        request = service_pb2.ModelInferRequest.FromString(message)
    except DecodeError:
        raise RefusedRequestError("the message is no ModelInferRequest") from None
    if any(CLASSIFICATION in output.parameters for output in request.outputs):
        raise RefusedRequestError(NO_CLASSIFICATION)


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
