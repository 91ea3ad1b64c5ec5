"""How long those who ask wait for an answer."""

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from pipeline.core.errors import ServingError
from pipeline.exporting import triton_config as config
from pipeline.serve.client.async_client import AsyncClient
from pipeline.serve.client.client import Client
from tests.conftest import SESSION, Shop

Outcome = tuple[str, float]
"""`answered` or the error, and the seconds that it took."""


def timed(call: Callable[[], object]) -> Outcome:
    began = time.monotonic()
    try:
        call()
    except ServingError as error:
        return str(error), time.monotonic() - began
    return "answered", time.monotonic() - began


def test_export_writes_no_queue_policy(shop: Shop) -> None:
    # a queue policy, whatever it says, costs every other request half a second on Triton 2.51
    read = config.read_config(shop.repository / "recommender_requests_v1")
    assert read.HasField("dynamic_batching")
    assert read.dynamic_batching.max_queue_delay_microseconds == 0
    assert not read.dynamic_batching.HasField("default_queue_policy")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_client_waits_no_longer_than_its_timeout(protocol: str) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, timeout=0.5) as client:
            await client.recommend([SESSION])

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{protocol}://127.0.0.1:{silent.getsockname()[1]}"
        expected = f"{url} did not answer within 0.5 seconds. It is busy, or no Triton."
        for call in (
            lambda: Client(url, timeout=0.5).recommend([SESSION]),
            lambda: asyncio.run(ask(url)),
        ):
            text, seconds = timed(call)
            assert text == expected
            assert 0.4 < seconds < 5
