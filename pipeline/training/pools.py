"""Pools of sessions on the device of a training, and the fixed shapes of its steps.

On a CPU a pool is a batch of the loader. On a GPU sessions are in device memory before the step:
all of them if they fit, else the next pool, which is copied during the steps of the current one.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loader import RaggedBatch, SessionLoader

RESIDENT_SHARE = 1 / 4
"""Maximum share of a GPU's free memory for all sessions."""
_NARROWEST = 4
_GROWTH = 1.5
"""The widths of batches are 4, 6, 9, 14, 21, 32, 48, ... positions."""


def prefers_static_steps(device: torch.device) -> bool:
    """Whether steps of fixed shapes are faster: not on a CPU, where the packed form costs no
    synchronization."""
    return device.type != "cpu"


class Pool(NamedTuple):
    """Sessions of many batches."""

    sessions: RaggedBatch
    """Sessions on the training device, possibly more than those of the pool."""
    rows: Tensor
    """(n,) rows of `sessions`, on the CPU."""
    lengths: Tensor
    """(n,) number of interactions of each row, on the CPU."""


class Pools:
    """Pools of a loader on a device.

    On a CPU, and for sessions that do not fit a GPU, pools are the loader's batches. Sessions that
    fit are read once, and shuffled by `seed` and epoch.
    """

    def __init__(self, loader: SessionLoader, device: torch.device, seed: int) -> None:
        self.loader = loader
        self.device = device
        self._seed = seed
        self._resident: RaggedBatch | None = None
        self._lengths = torch.zeros(0, dtype=torch.int64)

    def of_epoch(self, epoch: int) -> Iterator[Pool]:
        """Pools of a pass over all sessions; `epoch` counts from 0."""
        self.loader.set_epoch(epoch)
        if self.device.type == "cpu":
            yield from map(_whole_pool, self.loader)
        elif self._fits():
            yield from self._resident_pools(epoch)
        else:
            yield from map(_whole_pool, _copied_ahead(self.loader, self.device))

    def _fits(self) -> bool:
        if self._resident is not None:
            return True
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.loader.num_bytes <= RESIDENT_SHARE * free

    def _resident_pools(self, epoch: int) -> Iterator[Pool]:
        if self._resident is None:
            self._resident = joined([batch.to(self.device) for batch in self.loader])
            self._lengths = self._resident.lengths.cpu()
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
        for rows in torch.from_numpy(order).split(self.loader.batch_size):
            yield Pool(self._resident, rows, self._lengths[rows])


def _whole_pool(batch: RaggedBatch) -> Pool:
    lengths = batch.lengths.cpu()
    return Pool(batch, torch.arange(len(lengths)), lengths)


def _copied_ahead(loader: SessionLoader, device: torch.device) -> Iterator[RaggedBatch]:
    """Batches of the loader on the device; the next one is copied on a separate stream."""
    stream = torch.cuda.Stream(device)
    ahead: RaggedBatch | None = None
    for batch in loader:
        before = ahead
        with torch.cuda.stream(stream):
            ahead = batch.to(device)
        if before is not None:
            yield before
        # the stream of the steps must not read the tensors before the copy ends
        torch.cuda.current_stream(device).wait_stream(stream)
        for values in ahead.tensors():
            values.record_stream(torch.cuda.current_stream(device))
    if ahead is not None:
        yield ahead


def joined(batches: list[RaggedBatch]) -> RaggedBatch:
    """Concatenate the sessions of batches."""
    first = batches[0]
    lengths = torch.cat([batch.lengths for batch in batches])
    return RaggedBatch(
        {name: torch.cat([b.sequences[name] for b in batches]) for name in first.sequences},
        {name: torch.cat([b.sessions[name] for b in batches]) for name in first.sessions},
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
    )


class Shape(NamedTuple):
    """Shape of a batch in the static form."""

    rows: int
    """Number of sessions, empty ones included."""
    width: int
    """L, the positions of the batch."""
    most_interactions: int
    """Maximum sum of the lengths."""


class StepShapes:
    """A few shapes for all steps of a training, usually one per width.

    Steps have about equal numbers of interactions, so the rows of a width are the number of
    shortest sessions of this width that a step holds. A batch with more rows takes the next larger
    shape.
    """

    def __init__(self, step_interactions: float, pool_size: int, longest: int | None) -> None:
        """`step_interactions` is the mean of a step, `longest` the maximum of a session, None for
        any."""
        self.longest = longest
        # margin for the variation of the mean length between pools
        self._interactions = step_interactions * (1.05 + 3 / math.sqrt(max(pool_size, 1)))

    def of(self, lengths: Tensor) -> Shape:
        """(B,) lengths of a batch, on the CPU, at most `longest` -> Shape."""
        longest = int(lengths.max()) if len(lengths) else 1
        shortest, width = 2, _NARROWEST
        while width < longest:
            shortest, width = width, math.ceil(width * _GROWTH)
        most = grown(self._interactions + width, int(lengths.sum()))
        rows = grown(self._interactions / shortest, len(lengths))
        width = width if self.longest is None else min(width, self.longest)
        return Shape(rows, width, min(most, rows * width))


def grown(size: float, least: int) -> int:
    """Smallest multiple of 8 that is `size` times a power of 1.5, and at least `least`."""
    while -(-size // 8) * 8 < least:
        size *= _GROWTH
    return int(-(-size // 8) * 8)
