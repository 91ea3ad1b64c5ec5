"""Rows of the request log from the bytes of a request and its answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from pipeline.serve.proxy.request_checks import inflate, inflate_message
from pipeline.serve.runtime.lookups import MISSING_INTEGER

MAX_ID_CHARACTERS = 256
"""Largest number of characters of an id that are logged."""
GRPC_PREFIX_BYTES = 5
"""Bytes before each message: whether it is compressed, and its size."""
_MAX_ANSWER_BYTES = 64 << 20
"""Largest answer after decompression that is logged."""
_NUMBERS = {"INT64": "<i8", "INT32": "<i4"}
_REQUEST_TENSORS = ("item_id", "session_id", "length")


@dataclass(slots=True)
class Exchange:
    """A request to log, and the received part of its answer."""

    protocol: Literal["http", "grpc"]
    time_microseconds: int
    """Time of the request since 1970 UTC."""
    session: str | None
    """Session id in the parameters of the request."""
    content: bytes
    """HTTP body or gRPC message."""
    experiment: str | None = None
    arm: str | None = None
    """Arm of the experiment to which the session belongs."""
    model: str | None = None
    """Name of the model in the log, None for the one in the answer."""
    json_length: int | None = None
    """Size of the JSON before binary tensors of HTTP, None if the body is only JSON."""
    answer: bytearray = field(default_factory=bytearray)
    """HTTP headers and body, or gRPC DATA."""

    @property
    def num_bytes(self) -> int:
        """Size of request and answer."""
        return len(self.content) + len(self.answer)


class Row(NamedTuple):
    """One session of a request, in the order of the columns of the log."""

    time: int
    session: str | None
    model: str
    version: int
    experiment: str | None
    arm: str | None
    k: int
    items: list[str]
    recommendations: list[str]


class _Tensor(NamedTuple):
    shape: list[int]
    values: list[str | None]
    """Flat; None is a missing id."""


class _Tensors(NamedTuple):
    model: str
    version: str
    tensors: dict[str, _Tensor]


def read_rows(exchange: Exchange) -> list[Row]:
    """Return the rows of an exchange, none for an error or an answer without lists.

    ValueError, or another exception, for bytes that are not a request and answer of these models.
    """
    is_http = exchange.protocol == "http"
    answer = _http_answer(exchange.answer) if is_http else _grpc_answer(exchange.answer)
    if answer is None or "item_ids" not in answer.tensors:
        return []
    if is_http:
        request = _read_body(exchange.content, exchange.json_length, "inputs", _REQUEST_TENSORS)
    else:
        message = ModelInferRequest.FromString(exchange.content)
        request = _read_message(
            message, message.inputs, message.raw_input_contents, _REQUEST_TENSORS
        )
    sessions, items = zip(*_sessions(request.tensors), strict=True)
    lists = _lists(answer.tensors["item_ids"], len(items))
    name = exchange.model or answer.model
    version, k = int(answer.version), len(lists[0])
    facts = (exchange.experiment, exchange.arm, k)
    return [
        Row(
            exchange.time_microseconds,
            _clean(exchange.session) if exchange.session is not None else session,
            name,
            version,
            *facts,
            [item for item in sequence if item is not None],
            [item for item in ranked if item is not None],
        )
        for session, sequence, ranked in zip(sessions, items, lists, strict=True)
    ]


def _sessions(
    tensors: dict[str, _Tensor],
) -> Iterator[tuple[str | None, list[str | None]]]:
    """Yield session id and items of each session, in a flat request by first occurrence."""
    items, ids = tensors["item_id"], tensors.get("session_id")
    rows, width = items.shape
    if ids is not None and ids.shape == items.shape and rows == 1 and width > 1:
        flat: dict[str | None, list[str | None]] = {}
        for session, item in zip(ids.values, items.values, strict=True):
            flat.setdefault(session, []).append(item)
        yield from flat.items()
        return
    lengths = [width] * rows
    if "length" in tensors:
        lengths = [int(n or 0) for n in tensors["length"].values]
    names = [None] * rows if ids is None else ids.values
    for row, (session, length) in enumerate(zip(names, lengths, strict=True)):
        yield session, items.values[row * width : row * width + length]


def _lists(tensor: _Tensor, count: int) -> list[list[str | None]]:
    # a flat request has its lists concatenated in a single row
    if tensor.shape[0] not in (1, count) or len(tensor.values) % count:
        raise ValueError("the answer has another number of lists")
    size = len(tensor.values) // count
    return [tensor.values[i * size : (i + 1) * size] for i in range(count)]


def _http_answer(answer: bytearray) -> _Tensors | None:
    """Return the tensors of an answer, None for an error."""
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    if status.split()[1] != b"200":
        return None
    headers = {}
    for name, _, value in (line.partition(b":") for line in lines):
        headers[name.strip().lower()] = value.strip().decode("latin-1").lower()
    body = inflate(body, headers.get(b"content-encoding", ""), _MAX_ANSWER_BYTES)
    length = headers.get(b"inference-header-content-length")
    return _read_body(body, None if length is None else int(length), "outputs", ("item_ids",))


def _read_body(content: bytes, length: int | None, key: str, names: tuple[str, ...]) -> _Tensors:
    facts = json.loads(content[:length].decode("utf-8", "replace"), strict=False)
    start = len(content) if length is None else length
    tensors = {}
    for tensor in facts[key]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        stop = start + (size or 0)
        if tensor["name"] in names:
            kind = tensor["datatype"]
            if size is None:
                values = [_text(value) for value in _flat(tensor["data"])]
            else:
                values = _raw_values(content[start:stop], kind)
            tensors[tensor["name"]] = _Tensor(tensor["shape"], values)
        start = stop
    return _Tensors(facts.get("model_name", ""), facts.get("model_version", ""), tensors)


def _grpc_answer(answer: bytearray) -> _Tensors | None:
    """Return the tensors of an answer, None for an error and for answers of a stream."""
    message = bytes(answer[GRPC_PREFIX_BYTES:])
    if not answer or len(message) != int.from_bytes(answer[1:GRPC_PREFIX_BYTES]):
        return None
    if answer[0]:
        message = inflate_message(message, _MAX_ANSWER_BYTES)
    try:
        response = ModelInferResponse.FromString(message)
    except DecodeError:  # ModelStreamInferResponse
        return None
    return _read_message(response, response.outputs, response.raw_output_contents, ("item_ids",))


def _read_message(message: Any, fields: Any, raw: Any, names: tuple[str, ...]) -> _Tensors:
    tensors = {}
    for index, tensor in enumerate(fields):
        if tensor.name not in names:
            continue
        if raw:
            values = _raw_values(raw[index], tensor.datatype)
        else:
            contents = tensor.contents
            typed = {"INT64": contents.int64_contents, "INT32": contents.int_contents}
            values = [_text(value) for value in typed.get(tensor.datatype, contents.bytes_contents)]
        tensors[tensor.name] = _Tensor(list(tensor.shape), values)
    return _Tensors(message.model_name, message.model_version, tensors)


def _raw_values(content: bytes, kind: str) -> list[str | None]:
    """Return the values of a tensor in Triton's binary form."""
    if kind != "BYTES":
        return [_text(value) for value in np.frombuffer(content, _NUMBERS[kind]).tolist()]
    values, start = [], 0
    while start < len(content):
        stop = start + 4 + int.from_bytes(content[start : start + 4], "little")
        values.append(_text(content[start + 4 : stop]))
        start = stop
    return values


def _flat(values: Any) -> Iterator[Any]:
    """Yield the values of nested lists."""
    stack = [iter(values)]
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def _text(value: Any) -> str | None:
    """Return an id as text, None for a missing one."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif not isinstance(value, str):
        return None if value in (None, MISSING_INTEGER) else str(value)[:MAX_ID_CHARACTERS]
    return _clean(value) or None


def _clean(text: str) -> str:
    """Return bounded UTF-8 text without NUL, which the server removes too."""
    text = text[:MAX_ID_CHARACTERS].replace("\0", "")
    return text.encode("utf-8", "replace").decode()
