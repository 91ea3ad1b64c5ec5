"""Batches of a training step: sessions grouped by length and divided among processes."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.batch import SessionBatch
from pipeline.data.loader import RaggedBatch, SessionLoader, to_device
from pipeline.model.head import Head, Task
from pipeline.model.masking import Stage
from pipeline.model.model import Model
from pipeline.model.tasks.targets import TargetTask
from pipeline.training.distributed.processes import sum_of_tensor
from pipeline.training.pools import Pool, Pools, StepShapes


class Batches(IterableDataset[dict[str, Any]]):
    """Training batches as keyword arguments of `TrainingStep.forward`.

    The loader yields pools of many batches. Sessions of a pool are sorted by length, to reduce
    padding, and cut into steps of `batch_size` sessions on average with about equal numbers of
    targets; with equal numbers of sessions, targets of short sessions would have larger weights.
    The order of steps is random and depends on `seed` and the epoch.

    A step is divided into `shares`, one per accumulated batch and process. A share is every
    `shares`-th session, so that all shares have similar lengths; together they equal the step of
    one process with a batch of `shares` times the size. `own` are the shares of this process. A
    share without a session, and steps up to `num_steps` that have sessions only in other processes,
    are one session with `share` 0, whose loss has weight 0.

    With `shapes` the batches have the static form on `device`: each is padded with empty sessions
    and positions to one of few shapes.
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
        device: torch.device | None = None,
        shapes: StepShapes | None = None,
    ) -> None:
        self.loader = loader
        self.pools = Pools(loader, device or torch.device("cpu"), seed)
        self.shapes = shapes
        self.step_size = batch_size * shares
        self.shares = shares
        self.own = own
        own_steps = math.ceil(loader.num_sessions / self.step_size)
        self.num_steps = own_steps if num_steps is None else num_steps
        self._seed = seed
        self._epoch = 0
        self._empty: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.num_steps * len(self.own)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, from 0; by default passes are counted."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        random = np.random.default_rng([self._seed, self._epoch])
        pools = self.pools.of_epoch(self._epoch)
        self._epoch += 1
        num_steps = 0
        for pool in pools:
            # stable, so that ties keep the loader's random order
            order = torch.argsort(pool.lengths, stable=True)
            sizes = even_shares(pool.lengths[order].tolist(), self.step_size)
            steps = order.split(sizes)
            for index in random.permutation(len(steps)).tolist():
                for share in self.own:
                    yield self._batch(pool, steps[index][share :: self.shares])
                num_steps += 1
        for _ in range((self.num_steps - num_steps) * len(self.own)):
            yield self._empty_share()

    def _batch(self, pool: Pool, chosen: Tensor) -> dict[str, Any]:
        if not chosen.numel():
            return self._empty_share()
        rows, lengths = pool.rows[chosen], pool.lengths[chosen]
        if self.shapes is None:
            batch = pool.sessions.window(rows, torch.zeros_like(lengths), lengths)
        else:
            batch = static_batch(pool.sessions, rows, lengths, self.shapes)
        return batch._asdict()

    def _empty_share(self) -> dict[str, Any]:
        if self._empty is None:
            # a session of the data, as models need not support an empty batch
            session = self.loader.any_session()
            pool = Pool(session.to(self.pools.device), torch.zeros(1).long(), session.lengths.cpu())
            share = torch.zeros((), device=self.pools.device)
            self._empty = {**self._batch(pool, pool.rows), "share": share}
        return {**self._empty}


def static_batch(
    sessions: RaggedBatch, rows: Tensor, lengths: Tensor, shapes: StepShapes
) -> SessionBatch:
    """Batch of the static form of the sessions `rows` (B,) of `lengths` (B,), both on the CPU."""
    device = sessions.offsets.device
    starts = torch.zeros_like(lengths)
    if shapes.longest is not None:
        starts = (lengths - shapes.longest).clamp(min=0)
    shape = shapes.of(lengths - starts)
    missing = shape.rows - len(rows)
    rows, starts, lengths = (
        to_device(torch.nn.functional.pad(values, (0, missing)), device)
        for values in (rows, starts, lengths)
    )
    batch = sessions.window(rows, starts, lengths, shape.width)
    return batch._replace(most_interactions=shape.most_interactions)


