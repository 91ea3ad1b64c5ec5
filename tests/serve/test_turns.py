"""Turns of clients at the process that checks large requests."""

import asyncio
import threading
import weakref

import pytest

from pipeline.serve.proxy.check_process import CheckProcess
from pipeline.serve.proxy.limits import Limits
from pipeline.serve.proxy.turns import Turns


class Round:
    """Requests that hold the lock one after the other, in the order of `order`."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.order: list[str] = []
        self.release = asyncio.Event()

    async def request(self, client: str) -> None:
        await self.turns.acquire(client)
        try:
            self.order.append(client)
            await self.release.wait()
        finally:
            self.turns.release()

    async def start(self, *clients: str) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.request(client)) for client in clients]
        await asyncio.sleep(0)
        return tasks


def test_client_waits_for_one_request_of_each_other_client() -> None:
    async def orders() -> list[str]:
        requests = Round()
        tasks = await requests.start(*["many"] * 5, "few", "one", "few")
        requests.release.set()
        await asyncio.gather(*tasks)
        return requests.order

    assert asyncio.run(orders()) == ["many", "many", "few", "one", "many", "few", "many", "many"]


def test_turns_go_on_after_requests_that_were_cancelled() -> None:
    async def orders() -> list[str]:
        requests = Round()
        holder, waiting, passed, last = await requests.start("a", "b", "c", "d")
        waiting.cancel()
        await asyncio.sleep(0)
        requests.release.set()
        holder.cancel()  # passes the lock on to `passed`, which is cancelled before it runs
        await asyncio.sleep(0)
        passed.cancel()
        await asyncio.wait([last], timeout=10)
        assert last.done()
        async with asyncio.timeout(10):
            await requests.turns.acquire("e")
        return requests.order

    assert asyncio.run(orders()) == ["a", "d"]


class Body(bytearray):
    """Body of a request; unlike bytes it takes weak references."""


def test_cancelled_requests_free_their_bodies_while_one_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(CheckProcess, "_exchange", lambda *_: is_over.wait(20))

    async def freed() -> list[bool]:
        checks = CheckProcess(Limits())
        bodies = []
        try:
            for client in ("a", "b", "c"):
                body = Body(b"{}")
                bodies.append(weakref.ref(body))
                check = checks.check_body(
                    client,
                    body,  # type: ignore[arg-type]
                    "",
                    [],
                    "m",
                    adds_outputs=False,
                )
                task = asyncio.create_task(check)
                await asyncio.sleep(0.01)
                task.cancel()
                del body, check
                await asyncio.wait([task])
                del task
            return [body() is None for body in bodies]
        finally:
            is_over.set()
            checks.stop()

    assert asyncio.run(freed()) == [False, True, True]
