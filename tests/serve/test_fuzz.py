"""Nothing that a client sends ends the server, or keeps others from their answers."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from pipeline.serve.client.client import Client
from pipeline.serve.triton.server import TritonServer
from tests.conftest import SESSION
from tests.serve.fuzz import HttpAsker, grpc_requests, http_requests


@contextmanager
def someone_else(server: TritonServer) -> Iterator[list[int]]:
    """A client that asks an ordinary question all the time, and must get its answer."""
    answered, errors, over = [0], [], threading.Event()
    with Client(f"grpc://{server.grpc_url}") as client:
        expected = client.recommend([SESSION], 5).items.tolist()

        def ask() -> None:
            try:
                while not over.is_set():
                    assert client.recommend([SESSION], 5).items.tolist() == expected
                    answered[0] += 1
            except BaseException as error:
                errors.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        yield answered
        over.set()
        asking.join(60)
        assert client.recommend([SESSION], 5).items.tolist() == expected
    assert errors == []


def malformed(server: TritonServer, seed: int, count: int) -> Counter[str]:
    """Half over HTTP, half over gRPC; what came back, by status."""
    import grpc

    counts: Counter[str] = Counter()
    ask = HttpAsker(server.http_url)
    for request in http_requests(seed, count // 2):
        counts[str(ask(*request))] += 1
    with grpc.insecure_channel(server.grpc_url) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        for number, message in enumerate(grpc_requests(seed, count - count // 2)):
            if number % 10:
                code = infer.future(message, timeout=30).code()
            else:
                call = stream(iter([message]), timeout=30)
                with suppress(grpc.RpcError):
                    list(call)
                code = call.code()
            counts["answered" if code is grpc.StatusCode.OK else code.name] += 1
    assert not {"DEADLINE_EXCEEDED", "UNAVAILABLE"} & set(counts), counts
    return counts


@pytest.mark.parametrize(
    "count", [600, pytest.param(10_000, marks=pytest.mark.slow)], ids=["some", "ten thousand"]
)
def test_malformed_requests_get_an_error_or_an_answer(server: TritonServer, count: int) -> None:
    before = server.pid
    with someone_else(server) as answered:
        counts = malformed(server, 1, count)
    print(dict(counts))
    assert sum(counts.values()) == count
    assert {"200", "400"} <= set(counts)
    assert server.pid == before
    assert server.is_alive()
    assert answered[0] > 20
