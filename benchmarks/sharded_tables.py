"""Forms of one table over two processes, and their training steps.

They are the processes of `python -m benchmarks sharding`.

The model is only the table: the vector of an item is the query for the next item, and the same
table scores it, as with weight tying. All forms start with equal rows and read the same batches.

Shape letters: V rows of the table, D width, T targets of a step in all processes, N negatives.
"""

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.turns import Memory
from pipeline.model.losses import LabelSmoothCrossEntropyLoss, Sampled
from pipeline.model.losses.sampled import SampledSoftmaxLoss
from pipeline.model.ops.shards import ShardedEmbedding, Shards
from pipeline.model.ops.shared_gradient_embedding import share_gradient
from pipeline.training.optimizer import TableAdamW

NUM_PROCESSES = 2
HAS_TORCHREC = importlib.util.find_spec("torchrec") is not None
if HAS_TORCHREC:
    import torchrec
_DEVIATION = 0.05
_LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Task:
    """Steps of one form in one turn."""

    form: str
    items: int
    """V."""
    d_model: int
    """D."""
    targets: int
    """T."""
    negatives: int
    """N."""
    steps: int
    """Number of measured steps, after one that is not measured."""
    rendezvous: Path
    """File for the rendezvous of the processes."""


class Batch(NamedTuple):
    """Items of one process, and the negatives that all processes share."""

    items: Tensor
    """(T / 2,) items whose vectors are the queries."""
    targets: Tensor
    """(T / 2,) next items."""
    negatives: Tensor
    """(N,) items, drawn uniformly."""


Step = Callable[[Batch], Tensor]
"""Take a training step; return the mean loss of this process's targets, ()."""


def run(task: Task, rank: int) -> dict[str, Any]:
    """Train as process `rank`; return time of a step, peak memory and losses."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=task.rendezvous.as_uri(),
        rank=rank,
        world_size=NUM_PROCESSES,
    )
    try:
        # A separate function, so that the model is freed before the group: if
        # DistributedDataParallel is the last owner of the group, its destructor holds the GIL while
        # it waits for a thread of the group, which needs the GIL.
        return _measure(task, rank)
    finally:
        distributed.destroy_process_group()


def _measure(task: Task, rank: int) -> dict[str, Any]:
    before = Memory()
    step = FORMS[task.form](task, rank)
    batches = [_batch(task, rank, seed) for seed in range(task.steps + 1)]
    training = Memory()  # excludes the whole table that a process creates first
    losses = [step(batches[0])]
    distributed.barrier()
    begin, used = time.perf_counter(), time.process_time()
    losses += [step(batch) for batch in batches[1:]]
    distributed.barrier()
    seconds = (time.perf_counter() - begin) / task.steps
    processor_seconds = (time.process_time() - used) / task.steps
    peak = training.begin_bytes + training.read()["peak_bytes"] - before.begin_bytes
    means = torch.stack(losses)
    distributed.all_reduce(means)
    return {
        "step_seconds": seconds,
        "processor_seconds": processor_seconds,
        "peak_bytes": peak,
        "losses": (means / NUM_PROCESSES).tolist(),
    }


def _batch(task: Task, rank: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(task.items, (2, task.targets), generator=generator)
    items, targets = draws.chunk(NUM_PROCESSES, 1)[rank]
    return Batch(items, targets, torch.randint(task.items, (task.negatives,), generator=generator))


def _whole(task: Task) -> nn.Embedding:
    """Return a (V, D) table with equal rows in all forms and processes."""
    rows = torch.empty(task.items, task.d_model)
    rows.normal_(std=_DEVIATION, generator=torch.Generator().manual_seed(0))
    return nn.Embedding(*rows.shape, _weight=rows)


def _sharded(task: Task, rank: int) -> ShardedEmbedding:
    shards = Shards(rank=rank, count=NUM_PROCESSES, num_rows=task.items)
    return ShardedEmbedding(_whole(task), shards)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Step:
    """Return the step of a model that returns its loss; without optimizer, backward updates it."""

    def step(batch: Batch) -> Tensor:
        loss: Tensor = model(batch)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return step


class _Exact(nn.Module):
    """Cross-entropy over the whole catalogue with a whole or sharded table."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.loss = LabelSmoothCrossEntropyLoss()
        if isinstance(table, ShardedEmbedding):
            self.loss.shards = table.shards

    def forward(self, batch: Batch) -> Tensor:
        lookup, scored = share_gradient(self.table.weight)
        if isinstance(self.table, ShardedEmbedding):
            queries = self.table.look_up(batch.items, lookup, sparse=True)
        else:
            queries = functional.embedding(batch.items, lookup, sparse=True)
        return self.loss.over_catalogue(queries, scored, batch.targets, first=0, normalize=False)


