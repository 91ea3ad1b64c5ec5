"""Health of Triton as the proxy asks for it, so that probes do not wait behind requests."""

import asyncio
from contextlib import suppress

from pipeline.serve.proxy.connection import Address
from pipeline.serve.proxy.http1 import Request

_PATHS = {b"/v2/health/live", b"/v2/health/ready"}
POLL_SECONDS = 0.5
_TIMEOUT_SECONDS = 2.0


class HealthPoll:
    """Asks Triton whether it is ready, twice a second."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._task: asyncio.Task[None] | None = None
        self.is_ready = False
        """Whether the last answer, at most some seconds old, says so. If not, Triton is asked."""

    async def start(self) -> None:
        """Ask until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._poll())

    def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()

    def answers(self, request: Request) -> bool:
        """Return whether a request asks for health and the answer is that Triton is ready."""
        return request.path in _PATHS and request.method == b"GET" and self.is_ready

    async def _poll(self) -> None:
        while True:
            self.is_ready = False if self._task is None else await self._ask()
            await asyncio.sleep(POLL_SECONDS)

    async def _ask(self) -> bool:
        with suppress(OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(*self._address)
                try:
                    writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
                    status = await reader.readuntil(b"\r\n")
                finally:
                    writer.close()
            return status.split()[1:2] == [b"200"]
        return False


def write_healthy(*, closes: bool) -> bytes:
    """Return the answer of a server that is ready."""
    end = b"Connection: close\r\n" if closes else b""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n%s\r\n" % end
