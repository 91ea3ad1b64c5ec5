"""Answers of a hostile server: one line, in seconds and little memory, over HTTP and gRPC."""

import asyncio
import gzip
import json
import re
import resource
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from pipeline.core.errors import ServingError
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.client.async_client import AsyncClient
from pipeline.serve.client.client import Client
from pipeline.serve.client.served_model import ServedModel

SECONDS = 1.0
"""Time-out of the clients."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SERVED = ServedModel(
    recipe=Preprocess.from_dict({}, "recipe"),
    types={"item_id": "int64"},
    scopes={},
    timestamp_type=None,
    default_k=10,
    max_k=10,
    ranks_items=True,
    targets=[],
    item_targets=[],
    max_batch=8,
    version=1,
)


def whole(body: bytes, head: bytes = HEAD) -> Iterator[bytes]:
    yield head + b"Content-Length: %d\r\n\r\n" % len(body)
    yield body


def endless_body() -> Iterator[bytes]:
    yield HEAD + b"Content-Length: 1000000000000\r\n\r\n"
    while True:
        yield bytes(1 << 20)


def endless_chunks() -> Iterator[bytes]:
    yield HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"100000\r\n" + bytes(1 << 20) + b"\r\n"


def dripping_body() -> Iterator[bytes]:
    yield HEAD + b"Content-Length: 1000\r\n\r\n"
    while True:
        time.sleep(SECONDS / 5)
        yield b" "


def dripping_headers() -> Iterator[bytes]:
    yield HEAD
    while True:
        time.sleep(SECONDS / 5)
        yield b"X: y\r\n"


def compressed() -> Iterator[bytes]:
    return whole(gzip.compress(bytes(1 << 24)), HEAD + b"Content-Encoding: gzip\r\n")


def deep() -> Iterator[bytes]:
    return whole(b"[" * 1_000_000)


def deep_error() -> Iterator[bytes]:
    return whole(b'{"error":' * 100_000, HEAD.replace(b"200 OK", b"500 Error"))


def large_json() -> Iterator[bytes]:
    return whole(b"[" + b"{}," * 2_000_000 + b"{}]")


def other_json() -> Iterator[bytes]:
    return whole(b"[1, 2]")


def no_http() -> Iterator[bytes]:
    yield b"\x00\xff" * 1_000


LARGE = r"more than 64 MiB|did not answer within"  # the latter where other work shares the cores
ANSWERS = [
    (endless_body, LARGE),
    (endless_chunks, LARGE),
    (dripping_body, "did not answer within 1 seconds"),
    (dripping_headers, "did not answer within 1 seconds"),
    (compressed, "is compressed"),
    (deep, "levels of JSON"),
    (deep_error, "levels of JSON"),
    (large_json, "more than the 4,194,304"),
    (other_json, "was not exported by this version"),
    (no_http, "does not speak Triton's http"),
]


@contextmanager
def http_server(answer: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            with suppress(OSError):
                for part in answer():
                    self.request.sendall(part)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refusal(
    url: str,
    kind: type[Client | AsyncClient],
    *,
    infers: bool = False,
    seconds: float = SECONDS,
) -> str:
    """Message for the description of a model, or for an answer of one."""
    tensors = {"item_id": np.zeros((1, 1), np.int64)}

    def ask() -> None:
        with Client(url, timeout=seconds) as client:
            client._served = SERVED if infers else None
            assert client.infer(tensors) if infers else client.served

    async def ask_async() -> None:
        async with AsyncClient(url, timeout=seconds) as client:
            client._served = SERVED if infers else None
            await (client.infer(tensors) if infers else client.served())

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ServingError) as caught:
        ask() if kind is Client else asyncio.run(ask_async())
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(("answer", "words"), ANSWERS)
def test_answers_over_http_are_bounded(
    answer: Callable[[], Iterator[bytes]], words: str, kind: type[Client | AsyncClient]
) -> None:
    with http_server(answer) as url:
        assert re.search(words, refusal(url, kind))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "output",
    [
        {"shape": [1 << 40, 1 << 40], "parameters": {"binary_data_size": 8}},
        {"shape": [-1, 3], "parameters": {"binary_data_size": 8}},
        {"shape": [1, 1], "parameters": {"binary_data_size": -5}},
        {"shape": [1, 1], "parameters": {"binary_data_size": 1 << 60}},
        {"shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}},
        {"shape": "x"},
    ],
)
def test_tensors_that_are_not_what_they_say_are_one_line(
    output: dict[str, Any], kind: type[Client | AsyncClient]
) -> None:
    names = ("item_ids", "scores", "num_known")
    outputs = [{"datatype": "INT64", "name": name} | output for name in names]
    header = json.dumps({"model_version": "1", "outputs": outputs}).encode()
    head = HEAD + b"Inference-Header-Content-Length: %d\r\n" % len(header)
    with http_server(lambda: whole(header + b"\xff" * 24, head)) as url:
        assert "does not speak Triton's http" in refusal(url, kind, infers=True)


def large_description() -> bytes:
    config = service_pb2.ModelConfigResponse()
    for number in range(100_000):
        config.config.parameters[f"key-{number}"].string_value = "a" * 50
    return bytes(config.SerializeToString())


def shape_of_billions() -> bytes:
    answer = service_pb2.ModelInferResponse(model_version="1")
    for name in ("item_ids", "scores", "num_known"):
        answer.outputs.add(name=name, datatype="INT64", shape=[1 << 40, 1 << 20])
        answer.raw_output_contents.append(bytes(8))
    return bytes(answer.SerializeToString())


@contextmanager
def grpc_server(answer: Callable[[], bytes], compression: grpc.Compression) -> Iterator[str]:
    class Handler(grpc.GenericRpcHandler):
        def service(self, _details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer())

    options = [("grpc.max_send_message_length", -1)]
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, [Handler()], options=options, compression=compression)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"grpc://127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("answer", "compression", "words"),
    [
        (lambda: bytes(65 << 20), grpc.Compression.NoCompression, "larger than max"),
        (lambda: bytes(65 << 20), grpc.Compression.Gzip, "ompress"),
        (large_description, grpc.Compression.NoCompression, "more than the 4,194,304"),
        (shape_of_billions, grpc.Compression.NoCompression, "does not speak Triton's grpc"),
        (lambda: b"\xff" * 100, grpc.Compression.NoCompression, "he server "),
        (lambda: time.sleep(2) or b"", grpc.Compression.NoCompression, "did not answer within 1"),
    ],
)
def test_answers_over_grpc_are_bounded(
    answer: Callable[[], bytes],
    compression: grpc.Compression,
    words: str,
    kind: type[Client | AsyncClient],
) -> None:
    with grpc_server(answer, compression) as url:
        seconds = SECONDS if "did not answer" in words else 4.5
        infers = answer is shape_of_billions
        assert words in refusal(url, kind, infers=infers, seconds=seconds)
