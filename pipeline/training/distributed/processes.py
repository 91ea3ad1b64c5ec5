"""The processes that train one model: rank, count, connection and collectives.

`torchrun` starts them and sets their ranks as environment variables. Without it there is one
process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from pipeline.core.errors import ProcessError

TIMEOUT_SECONDS = 600
"""Time that a process waits for others before it fails."""
_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"),
    *("Timed out waiting", "timed out", "Timeout", "NCCL", "gloo", "collective operation"),
)
"""Parts of torch's error messages when another process has ended."""


@dataclass(frozen=True)
class Processes:
    """Rank of this process, and the number of processes."""

    rank: int = 0
    """0 to count - 1; the process of rank 0 writes the run."""
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0 and writes the run."""
        return self.rank == 0


def announced_processes() -> Processes:
    """Processes from the environment variables of torchrun, not yet connected."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return Processes(int(os.environ.get("RANK", "0")), count) if count > 1 else Processes()


@contextmanager
def joined_processes(timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Processes]:
    """Connect the processes if needed: gloo on CPUs, nccl for tensors on GPUs.

    ProcessError if torch reports that another process ended or does not respond.
    """
    processes = announced_processes()
    joins = processes.count > 1 and not distributed.is_initialized()
    if joins:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_seconds)
        )
    try:
        yield processes
    except Exception as error:
        if not _is_lost_process(error):
            raise
        raise ProcessError(
            "Another process of this training ended, or did not answer in time: "
            f"{' '.join(str(error).split())[:200]} Start all of them again; they continue from "
            "the last checkpoint."
        ) from None
    finally:
        if joins:
            distributed.destroy_process_group()


def gather_bytes(data: bytes) -> list[bytes]:
    """`data` of each process, by rank. Collective."""
    if not distributed.is_initialized():
        return [data]
    count = distributed.get_world_size()
    own = torch.tensor([len(data)])
    sizes = [torch.zeros_like(own) for _ in range(count)]
    distributed.all_gather(sizes, own)
    longest = max(1, *(int(size) for size in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
    parts = [torch.zeros_like(padded) for _ in range(count)]
    distributed.all_gather(parts, padded)
    return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def sum_over_processes(values: list[float]) -> list[float]:
    """Elementwise sums over the processes. Collective."""
    if not distributed.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(total)
    return [float(value) for value in total]


def sum_of_tensor(values: Tensor) -> Tensor:
    """Elementwise sum over the processes, on the device of `values`. Collective."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def _is_lost_process(error: Exception) -> bool:
    """Whether the error means that another process ended or does not respond."""
    if not distributed.is_initialized():
        return False
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
