"""Bounds of a server's answers: bytes, seconds, and the size and depth of their JSON.

Triton's clients read an answer of any length, and their time-out over HTTP restarts with each
packet.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import Any

import numpy as np

from pipeline.core.errors import ServingError

MOST_BYTES = 64 << 20
"""Largest bytes of an answer."""
MOST_JSON_BYTES = 4 << 20
"""Largest bytes of its JSON, without binary tensors, or of the description of a model."""
_MOST_LEVELS = 200
GRPC_OPTIONS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # no compression
]


class _Response:
    """Whole answer over HTTP, with the attributes that Triton's clients read."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = self.status_code = status
        self.headers = headers
        self.get = headers.get
        self._rest = body

    def read(self, length: int = -1) -> bytes:
        """Return the next `length` bytes, or all the rest."""
        end = len(self._rest) if length < 0 else length
        part, self._rest = self._rest[:end], self._rest[end:]
        return part


class _AwaitedResponse(_Response):
    async def read(self) -> bytes:  # type: ignore[override]
        return super().read()


def bound_http(client: Any, timeout: float) -> None:
    """Bound the answers that tritonclient's client for HTTP reads."""
    sockets: Any = import_module("gevent.socket")  # it has no types

    class BoundedSocket(sockets.socket):
        """Socket with bounds of bytes and seconds from the time when a request was sent."""

        def sendall(self, *arguments: Any) -> Any:
            self._num_bytes, self._end = 0, time.monotonic() + timeout
            return super().sendall(*arguments)

        def recv(self, *arguments: Any) -> bytes:
            seconds = self._end - time.monotonic()
            if seconds <= 0:
                raise TimeoutError
            self.settimeout(seconds)
            data: bytes = super().recv(*arguments)
            self._num_bytes += len(data)
            _check_size(self._num_bytes)
            return data

    client._client_stub._connection_pool._create_tcp_socket = BoundedSocket

    def bounded(send: Callable[..., Any]) -> Callable[..., _Response]:
        @wraps(send)
        def read(*arguments: Any, **options: Any) -> _Response:
            response = send(*arguments, **options)
            headers = {name.lower(): value for name, value in response.headers}
            _check_encoding(headers)
            body = response.read()
            _check_json(headers, body)
            return _Response(response.status_code, _Headers(headers), body)

        return read

    client._get, client._post = bounded(client._get), bounded(client._post)


def bound_async_http(client: Any) -> None:
    """Bound the bytes that tritonclient's asyncio client reads; its caller bounds the time."""

    def bounded(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[_Response]]:
        @wraps(send)
        async def read(*arguments: Any, **options: Any) -> _Response:
            response = await send(*arguments, **options)
            headers = {name.lower(): value for name, value in response.headers.items()}
            body = bytearray()
            try:
                _check_encoding(headers)
                async for piece in response.content.iter_chunked(1 << 16):
                    body += piece
                    _check_size(len(body))
            except ServingError:
                response.close()
                raise
            _check_json(headers, bytes(body))
            return _AwaitedResponse(response.status, _Headers(headers), bytes(body))

        return read

    client._get, client._post = bounded(client._get), bounded(client._post)


class _Headers(dict[str, str]):
    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


def check_description(num_bytes: int) -> None:
    """ServingError for the description of a model that is too large."""
    if num_bytes > MOST_JSON_BYTES:
        raise ServingError(
            f"The server sent {num_bytes:,} bytes to describe an answer or its model, more than "
            f"the {MOST_JSON_BYTES:,} that are read."
        )


def _check_size(num_bytes: int) -> None:
    if num_bytes > MOST_BYTES:
        raise ServingError(
            f"The server's answer has more than {MOST_BYTES >> 20} MiB. Ask for fewer sessions at "
            "a time, or check the address."
        )


def _check_encoding(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ServingError(
            f"The server's answer is compressed ({encoding[:20]!r}), which was not asked for."
        )


def _check_json(headers: Mapping[str, str], body: bytes) -> None:
    """ServingError for JSON that is too large or too deep, on which the parser would crash."""
    length = headers.get("inference-header-content-length")
    content = body if length is None else body[: max(0, int(length))]
    check_description(len(content))
    codes = np.frombuffer(content, np.uint8)
    steps = np.isin(codes, list(b"[{")).astype(np.int8) - np.isin(codes, list(b"]}"))
    if len(codes) and np.cumsum(steps, dtype=np.int32).max() > _MOST_LEVELS:
        raise ServingError(f"The server's answer has more than {_MOST_LEVELS} levels of JSON.")
