"""Sessions of the loader as batches of a training step, by length, shared out to processes."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pipeline.data.loader import RaggedBatch, SessionLoader


class Batches(IterableDataset[dict[str, Any]]):
    """Training batches as keyword arguments of `TrainingStep.forward`.

    The loader gives a pool of many batches at a time. Sessions of a pool are put together by
    length, so that hardly any position is padding, and cut where the interactions are shared out
    evenly: `batch_size` sessions on average, and as many targets in one step as in another. With
    as many sessions instead, targets of short sessions would weigh more. The order is random, and
    follows from the seed and the number of the pass.

    A step may be cut into `shares`: what a process reads while it accumulates gradients, and what
    each of several processes reads. A share takes every so-manyth session of the step, so that all
    are of about the same lengths, and the step is the one that a single process makes with a batch
    of `shares` times the size. `own` says which shares come out here. Where a step has no session
    for a share, or `num_steps` says that other processes have more steps, a stand-in comes that
    counts nothing: one session with `share` 0.
    """

    def __init__(
        self,
        loader: SessionLoader,
        batch_size: int,
        seed: int,
        *,
        shares: int = 1,
        own: range = range(1),
        num_steps: int | None = None,
    ) -> None:
        self.loader = loader
        self.step_size = batch_size * shares
        self.shares = shares
        self.own = own
        own_steps = math.ceil(loader.num_sessions / self.step_size)
        self.num_steps = own_steps if num_steps is None else num_steps
        self._seed = seed
        self._epoch = 0
        self._stand_in: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.num_steps * len(self.own)

    def set_epoch(self, epoch: int) -> None:
        """Number of the next pass, from 0; otherwise passes are counted."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        random = np.random.default_rng([self._seed, self._epoch])
        self.loader.set_epoch(self._epoch)
        self._epoch += 1
        given = 0
        for pool in self.loader:
            rows = torch.argsort(
                pool.lengths, stable=True
            )  # ties stay in the loader's random order
            sizes = even_shares(pool.lengths[rows].tolist(), self.step_size)
            steps = rows.split(sizes)
            for index in random.permutation(len(steps)).tolist():
                for share in self.own:
                    yield self._batch(pool, steps[index][share :: self.shares])
                given += 1
        for _ in range((self.num_steps - given) * len(self.own)):
            yield self._nothing()

    def _batch(self, pool: RaggedBatch, rows: Tensor) -> dict[str, Any]:
        if not rows.numel():
            return self._nothing()
        lengths = pool.lengths[rows]
        return pool.window(rows, torch.zeros_like(lengths), lengths)._asdict()

    def _nothing(self) -> dict[str, Any]:
        if self._stand_in is None:
            # a real session: an empty one would meet corners of a model that training never meets
            one = self.loader.any_session()
            row = torch.zeros(1, dtype=torch.int64, device=one.offsets.device)
            batch = one.window(row, row, one.lengths[:1])
            self._stand_in = {**batch._asdict(), "share": torch.zeros(())}
        return {**self._stand_in}


def even_shares(weights: list[int], mean_size: int) -> list[int]:
    """Sizes of ceil(n / mean_size) consecutive groups, none empty, of about equal weight."""
    num_groups = math.ceil(len(weights) / mean_size)
    reached = list(accumulate(weights))
    bounds = [0]
    for group in range(1, num_groups):
        bound = bisect_left(reached, reached[-1] * group / num_groups) + 1
        # room for one at least in this group and in each that follows
        bounds.append(min(max(bound, bounds[-1] + 1), len(weights) - (num_groups - group)))
    bounds.append(len(weights))
    return [stop - start for start, stop in pairwise(bounds)]
