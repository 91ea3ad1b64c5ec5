"""Validation during training: ranking metrics, or the loss, of the validation sessions."""

import torch

from pipeline.data.batch import SessionBatch
from pipeline.data.loader import RaggedBatch, SessionLoader
from pipeline.evaluation.metrics import ranking_metrics
from pipeline.evaluation.targets import Positions, rank_targets
from pipeline.model.model import Model
from pipeline.model.ops.shards import ShardedEmbedding
from pipeline.recipe.choices import METRIC_NAME
from pipeline.training.batches import any_batch, loss_scale
from pipeline.training.distributed.processes import Processes, gather_rows, sum_over_processes
from pipeline.training.distributed.sharded_validation import missing_passes, rank_with_others

_CUTOFFS = (10, 20)
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
    """Metrics by `name@K` of the targets at `positions`, the same in each process. Collective.

    `metric` is among them. As the loss it is that of training, without dropout and with the same
    masks and negatives each time.
    """
    match = METRIC_NAME.fullmatch(metric)
    cutoffs = tuple(sorted({*_CUTOFFS, *([int(match[2])] if match else [])}))
    training = model.training
    model.eval()
    ranks = []
    is_sharded = isinstance(model.inputs.item_table, ShardedEmbedding)
    # input of the passes that a process makes while others still have batches
    spare = any_batch(loader) if is_sharded else None
    try:
        for batch in loader:
            share = _share(batch, processes)
            if spare is not None:
                ranks.append(
                    rank_with_others(model, share, spare, positions, filter_seen=filter_seen)
                )
                continue
            own = torch.from_numpy(
                rank_targets(model, [share], positions, filter_seen=filter_seen).ranks
            )
            # batch by batch, so that the order is that of one process
            ranks += gather_rows(own) if processes.count > 1 else [own]
        values = ranking_metrics(torch.cat(ranks).numpy(), cutoffs)
        if metric == "loss":
            values["loss"] = _loss(model, loader, processes, seed, spare)
    finally:
        model.train(training)
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


@torch.no_grad()
def _loss(
    model: Model,
    loader: SessionLoader,
    processes: Processes,
    seed: int,
    spare: SessionBatch | None,
) -> float:
    """Mean loss of the targets of all processes, with random draws of `seed`. Collective."""
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
                scale = loss_scale(model, batch)
                if scale:
                    total += scale * float(model.loss(batch.to(device)))
                    weight += scale
                    passes += 1
            if spare is not None:
                for _ in range(missing_passes(model, passes)):
                    with torch.random.fork_rng(devices=devices):
                        model.loss(spare.to(device))
    total, weight = sum_over_processes([total, weight])
    return total / weight if weight else float("nan")
