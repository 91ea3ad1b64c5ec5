"""Health of Triton, which the proxy polls, so that probes do not wait behind requests.

While Triton loads a new version it reports that it is not ready, although the old version answers.
The proxy polls the models instead, so that a load balancer removes no server during a reload.
"""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from pipeline.core.errors import ArtifactError
from pipeline.core.manifest import MANIFEST
from pipeline.serve.proxy.connection import Address
from pipeline.serve.proxy.http1 import Request, write_error
from pipeline.serve.proxy.ranking_models import model_configs
from pipeline.serve.proxy.request_checks import RefusedRequestError

logger = logging.getLogger(__name__)
_LIVE, _READY = b"/v2/health/live", b"/v2/health/ready"
_NOT_READY = RefusedRequestError("the models are not ready", 503)
POLL_SECONDS = 0.5
_TIMEOUT_SECONDS = 2.0


class HealthPoll:
    """Polls twice a second whether the models of a repository are ready.

    These are the models that it had at the start and still has; without a repository, the poll asks
    whether Triton is ready.
    """

    def __init__(self, address: Address, repository: Path | None = None) -> None:
        self._address = address
        self._repository = repository
        self._manifest: tuple[int, int] | None = None
        """Inode and time of the manifest that was read."""
        self._names = self._exported() or set()
        self._task: asyncio.Task[None] | None = None
        self.is_ready = False
        """Whether the models were ready at the last poll, at most some seconds ago."""

    async def start(self) -> None:
        """Poll until `stop`."""
        await self._look()
        self._task = asyncio.get_running_loop().create_task(self._poll())

    def stop(self) -> None:
        """End the poll."""
        if self._task is not None:
            self._task.cancel()

    def answer(self, request: Request) -> bytes | None:
        """Return the answer to a health request, None for one that Triton answers.

        Triton reports itself ready even without its models, so the proxy reports that they are not.
        """
        path = request.path.partition(b"?")[0]
        if path not in (_LIVE, _READY) or request.method != b"GET":
            return None
        if self.is_ready:
            return _write_healthy(closes=request.closes)
        if path == _READY and self._names:
            return write_error(_NOT_READY, closes=request.closes)
        return None

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self._look()

    async def _look(self) -> None:
        try:
            self.is_ready = await self._answers()
        except Exception:  # a failed poll must not end the others
            self.is_ready = False
            logger.exception("The health of Triton could not be polled")

    async def _answers(self) -> bool:
        exported = self._exported()
        if exported is not None:
            self._names &= exported
        paths = [f"/v2/models/{name}/ready" for name in self._names] or ["/v2/health/ready"]
        return all(await asyncio.gather(*map(self._ask, paths)))

    def _exported(self) -> set[str] | None:
        """Return the models of a repository that has changed, else None."""
        if self._repository is None:
            return None
        with suppress(ArtifactError, OSError, ValueError, KeyError, TypeError):
            stat = (self._repository / MANIFEST).stat()
            if self._manifest != (stat.st_ino, stat.st_mtime_ns):
                names = set(model_configs(self._repository))
                self._manifest = (stat.st_ino, stat.st_mtime_ns)
                return names
        return None

    async def _ask(self, path: str) -> bool:
        # TimeoutError is an OSError
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(*self._address)
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    status = await reader.readuntil(b"\r\n")
                finally:
                    writer.close()
            return status.split()[1:2] == [b"200"]
        return False


def _write_healthy(*, closes: bool) -> bytes:
    """Return the answer of a server that is ready."""
    end = b"Connection: close\r\n" if closes else b""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n%s\r\n" % end
