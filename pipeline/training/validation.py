"""Validation during training: metrics, or the loss, of the validation sessions.

With a sharded item table, reading an interaction and scoring a target need the rows of all
processes, so all take the same steps. A process with fewer batches runs spare batches, whose
results are discarded.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.batch import SessionBatch
from pipeline.data.loader import RaggedBatch, SessionLoader
from pipeline.evaluation.metrics import behind_every_list, ranking_metrics
from pipeline.evaluation.ranking import rank_in_shards
from pipeline.evaluation.target_metrics import target_metrics
from pipeline.evaluation.target_predictions import predict_targets
from pipeline.evaluation.targets import (
    Positions,
    evaluation_windows,
    hidden_at_targets,
    rank_targets,
    seen_before,
)
from pipeline.model.model import Model
from pipeline.model.ops.shards import ShardedEmbedding
from pipeline.recipe.choices import ranking_cutoff
from pipeline.training.batches import any_batch, loss_scales
from pipeline.training.distributed.processes import Processes, gather_bytes, sum_over_processes

_CUTOFFS = (10, 20)
_BATCH_SIZE = 512
_LOSS_SESSIONS = 128


def validate(
    model: Model,
    loader: SessionLoader,
    metric: str,
    *,
    processes: Processes,
    seed: int,
    positions: Positions = "all",
    filter_seen: bool = False,
) -> dict[str, float]:
    """Metrics of the targets at `positions`, equal in all processes. Collective.

    Metrics of the next item are named `name@K`, those of other tasks `task.name`; `metric` is
    included. The metric `loss` is the training loss without dropout, with fixed masks and
    negatives.
    """
    training = model.training
    model.eval()
    # batch of the spare passes
    spare = any_batch(loader) if isinstance(model.inputs.item_table, ShardedEmbedding) else None
    values: dict[str, float] = {}
    try:
        if model.ranks_items:
            ranks = _ranks(model, loader, processes, spare, positions, filter_seen)
            cutoffs = {*_CUTOFFS, ranking_cutoff(metric) or _CUTOFFS[0]}
            values |= ranking_metrics(ranks, tuple(sorted(cutoffs)))
        if model.all_targets and spare is None:
            values |= _target_metrics(model, loader, processes, positions)
        if metric == "loss":
            values["loss"] = _loss(model, loader, processes, seed, spare)
    finally:
        model.train(training)
    return values


def _ranks(
    model: Model,
    loader: SessionLoader,
    processes: Processes,
    spare: SessionBatch | None,
    positions: Positions,
    filter_seen: bool,
) -> NDArray[Any]:
    """(N,) ranks of the targets of all processes. Collective."""
    ranks = []
    for batch in loader:
        share = _share(batch, processes)
        if spare is None:
            ranked = rank_targets(model, [share], positions, filter_seen=filter_seen)
            own = behind_every_list(ranked.ranks, ranked.targets)
            # batch by batch, in the order of one process
            ranks += [np.frombuffer(part, own.dtype) for part in gather_bytes(own.tobytes())]
        else:
            ranks.append(_rank_with_others(model, share, spare, positions, filter_seen))
    return np.concatenate(ranks)


def _target_metrics(
    model: Model, loader: SessionLoader, processes: Processes, positions: Positions
) -> dict[str, float]:
    """Metrics of the target tasks by `task.metric`. Collective.

    Undefined metrics, such as the auc of a single class, are left out.
    """
    shares = (_share(batch, processes) for batch in loader)
    values: dict[str, float] = {}
    for task, own in predict_targets(model, shares, positions).items():
        columns = np.stack([own.predictions, own.targets])  # (2, N) float32
        parts = gather_bytes(columns.tobytes())
        every = np.concatenate([np.frombuffer(p, columns.dtype).reshape(2, -1) for p in parts], 1)
        metrics = target_metrics(own._replace(predictions=every[0], targets=every[1]))
        diverged = bool(np.isnan(every[0]).any())
        values |= {f"{task}.{n}": v for n, v in metrics.items() if diverged or not math.isnan(v)}
    return values


def _share(batch: RaggedBatch, processes: Processes) -> RaggedBatch:
    """The consecutive sessions of a batch that this process ranks."""
    rank, count = processes.rank, processes.count
    if count == 1:
        return batch
    num_sessions = batch.lengths.numel()
    first, last = num_sessions * rank // count, num_sessions * (rank + 1) // count
    begin, end = int(batch.offsets[first]), int(batch.offsets[last])
    return RaggedBatch(
        {name: values[begin:end] for name, values in batch.sequences.items()},
        {name: values[first:last] for name, values in batch.sessions.items()},
        batch.offsets[first : last + 1] - begin,
    )


@torch.inference_mode()
def _rank_with_others(
    model: Model, batch: RaggedBatch, spare: SessionBatch, positions: Positions, filter_seen: bool
) -> NDArray[Any]:
    """Sessions of this process -> ranks of `rank_targets` of all processes, by process.
    Collective."""
    table, task = _sharded_table(model), model.head.next_item_task()
    device = table.weight.device
    longest = model.inputs.max_sequence_length or 2**31
    windows = evaluation_windows(batch.lengths, longest, positions, causal=model.causal)
    hidden, targets = hidden_at_targets(model, batch, positions, _BATCH_SIZE)
    for _ in range(_missing_passes(model, math.ceil(len(windows.rows) / _BATCH_SIZE))):
        model.at_targets(spare.to(device))
    ranks = rank_in_shards(
        task.queries(hidden),
        task.as_items(table.weight[max(0, FIRST_ITEM - table.shards.first) :]),
        targets.to(torch.int64) - FIRST_ITEM,
        table.shards,
        seen=seen_before(batch, model.inputs.item, positions, device) if filter_seen else None,
    )
    return ranks.cpu().numpy()


def _missing_passes(model: Model, passes: int) -> int:
    """Number of spare passes until the process with the most passes is done. Collective."""
    return max(_sharded_table(model).shards.sizes(passes)) - passes


def _sharded_table(model: Model) -> ShardedEmbedding:
    table = model.inputs.item_table
    assert isinstance(table, ShardedEmbedding)  # noqa: S101
    return table


@torch.no_grad()
def _loss(
    model: Model,
    loader: SessionLoader,
    processes: Processes,
    seed: int,
    spare: SessionBatch | None,
) -> float:
    """Mean loss of the targets of all processes, with random draws of `seed`. Collective."""
    device = model.device
    totals = sum_over_processes(_total_scales(model, loader, processes))
    share_of = torch.tensor([1 / total if total else 0.0 for total in totals])
    loss = 0.0
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for pool in loader:
            share, passes = _share(pool, processes), 0
            for batch in _whole_sessions(share):
                scales = loss_scales(model, batch).cpu()
                if scales.any():
                    shares = (scales * share_of).float().to(device)
                    loss += float(model.loss(batch.to(device), shares))
                    passes += 1
            if spare is not None:
                for _ in range(_missing_passes(model, passes)):
                    with torch.random.fork_rng(devices=devices):
                        model.loss(spare.to(device))
    (loss,) = sum_over_processes([loss])
    return loss if any(totals) else float("nan")


def _total_scales(model: Model, loader: SessionLoader, processes: Processes) -> list[float]:
    """Weight of the targets of each task in the sessions of this process."""
    total = torch.zeros(len(model.tasks_with_heads), dtype=torch.float64)
    for pool in loader:
        for batch in _whole_sessions(_share(pool, processes)):
            total += loss_scales(model, batch).cpu()
    return total.tolist()


def _whole_sessions(sessions: RaggedBatch) -> Iterator[SessionBatch]:
    """A few whole sessions at a time."""
    lengths = sessions.lengths
    for rows in torch.arange(lengths.numel(), device=lengths.device).split(_LOSS_SESSIONS):
        stops = lengths[rows]
        yield sessions.window(rows, torch.zeros_like(stops), stops)
