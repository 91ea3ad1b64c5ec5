"""Load test of a server: real requests, counts of both loops, and settings that cannot be."""

import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from pipeline.core.errors import ServingError
from pipeline.serve.load_test import RequestShape, load_test, measure
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import Shop


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("with_repository", [True, False])
def test_random_requests_are_answered_by_a_server_with_and_without_its_tables(
    shop: Shop, server: TritonServer, protocol: str, with_repository: bool
) -> None:
    address = server.http_url if protocol == "http" else server.grpc_url
    repository: Path | None = shop.repository if with_repository else None
    result = load_test(
        f"{protocol}://{address}",
        repository,
        clients=2,
        seconds=0.5,
        shape=RequestShape(sessions=3, interactions=4, k=7),
    )
    facts = result.to_dict()
    assert facts["errors"] == {}
    assert facts["requests"] == len(result.latencies_seconds) > 2
    assert 0 < facts["p50_ms"] <= facts["p95_ms"] <= facts["p99_ms"]
    assert facts["sessions_per_second"] == pytest.approx(3 * result.requests_per_second)


def test_missing_server_is_one_line() -> None:
    with pytest.raises(ServingError, match="No server answers at"):
        load_test(f"grpc://127.0.0.1:{free_ports().grpc}")


class SlowClient:
    """Responds to each request after 20 ms, to every fourth with an error."""

    def __init__(self) -> None:
        self.num_requests = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None: ...

    def send(self, request: dict[str, Any]) -> None:
        time.sleep(0.02)
        self.num_requests += 1
        if self.num_requests % 4 == 0:
            raise ServingError("no")


def test_closed_loop_counts_answers_and_errors_apart() -> None:
    clients: list[SlowClient] = []

    def connect() -> Any:
        clients.append(SlowClient())
        return clients[-1]

    result = measure(connect, 2, [{}], 0.5)
    sent = sum(client.num_requests - 1 for client in clients)  # the first opens the connection
    assert len(clients) == 2
    assert len(result.latencies_seconds) + sum(result.errors.values()) == sent
    assert result.errors == {"no": sum(client.num_requests // 4 for client in clients)}
    assert np.median(result.latencies_seconds) >= 0.02


def test_open_loop_latency_begins_when_a_request_is_due() -> None:
    # one client gets 50 answers a second; 200 a second are due
    connect: Any = SlowClient
    result = measure(connect, 1, [{}], 0.5, 200.0)
    assert len(result.latencies_seconds) + sum(result.errors.values()) == 100
    assert result.latencies_seconds.max() > 1.0, "the last ones wait for all before them"
    assert np.quantile(result.latencies_seconds, 0.99) > 1.0
