"""A Dask cluster as the place where preprocessing works: somebody else's, or one of this machine.

Sessions are sorted, learned from and encoded by its workers; logs are read, and what is written is
put together, where the command runs.
"""

import logging
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, PipelineError
from pipeline.core.merlin import has_cudf  # and its settings, which must stand before dask

_CONNECT_SECONDS = 60
_LOOK_SECONDS = 1.0
_CUDA_POOL, _CUDA_LIMIT = 0.5, 0.8
"""Shares of a GPU's memory: that RMM takes at the start, and that is used before it spills."""
_ANY_PORT = {"dashboard_address": "127.0.0.1:0"}
"""A scheduler without dashboard still answers over HTTP, at 8787, and warns where that is taken."""
LOCAL, LOCAL_CUDA = "local", "local-cuda"
"""In place of an address: a process a core, or a process a GPU, that end with the command."""


@contextmanager
def on_cluster(address: str | None) -> Iterator[Any]:
    """The client of the scheduler at `address`; None without one.

    `LOCAL` and `LOCAL_CUDA` start workers here. ConfigError if no scheduler or no worker answers
    within a minute, PipelineError if the cluster is lost while it works. The loss of one worker of
    several is not: others do its work again.
    """
    if not address:
        yield None
    elif address in (LOCAL, LOCAL_CUDA):
        start = _cuda_workers if address == LOCAL_CUDA else _workers
        with (
            tempfile.TemporaryDirectory(prefix="pipeline-workers-") as folder,
            start(folder) as cluster,
            _connected(cluster.scheduler_address) as client,
        ):
            client.run(_ignore_interrupts)
            yield client
    else:
        if "://" not in address and not re.fullmatch(r"[^:/ ]+:\d+", address):
            raise ConfigError(
                f"--cluster is {address!r}, expected {LOCAL}, {LOCAL_CUDA}, or the address of a "
                "Dask scheduler such as tcp://HOST:8786."
            )
        with _connected(address) as client:
            yield client


def _workers(folder: str) -> Any:
    """A process a core, on loopback."""
    from dask.distributed import LocalCluster

    return LocalCluster(
        n_workers=len(os.sched_getaffinity(0)),
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        scheduler_kwargs=_ANY_PORT,
        local_directory=folder,
        silence_logs=logging.ERROR,
    )


def _ignore_interrupts() -> None:
    """A terminal sends a Ctrl-C to workers, too, which the cluster ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cuda_workers(folder: str) -> Any:
    """A process a GPU, with a pool of its memory, spilling to the machine's where that is short."""
    if not has_cudf():
        raise ConfigError(
            f"--cluster {LOCAL_CUDA} needs a GPU and the gpu extra: pip install 'pipeline[gpu]'. "
            f"Without them there is --cluster {LOCAL}."
        )
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(
        host="127.0.0.1",
        dashboard_address=None,
        scheduler_kwargs=_ANY_PORT,
        local_directory=folder,
        rmm_pool_size=_CUDA_POOL,
        device_memory_limit=_CUDA_LIMIT,
        enable_cudf_spill=True,
    )


@contextmanager
def _connected(address: str) -> Iterator[Any]:
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
