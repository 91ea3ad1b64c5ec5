"""Time and memory that training takes."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds since the start, also over interruptions, and laps without pauses."""

    def __init__(self) -> None:
        self.start(0.0)

    def start(self, before: float) -> None:
        """Begin, `before` seconds of an earlier process counted in."""
        now = time.monotonic()
        self._begin = now - before
        self._lap = now

    def seconds(self) -> float:
        """Since the start, pauses included."""
        return time.monotonic() - self._begin

    def lap(self) -> float:
        """Since the last lap, without pauses."""
        now = time.monotonic()
        lap, self._lap = now - self._lap, now
        return lap

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside counts into no lap."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._lap += time.monotonic() - begin


def peak_memory_mb(device: torch.device) -> float:
    """Most memory so far: of the GPU that is in use, else of this process, in 2^20 bytes."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
