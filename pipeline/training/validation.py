"""How good a model is while it learns, on the validation sessions."""

import re

import torch

from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.data.loader import RaggedBatch, SessionLoader
from pipeline.evaluation.metrics import METRICS, ranking_metrics
from pipeline.evaluation.targets import Positions, rank_targets
from pipeline.model.model import Model
from pipeline.model.ops.shards import ShardedEmbedding
from pipeline.training.distributed.processes import Processes, gather_rows, sum_over_processes
from pipeline.training.distributed.sharded_validation import missing_passes, rank_with_others
from pipeline.training.loss_scale import target_weight

_CUTOFFS = (10, 20)
_NAME = re.compile(rf"({'|'.join(METRICS)})@([1-9][0-9]*)")
_LOSS_SESSIONS = 128


def check_metric(name: str) -> None:
    """ConfigError unless `name` is a validation metric."""
    if name != "loss" and not _NAME.fullmatch(name):
        known = ", ".join(f"{metric}@K" for metric in METRICS)
        raise ConfigError(
            f"`train.metric` is {name!r}, expected one of {known} with a cutoff K such as 20, or "
            "loss."
        )


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
    """Metrics by `name@K` over `positions`; the same in each process, who share the work.

    `metric` is among them, which may be the loss: as in training, but without dropout, and with
    the same masks and negatives each time.
    """
    found = _NAME.fullmatch(metric)
    cutoffs = tuple(sorted({*_CUTOFFS, *([int(found[2])] if found else [])}))
    training = model.training
    model.eval()
    ranks = []
    table = model.inputs.item_table
    # what a process does while others still have batches
    stand_in = _stand_in(loader) if isinstance(table, ShardedEmbedding) else None
    try:
        for batch in loader:
            share = _share(batch, processes)
            if stand_in is not None:
                ranks.append(
                    rank_with_others(model, share, stand_in, positions, filter_seen=filter_seen)
                )
                continue
            own = rank_targets(model, [share], positions, filter_seen=filter_seen).ranks
            # batch by batch, so that the order is that of one process
            ranks += (
                gather_rows(torch.from_numpy(own))
                if processes.count > 1
                else [torch.from_numpy(own)]
            )
        values = ranking_metrics(torch.cat(ranks).numpy(), cutoffs)
        if metric == "loss":
            values["loss"] = _loss(model, loader, processes, seed, stand_in)
    finally:
        model.train(training)
    return values


def _share(batch: RaggedBatch, processes: Processes) -> RaggedBatch:
    """Consecutive sessions of a batch, as many in each process but one."""
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


def _stand_in(loader: SessionLoader) -> SessionBatch:
    """Some session."""
    one = loader.any_session()
    row = torch.zeros(1, dtype=torch.int64, device=one.offsets.device)
    return one.window(row, row, one.lengths[:1])


@torch.no_grad()
def _loss(
    model: Model,
    loader: SessionLoader,
    processes: Processes,
    seed: int,
    stand_in: SessionBatch | None,
) -> float:
    device = next(model.parameters()).device
    total = weight = 0.0
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for pool in loader:
            share = _share(pool, processes)
            lengths, passes = share.lengths, 0
            for rows in torch.arange(lengths.numel(), device=lengths.device).split(_LOSS_SESSIONS):
                stops = lengths[rows]
                batch: SessionBatch = share.window(rows, torch.zeros_like(stops), stops)
                targets = target_weight(model, batch)
                if targets:
                    total += targets * float(model.loss(batch.to(device)))
                    weight += targets
                    passes += 1
            if stand_in is not None:
                for _ in range(missing_passes(model, passes)):
                    with torch.random.fork_rng(devices=devices):
                        model.loss(stand_in.to(device))
    total, weight = sum_over_processes([total, weight])
    return total / weight if weight else float("nan")
