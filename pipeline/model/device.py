"""The device that a model runs on: choice, precision of products, timing, memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def best_device() -> torch.device:
    """The first GPU if the machine has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_SHARE_OF_MEMORY = 1 / 128
_CHUNK_BYTES = 64 * 2**20, 512 * 2**20


@torch.compiler.assume_constant_result
def device_chunk_bytes(device: torch.device) -> int:
    """Size of a chunk of scores on a GPU: a 128th of its memory, 64 to 512 MiB.

    Larger products are not faster, and several chunks are in memory at once.
    """
    smallest, largest = _CHUNK_BYTES
    if device.type != "cuda":
        return smallest
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(max(int(memory * _SHARE_OF_MEMORY), smallest), largest)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set torch's precision of float32 matrix products inside the context.

    `name` is "highest", "high" or "medium", as in `torch.set_float32_matmul_precision`.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in units of 2^20 bytes: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


class Stopwatch:
    """Seconds since the start, interruptions included, and laps without pauses."""

    def __init__(self) -> None:
        self.start(0.0)

    def start(self, before: float) -> None:
        """Start at `before` seconds, the time of earlier processes."""
        now = time.monotonic()
        self._begin = now - before
        self._lap = now

    def seconds(self) -> float:
        """Seconds since the start, pauses included."""
        return time.monotonic() - self._begin

    def lap(self) -> float:
        """Seconds since the last lap, without pauses."""
        now = time.monotonic()
        lap, self._lap = now - self._lap, now
        return lap

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the context from the lap."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._lap += time.monotonic() - begin
