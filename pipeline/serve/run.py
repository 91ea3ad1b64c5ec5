"""`pipeline serve`: a model repository in, a running Triton until it is told to stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.core.artifact import read_manifest
from pipeline.serve.triton.access import Tls
from pipeline.serve.triton.log import LogFormat
from pipeline.serve.triton.ports import Ports
from pipeline.serve.triton.server import TritonServer


@contextmanager
def running_server(
    repository: Path,
    *,
    ports: Ports,
    host: str = "127.0.0.1",
    log_path: Path | None = None,
    log_format: LogFormat = "text",
    timeout_seconds: float = 120,
    reload_seconds: int | None = None,
    key: str | None = None,
    tls: Tls | None = None,
    restarts: int = 0,
) -> Iterator[TritonServer]:
    """A server that is ready while the block runs. ServingError if it does not come up.

    With `reload_seconds` it looks that often for a newer export in the place of `repository`.
    `log_format`, `key`, `tls` and `restarts` are those of `TritonServer`.
    """
    read_manifest(repository, "repository")
    with TritonServer(
        repository,
        ports=ports,
        host=host,
        log_path=log_path,
        log_format=log_format,
        model_control="none" if reload_seconds is None else "poll",
        poll_seconds=reload_seconds,
        key=key,
        tls=tls,
        restarts=restarts,
    ) as server:
        server.wait_until_ready(timeout_seconds)
        yield server


def describe(repository: Path, server: TritonServer, page_url: str | None = None) -> dict[str, Any]:
    """Where the server answers and with which model; `page` where there is one."""
    facts = read_manifest(repository, "repository")
    return {
        "http": f"http://{server.http_url}",
        "grpc": f"{server.grpc_scheme}://{server.grpc_url}",
        "metrics": f"http://{server.metrics_url}/metrics",
        **({} if page_url is None else {"page": page_url}),
        "model": facts["name"],
        "catalogue_items": facts["catalogue_items"],
    }


def wait_for_signal(
    server: TritonServer, on_restart: Callable[[str], object] | None = None
) -> bool:
    """Block until Ctrl-C, SIGTERM or the server's own end; whether it still runs then.

    `on_restart` gets a line for each time that the server comes back.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        server.wait(on_restart)
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGTERM, before)
    return False