class _Sampled(nn.Module):
    """Softmax over the target and N negatives; `look_up` returns the vectors of (n,) items."""

    def __init__(self, table: nn.Module, look_up: Callable[[Tensor], Tensor], items: int) -> None:
        super().__init__()
        self.table, self.look_up, self.items = table, look_up, items
        self.loss = SampledSoftmaxLoss()

    def forward(self, batch: Batch) -> Tensor:
        number = len(batch.items)
        vectors = self.look_up(torch.cat(batch))
        queries, targets, negatives = vectors.split([number, number, len(batch.negatives)])
        sampled = Sampled(
            positive=(queries * targets).sum(1),
            negative=queries @ negatives.T,
            log_expected=torch.tensor([math.log(len(negatives) / self.items)]),
            is_negative=batch.targets.unsqueeze(1) != batch.negatives,
            num_items=self.items,
        )
        return self.loss(sampled).mean()


def _adamw(table: nn.Embedding) -> TableAdamW:
    return TableAdamW(table.parameters(), _LEARNING_RATE)


def _row_wise_adamw(table: nn.Embedding) -> TableAdamW:
    table.sparse = True
    return TableAdamW(table.parameters(), _LEARNING_RATE, lazy=[table.weight], row_wise=True)


def _exact_whole(task: Task, _rank: int) -> Step:
    table = _whole(task)
    return _steps(DistributedDataParallel(_Exact(table)), _adamw(table))


def _exact_own(task: Task, rank: int) -> Step:
    table = _sharded(task, rank)
    return _steps(_Exact(table), _adamw(table))


def _exact_dtensor(task: Task, rank: int) -> Step:
    """Vocabulary-parallel embedding and output of torch, tied, with `loss_parallel`."""
    from torch.distributed.tensor import DTensor as Distributed
    from torch.distributed.tensor import Replicate, Shard, init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        loss_parallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (NUM_PROCESSES,))
    output = nn.Linear(task.d_model, task.items, bias=False, device="meta")
    table = _whole(task)
    output.weight = table.weight
    each, scores = Shard(0), Shard(-1)
    parallelize_module(table, mesh, RowwiseParallel(input_layouts=each, output_layouts=each))
    plan = ColwiseParallel(input_layouts=each, output_layouts=scores, use_local_output=False)
    parallelize_module(output, mesh, plan)
    output.weight = table.weight
    optimizer = torch.optim.AdamW(table.parameters(), _LEARNING_RATE, weight_decay=0.01, fused=True)

    def step(batch: Batch) -> Tensor:
        logits = output(table(batch.items))  # (T, V), of which this process holds (T, V / 2)
        targets = Distributed.from_local(batch.targets, mesh, [each]).redistribute(
            mesh, [Replicate()]
        )
        with loss_parallel():
            loss = functional.cross_entropy(logits, targets)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach().to_local()

    return step


def _sampled_whole(task: Task, _rank: int) -> Step:
    table = _whole(task)
    optimizer = _row_wise_adamw(table)
    model = DistributedDataParallel(_Sampled(table, table, task.items))
    return _steps(model, optimizer)


def _sampled_own(task: Task, rank: int) -> Step:
    table = _sharded(task, rank)
    return _steps(_Sampled(table, table, task.items), _row_wise_adamw(table))


def _sampled_torchrec(task: Task, rank: int) -> Step:
    """Row-wise sharded table of TorchRec, updated by row-wise Adagrad in the backward pass."""
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingPlan

    config = torchrec.EmbeddingConfig(
        name="item",
        feature_names=["item"],
        num_embeddings=task.items,
        embedding_dim=task.d_model,
    )
    tables = torchrec.EmbeddingCollection(tables=[config], device=torch.device("meta"))
    _apply_optimizer_in_backward(
        torchrec.optim.RowWiseAdagrad, tables.parameters(), {"lr": _LEARNING_RATE}
    )
    sharder: Any = EmbeddingCollectionSharder()
    plan = construct_module_sharding_plan(
        tables,
        {"item": row_wise()},
        sharder=sharder,
        world_size=NUM_PROCESSES,
        local_size=NUM_PROCESSES,
        device_type="cpu",
    )
    model = DistributedModelParallel(
        tables, device=torch.device("cpu"), plan=ShardingPlan({"": plan}), sharders=[sharder]
    )
    [shard] = model.state_dict()["embeddings.item.weight"].local_shards()
    first = shard.metadata.shard_offsets[0]
    shard.tensor.detach().copy_(_whole(task).weight[first : first + len(shard.tensor)])

    def look_up(indices: Tensor) -> Tensor:
        lengths = torch.ones(len(indices), dtype=torch.int64)
        features = torchrec.KeyedJaggedTensor(["item"], indices, lengths=lengths)
        return model(features)["item"].values()

    return _steps(_Sampled(model, look_up, task.items), None)


FORMS: dict[str, Callable[[Task, int], Step]] = {
    "exact, whole": _exact_whole,
    "exact, own": _exact_own,
    "exact, DTensor": _exact_dtensor,
    "sampled, whole": _sampled_whole,
    "sampled, own": _sampled_own,
    "sampled, TorchRec": _sampled_torchrec,
}
"""Loss and kind of table: builder of the steps."""
