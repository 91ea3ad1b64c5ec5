"""Proxy of a Triton, in a thread of the launcher."""

import asyncio
import itertools
import json
import logging
import resource
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.allocator import return_heap, trim_heap
from pipeline.core.errors import ServingError
from pipeline.serve.proxy.limits import DEFAULT_LIMITS, Limits
from pipeline.serve.request_log.options import EXPERIMENT_KEY, RequestLogOptions
from pipeline.serve.triton.access import ClientKey, Tls
from pipeline.serve.triton.ports import Ports

if TYPE_CHECKING:
    from pipeline.serve.proxy.admission import Admission
    from pipeline.serve.proxy.check_process import CheckProcess
    from pipeline.serve.proxy.experiment import Experiment
    from pipeline.serve.request_log.request_log import RequestLog


_FILES_A_CONNECTION = 4
"""File descriptors per connection: both ports, each with a connection to Triton."""
_OTHER_FILES = 200
logger = logging.getLogger(__name__)
_WATCH_SECONDS = 0.5
"""Interval between checks of the connections for time-outs."""
_TRIM_TURNS = 4
"""Number of these intervals between returns of free memory."""


@dataclass(frozen=True, kw_only=True)
class ProxyOptions:
    """Addresses of a proxy and its Triton, and options."""

    http_host: str
    grpc_host: str
    ports: Ports
    repository: Path | None
    """Repository that Triton serves, for the outputs of requests without outputs."""
    triton_host: str
    triton_ports: Ports
    tls: Tls | None
    keys: tuple[ClientKey, ...] = ()
    """Keys of clients, empty for a server without keys."""
    triton_key: str | None = None
    """Key that Triton expects of the proxy in the header `PROXY_KEY_HEADER`."""
    limits: Limits = DEFAULT_LIMITS
    request_log: RequestLogOptions | None = None
    experiment: "Experiment | None" = None


class Proxy:
    """Proxy that listens from `start` to `stop`."""

    def __init__(self, options: ProxyOptions) -> None:
        self._options = options
        self._log = _open_log(options)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event
        self._error: Exception | None = None

    def start(self) -> None:
        """Listen; return when connections are accepted. ServingError if that fails."""
        return_heap()
        if self._log is not None:
            self._log.start()
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="proxy", daemon=True
        )
        self._thread.start()
        started.wait()
        if self._error is not None:
            self.stop()
            raise ServingError(f"cannot listen: {self._error}. Choose other ports.") from None

    def stop(self) -> None:
        """Close all connections, and write the rest of the request log."""
        try:
            self._stop()
        finally:
            if self._log is not None:
                self._log.stop()

    def _stop(self) -> None:
        if self._thread is None:
            return
        if self._error is None:
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._thread = None

    def _run(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._serve(started))
        except Exception as error:
            self._error = error
            if started.is_set():
                raise
        finally:
            started.set()  # `start` waits for it

    async def _serve(self, started: threading.Event) -> None:
        from pipeline.serve.proxy.admission import Admission
        from pipeline.serve.proxy.calls import Calls
        from pipeline.serve.proxy.check_process import CheckProcess
        from pipeline.serve.proxy.experiment import Router
        from pipeline.serve.proxy.grpc_proxy import GrpcProxy
        from pipeline.serve.proxy.http_proxy import HttpProxy
        from pipeline.serve.proxy.ranking_models import RankingModels

        options = self._options
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        host, ports = options.triton_host, options.triton_ports
        models = RankingModels(options.repository)
        router = Router(models, options.experiment)
        limits = _with_files(options.limits)
        admission, checks = Admission(limits), CheckProcess(limits)
        shared = (admission, checks, self._log)
        calls = Calls(options.keys)
        http = HttpProxy((host, ports.http), models, router, calls, options.triton_key, *shared)
        grpc = GrpcProxy((host, ports.grpc), models, router, calls, options.triton_key, *shared)
        servers: list[Any] = []
        try:
            try:
                servers.append(http)
                await http.start(options.http_host, options.ports.http)
                servers.append(grpc)
                await grpc.start(options.grpc_host, options.ports.grpc, options.tls)
            except Exception as error:
                self._error = error
            started.set()
            if self._error is None:
                await self._watch(admission, checks, http, grpc)
        finally:
            for server in servers:
                await server.stop()
            checks.stop()

    async def _watch(self, admission: "Admission", checks: "CheckProcess", *servers: Any) -> None:
        """Apply time-outs and return free memory until the proxy stops."""
        loop = asyncio.get_running_loop()
        for turn in itertools.count():
            if self._stopped.is_set():
                return
            if turn % _TRIM_TURNS == 0 and admission.had_large:
                admission.had_large = admission.buffered_bytes > 0 or checks.runs
                trim_heap()
                checks.reap()
            for server in servers:
                server.connections.expire(loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_SECONDS):
                    await self._stopped.wait()


def _with_files(limits: Limits) -> Limits:
    """Raise the limit of open files, and return limits with connections that fit in it."""
    needed = _FILES_A_CONNECTION * limits.max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return limits
    reached = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (reached, hard))
    if reached == needed:
        return limits
    connections = max(1, (reached - _OTHER_FILES) // _FILES_A_CONNECTION)
    logger.warning(
        "Warning: this process may open %d files, enough for %d connections. Raise the limit by "
        "`ulimit -n %d`.", reached, connections, needed,
    )  # fmt: skip
    return replace(limits, max_connections=connections)


def _open_log(options: ProxyOptions) -> "RequestLog | None":
    if options.request_log is None:
        return None
    from pipeline.serve.request_log.request_log import RequestLog  # imports Arrow

    metadata = {}
    if options.experiment is not None:
        metadata[EXPERIMENT_KEY] = json.dumps(options.experiment.to_dict()).encode()
    return RequestLog(replace(options.request_log, metadata=metadata))
