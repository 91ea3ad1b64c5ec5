"""A Dask cluster that somebody else runs, as the place where preprocessing works.

Statistics and sessions are computed by its workers; logs are read, and what is written is put
together, where the command runs.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.core import merlin as _settings  # noqa: F401  must stand before dask's import
from pipeline.core.errors import ConfigError, PipelineError

_CONNECT_SECONDS = 60
_LOOK_SECONDS = 1.0


@contextmanager
def on_cluster(address: str | None) -> Iterator[Any]:
    """The client of the scheduler at `address`, which NVTabular takes up; None without one.

    ConfigError if no scheduler or no worker answers within a minute, PipelineError if the cluster
    is lost while it works. The loss of one worker of several is not: others do its work again.
    """
    if not address:
        yield None
        return
    from dask.distributed import Client, KilledWorker
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    try:
        # not dask's default: one that fails to connect would stay it until it is collected
        client = Client(
            address, timeout=_CONNECT_SECONDS, name="pipeline-preprocess", set_as_default=False
        )
    except (OSError, ValueError, TypeError, socket.gaierror):
        raise ConfigError(
            f"No Dask scheduler answers at {address!r}. Start one with `dask scheduler`, and give "
            "its address as tcp://HOST:8786."
        ) from None
    with client, client.as_current():
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError:
            raise ConfigError(
                f"The Dask scheduler at {address} has no worker. Start some with `dask worker "
                f"{address}`."
            ) from None
        try:
            with _watched(client):
                yield client
        except (KilledWorker, FutureCancelledError, CommClosedError) as error:
            raise PipelineError(
                f"The Dask cluster at {address} was lost while it worked "
                f"({type(error).__name__}). Look at its log, and start again."
            ) from None


@contextmanager
def _watched(client: Any) -> Iterator[None]:
    """End what waits when no worker has been there for a while: dask itself waits for ever."""
    over = threading.Event()

    def give_up() -> None:
        for state in list(client.futures.values()):
            state.cancel(reason="no workers", msg="The scheduler has no worker.")

    def watch() -> None:
        seen = time.monotonic()
        while not over.wait(_LOOK_SECONDS):
            with suppress(Exception):  # a lost connection is told by what waits
                if client.scheduler_info()["workers"]:
                    seen = time.monotonic()
                elif time.monotonic() - seen > _CONNECT_SECONDS:
                    client.loop.add_callback(give_up)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def check_shared(client: Any, directory: Path) -> None:
    """ConfigError unless all workers see `directory`: they write unique values below it."""
    probe = directory / "seen"
    probe.touch()
    try:
        seen = client.run(os.path.isfile, str(probe))
    finally:
        probe.unlink()
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind:
        raise ConfigError(
            f"The Dask worker at {blind[0]} does not see {directory.parent}. With --cluster, --out "
            "is in a folder that all workers share, under the same path."
        )