def even_shares(weights: list[int], mean_size: int) -> list[int]:
    """Sizes of ceil(n / mean_size) consecutive non-empty groups of about equal weight."""
    num_groups = math.ceil(len(weights) / mean_size)
    totals = list(accumulate(weights))
    bounds = [0]
    for group in range(1, num_groups):
        bound = bisect_left(totals, totals[-1] * group / num_groups) + 1
        # at least one for this group and each following one
        bounds.append(min(max(bound, bounds[-1] + 1), len(weights) - (num_groups - group)))
    bounds.append(len(weights))
    return [stop - start for start, stop in pairwise(bounds)]


def step_shapes(loader: SessionLoader, batch_size: int, longest: int | None) -> StepShapes:
    """Shapes of batches of `batch_size` sessions on average, each of at most `longest`."""
    mean_length = loader.num_interactions / max(loader.num_sessions, 1)
    return StepShapes(batch_size * mean_length, loader.batch_size, longest)


def longest_session(model: Model) -> int | None:
    """Maximum interactions of a session that training reads, None for all."""
    lengths = [head.body.inputs.max_sequence_length for head, _ in model.tasks_with_heads]
    limits = [length for length in lengths if length is not None]
    return max(limits) + 1 if len(limits) == len(lengths) else None


def any_batch(loader: SessionLoader) -> SessionBatch:
    """Batch of one session, for collective steps of a process that has no sessions left."""
    pool = loader.any_session()
    row = torch.zeros(1, dtype=torch.int64, device=pool.offsets.device)
    return pool.window(row, row, pool.lengths[:1])


def set_shares(model: Model, samples: list[dict[str, Any]], num_processes: int) -> None:
    """Set the share of the step's targets in each batch of one step, (tasks,) float32.

    The loss of a task in a step is the mean over its targets, which may be in several accumulated
    batches and in other processes. A batch with share 0 keeps it. Collective; does not synchronize
    a GPU.
    """
    scales = [
        sample["share"].double().expand(len(model.tasks_with_heads))
        if "share" in sample
        else loss_scales(model, SessionBatch(sample["features"], sample["lengths"]))
        for sample in samples
    ]
    total = sum_of_tensor(sum(scales, torch.zeros_like(scales[0])))
    for sample, scale in zip(samples, scales, strict=True):
        # DDP takes the mean over processes
        share = torch.where(total > 0, scale / total * num_processes, 0.0)
        sample["share"] = share.to(torch.float32)


def loss_scales(model: Model, batch: SessionBatch) -> Tensor:
    """Total weight of the targets of each task in a batch, over which its loss is a mean.

    (tasks,) float64 in the order of `tasks_with_heads`.
    """
    scales = [
        task.has_target(head.body.crop(batch, Stage.PREDICT)).sum().double()
        if isinstance(task, TargetTask) and not task.per_item
        else _next_item_scale(head, task, batch)
        for head, task in model.tasks_with_heads
    ]
    return torch.stack(scales)


def _next_item_scale(head: Head, task: Task, batch: SessionBatch) -> Tensor:
    """Weight of the next items of a batch, () float64; of those with a label for a target per item.

    The targets of clm are known before the model runs. The other maskings draw a fixed share of the
    interactions inside the model, so all interactions count.
    """
    body = head.body
    shares_pass = body.masking.encodes_once and len(head.all_tasks) > 1 + len(head.item_tasks)
    batch = body.crop(batch, Stage.TRAIN_WHOLE if shares_pass else Stage.TRAIN)
    items = batch.features[body.inputs.item]  # (B, L)
    counts = (items >= FIRST_ITEM) & body.masking.may_be_targets(batch.lengths, items.size(1))
    if isinstance(task, TargetTask):
        return (counts & ~task.labels(batch).isnan()).sum().double()
    if task.weights is not None:
        batch = batch.to(head.item_table.device)
    weights = task.target_weights(batch, body.inputs.item)
    if weights is None:
        weights = torch.ones(items.shape, device=items.device)
    return (weights.to(items.device) * counts).sum().double()
