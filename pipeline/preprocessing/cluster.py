"""Workers of preprocessing: threads of this process, or a Dask cluster, remote or local.

Workers sort sessions, compute statistics and encode. The command itself reads the logs and writes
the output.
"""

import logging
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import ConfigError, PipelineError
from pipeline.core.merlin import has_cudf  # sets dask's options, before dask is imported

_CONNECT_SECONDS = 60
_POLL_SECONDS = 1.0
_CUDA_POOL, _CUDA_LIMIT = 0.5, 0.8
"""Shares of a GPU's memory: RMM's initial pool, and the limit from which on it spills."""
_LOOPBACK: dict[str, Any] = {
    "host": "127.0.0.1",
    "dashboard_address": None,
    # the scheduler serves HTTP even without a dashboard, and warns if port 8787 is in use
    "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},
}
LOCAL, LOCAL_CUDA = "local", "local-cuda"
"""Values in place of an address: a local worker per core or GPU, which ends with the command."""


R = TypeVar("R")


class Workers:
    """Runs tasks in parallel, a few at a time, and yields their results in order."""

    def __init__(self, submit: Callable[..., Any], max_pending: int) -> None:
        self._submit = submit
        self._max_pending = max_pending

    def map(self, task: Callable[..., R], arguments: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """Yield `task(*each)` for each of the arguments, in their order."""
        pending: deque[Any] = deque()
        for each in arguments:
            pending.append(self._submit(task, *each))
            if len(pending) > self._max_pending:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def workers(client: Any = None) -> Iterator[Workers]:
    """Workers of a Dask `client`, or one thread per core that this process may use."""
    if client is not None:
        max_pending = 2 * sum(client.nthreads().values())
        yield Workers(lambda task, *each: client.submit(task, *each, pure=False), max_pending)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores or 1) as pool:
        yield Workers(pool.submit, cores or 1)


@contextmanager
def connect(address: str | None) -> Iterator[Any]:
    """Dask client of the scheduler at `address`; None without an address.

    `LOCAL` and `LOCAL_CUDA` start workers on this machine. ConfigError if no scheduler or worker
    responds within a minute; PipelineError if the cluster is lost during the work. If one of
    several workers is lost, the others repeat its tasks.
    """
    if not address:
        yield None
    elif address in (LOCAL, LOCAL_CUDA):
        start = _start_cuda_workers if address == LOCAL_CUDA else _start_workers
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


def _start_workers(folder: str) -> Any:
    """Cluster with one process per core, on loopback."""
    from dask.distributed import LocalCluster

    return LocalCluster(
        n_workers=len(os.sched_getaffinity(0)),
        threads_per_worker=1,
        silence_logs=logging.ERROR,
        local_directory=folder,
        **_LOOPBACK,
    )


def _start_cuda_workers(folder: str) -> Any:
    """Cluster with one process per GPU and a memory pool that spills to main memory."""
    if not has_cudf():
        raise ConfigError(
            f"--cluster {LOCAL_CUDA} needs a GPU and the gpu extra: pip install 'pipeline[gpu]'. "
            f"Without them there is --cluster {LOCAL}."
        )
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(
        rmm_pool_size=_CUDA_POOL,
        device_memory_limit=_CUDA_LIMIT,
        enable_cudf_spill=True,
        local_directory=folder,
        **_LOOPBACK,
    )


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C, which a terminal also sends to workers: the cluster stops them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    from dask.distributed import Client, KilledWorker
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    try:
        # not the default client: a client that fails to connect would remain the default
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
            with _cancel_without_workers(client):
                yield client
        except (KilledWorker, FutureCancelledError, CommClosedError) as error:
            raise PipelineError(
                f"The Dask cluster at {address} was lost while it worked "
                f"({type(error).__name__}). Look at its log, and start again."
            ) from None


@contextmanager
def _cancel_without_workers(client: Any) -> Iterator[None]:
    """Cancel pending tasks after a minute without workers; dask itself waits forever."""
    is_done = threading.Event()

    def cancel() -> None:
        for state in list(client.futures.values()):
            state.cancel(reason="no workers", msg="The scheduler has no worker.")

    def watch() -> None:
        last_worker = time.monotonic()
        while not is_done.wait(_POLL_SECONDS):
            with suppress(Exception):  # the pending tasks report a lost connection
                if client.scheduler_info()["workers"]:
                    last_worker = time.monotonic()
                elif time.monotonic() - last_worker > _CONNECT_SECONDS:
                    client.loop.add_callback(cancel)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_done.set()
        watcher.join()


def check_shared(client: Any, directory: Path) -> None:
    """ConfigError unless all workers see `directory`, where they write shards."""
    file = directory / "shared"
    file.touch()
    try:
        is_visible = client.run(os.path.isfile, str(file))
    finally:
        file.unlink()
    failed = [worker for worker, visible in is_visible.items() if not visible]
    if failed:
        raise ConfigError(
            f"The Dask worker at {failed[0]} does not see {directory.parent}. With --cluster, "
            "--out is in a folder that all workers share, under the same path."
        )
