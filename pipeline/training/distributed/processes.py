"""Several processes that train one model: who is who, and what they tell each other.

`torchrun` starts them and says by environment variables who they are. Without it there is one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

TIMEOUT_SECONDS = 600
"""How long one waits for another before it gives up."""
_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"),
    *("Timed out waiting", "timed out", "Timeout", "NCCL", "gloo", "collective operation"),
)
"""Words of what torch raises when another process is gone."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    """0..count - 1; 0 writes."""
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0


def announced_processes() -> Processes:
    """What the environment says; nothing is joined yet."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return Processes(int(os.environ.get("RANK", "0")), count) if count > 1 else Processes()


@contextmanager
def joined_processes(timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Processes]:
    """Meet the others, unless that is done: gloo on CPUs, nccl for what is on GPUs."""
    processes = announced_processes()
    if processes.count == 1 or distributed.is_initialized():
        yield processes
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_seconds)
    )
    try:
        yield processes
    finally:
        distributed.destroy_process_group()


def gather_bytes(data: bytes) -> list[bytes]:
    """What each process gives, by rank; the same everywhere."""
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


def gather_rows(values: Tensor) -> list[Tensor]:
    """(n,) int64 of each process, n its own -> all of them by rank."""
    parts = gather_bytes(values.to(torch.int64).cpu().contiguous().numpy().tobytes())
    return [torch.frombuffer(bytearray(p), dtype=torch.int64) if p else values[:0] for p in parts]


def sum_over_processes(values: list[float]) -> list[float]:
    """Sums, number by number."""
    if not distributed.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(total)
    return [float(value) for value in total]


def is_lost_process(error: Exception) -> bool:
    """Whether torch raised it because another process ended or does not answer."""
    if not distributed.is_initialized():
        return False
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
