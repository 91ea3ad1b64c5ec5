"""Health of Triton as the proxy asks for it, so that probes do not wait behind requests.

While Triton loads a new version it reports that it is not ready, though the old version answers.
The proxy asks for the models instead, so that a load balancer takes no server out for a reload.
"""

import asyncio
from contextlib import suppress
from pathlib import Path

from pipeline.core.errors import ArtifactError
from pipeline.serve.proxy.connection import Address
from pipeline.serve.proxy.http1 import Request
from pipeline.serve.proxy.ranking_models import model_configs

_PATHS = {b"/v2/health/live", b"/v2/health/ready"}
POLL_SECONDS = 0.5
_TIMEOUT_SECONDS = 2.0


class HealthPoll:
    """Asks Triton twice a second whether the models of a repository answer.

    These are the models that it had at the beginning and still has; without a repository, Triton is
    asked whether it is ready.
    """

    def __init__(self, address: Address, repository: Path | None = None) -> None:
        self._address = address
        self._repository = repository
        self._first = self._exported()
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
            names = sorted(self._first & self._exported())
            paths = [f"/v2/models/{name}/ready" for name in names] or ["/v2/health/ready"]
            self.is_ready = all([await self._ask(path) for path in paths])
            await asyncio.sleep(POLL_SECONDS)

    def _exported(self) -> set[str]:
        if self._repository is not None:
            with suppress(ArtifactError, OSError):  # exchanged in this moment, or gone
                return set(model_configs(self._repository))
        return set()

    async def _ask(self, path: str) -> bool:
        with suppress(OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(*self._address)
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    status = await reader.readuntil(b"\r\n")
                finally:
                    writer.close()
            return status.split()[1:2] == [b"200"]
        return False


def write_healthy(*, closes: bool) -> bytes:
    """Return the answer of a server that is ready."""
    end = b"Connection: close\r\n" if closes else b""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n%s\r\n" % end
