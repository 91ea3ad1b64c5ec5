"""What a server that has too much to do tells those who ask, and how long they wait for that."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError, ServingError
from pipeline.export import config
from pipeline.export.run import export
from pipeline.serve.async_client import AsyncClient
from pipeline.serve.client import Client
from pipeline.serve.ports import free_ports
from pipeline.serve.run import running_server
from pipeline.serve.triton import TritonServer
from tests.conftest import SESSION, Shop

FULL = "The server refused: in ensemble 'recommender', [request id: <id_unknown>] Exceeds maximum queue size"  # noqa: E501
LATE = "The server refused: in ensemble 'recommender', Request timeout expired"
MANY = [SESSION] * 200
"""Some 50 ms of work, so that requests come faster than they are answered."""
CLIENTS, EACH = 32, 6

Outcome = tuple[str, float]
"""`answered` or the error, and the seconds that it took."""


@pytest.fixture(scope="module")
def short_queue(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("short") / "repository"
    export(shop.run, repository, max_queue=3, queue_timeout=0)
    with running_server(repository, ports=free_ports()) as server:
        yield server


@pytest.fixture(scope="module")
def short_wait(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("wait") / "repository"
    export(shop.run, repository, max_queue=0, queue_timeout=0.05)
    with running_server(repository, ports=free_ports()) as server:
        yield server


def timed(call: Callable[[], object]) -> Outcome:
    began = time.monotonic()
    try:
        call()
    except ServingError as error:
        return str(error), time.monotonic() - began
    return "answered", time.monotonic() - began


def flood(url: str, timeout: float = 30) -> list[Outcome]:
    def one(_client: int) -> list[Outcome]:
        with Client(url, timeout=timeout) as client:
            _ = client.served
            return [timed(lambda: client.recommend(MANY, 50)) for _ in range(EACH)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [outcome for found in pool.map(one, range(CLIENTS)) for outcome in found]


def flood_async(url: str) -> list[Outcome]:
    async def one(client: AsyncClient) -> Outcome:
        began = time.monotonic()
        try:
            await client.recommend(MANY, 50)
        except ServingError as error:
            return str(error), time.monotonic() - began
        return "answered", time.monotonic() - began

    async def all_at_once() -> list[Outcome]:
        async with AsyncClient(url) as client:
            await client.served()
            return await asyncio.gather(*(one(client) for _ in range(CLIENTS * EACH)))

    return asyncio.run(all_at_once())


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("asked", [flood, flood_async])
@pytest.mark.parametrize(
    ("which", "words"), [("short_queue", FULL), ("short_wait", LATE)], ids=["full", "late"]
)
def test_a_flood_is_refused_in_time_and_the_server_then_answers_as_before(
    request: pytest.FixtureRequest,
    which: str,
    words: str,
    asked: Callable[[str], list[Outcome]],
    protocol: str,
) -> None:
    server: TritonServer = request.getfixturevalue(which)
    url = f"{protocol}://{server.http_url if protocol == 'http' else server.grpc_url}"
    with Client(url) as client:
        before = client.recommend([SESSION], 5)
        outcomes = asked(url)
        after = client.recommend([SESSION], 5)
    assert {text for text, _ in outcomes} == {"answered", words}
    refused = sorted(seconds for text, seconds in outcomes if text == words)
    print(f"{len(refused)} of {len(outcomes)} refused, the last after {refused[-1]:.2f} s")
    assert refused[-1] < 10  # most of it is this process, which makes all requests
    assert after.items.tolist() == before.items.tolist()
    assert server.is_alive()


def test_a_client_that_would_wait_longer_does_not_lengthen_the_wait_of_the_export(
    short_wait: TritonServer,
) -> None:
    url = f"grpc://{short_wait.grpc_url}"
    # its 30 seconds do not lengthen the 0.05 of the export
    assert LATE in {text for text, _ in flood(url, timeout=30)}


def test_the_bounds_stand_in_the_configuration(shop: Shop, tmp_path: Path) -> None:
    policy = policy_of(shop.repository)
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (1_000, 5_000_000)
    assert policy.allow_timeout_override
    assert policy.timeout_action == config.proto.ModelQueuePolicy.REJECT
    export(shop.run, tmp_path / "other", max_queue=7, queue_timeout=0.25)
    policy = policy_of(tmp_path / "other")
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 250_000)
    for arguments, words in (
        ({"max_queue": -1}, "--max-queue is -1"),
        ({"queue_timeout": -0.1}, "--queue-timeout is -0.1"),
        ({"queue_timeout": float("nan")}, "--queue-timeout is nan"),
    ):
        with pytest.raises(ConfigError, match=words):
            export(shop.run, tmp_path / "none", **arguments)  # type: ignore[arg-type]


def policy_of(repository: Path) -> config.proto.ModelQueuePolicy:
    read = config.read_config(repository / "recommender_requests_v1")
    assert read.dynamic_batching.max_queue_delay_microseconds == 0
    return read.dynamic_batching.default_queue_policy


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_client_waits_no_longer_than_its_timeout(protocol: str) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, timeout=0.5) as client:
            await client.recommend([SESSION])

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{protocol}://127.0.0.1:{silent.getsockname()[1]}"
        wanted = f"{url} did not answer within 0.5 seconds. It is busy, or no Triton."
        for call in (
            lambda: Client(url, timeout=0.5).recommend([SESSION]),
            lambda: asyncio.run(ask(url)),
        ):
            text, seconds = timed(call)
            assert text == wanted
            assert 0.4 < seconds < 5
