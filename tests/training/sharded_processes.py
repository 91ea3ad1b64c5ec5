"""Processes of test_sharding.py: `python -m tests.training.sharded_processes FOLDER`.

Imports once, then forks: two processes, and three.
"""

import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from transformers import TrainerCallback

import pipeline.training.trainer  # noqa: F401  (slow to import, so before the fork)
from pipeline.core.errors import ProcessError
from pipeline.evaluation.ranking import Seen, rank_in_catalogue, rank_in_shards
from pipeline.model.ops.catalogue_chunks import Scratch, Settings
from pipeline.model.ops.catalogue_cross_entropy import catalogue_cross_entropy
from pipeline.model.ops.sharded_cross_entropy import sharded_cross_entropy
from pipeline.model.ops.shards import ShardedEmbedding, Shards
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.serve.triton.ports import free_ports
from pipeline.training.distributed.processes import joined_processes
from pipeline.training.run import train
from tests.training.two_processes import Stop

SMALL: dict[str, Any] = {
    "d_model": 8,
    "n_head": 2,
    "n_layer": 1,
    "dropout": 0.0,
    "feature_dropout": 0.0,
    "item_vectors": "random",
}
MODELS = {
    "gpt2": ModelConfig(**SMALL, architecture="gpt2", normalize=False, embedding_dim=4),
    "bert": ModelConfig(**SMALL, architecture="bert", masking="mlm", normalize=False),
    "cosine": ModelConfig(
        **SMALL, architecture="gpt2", normalize=True, temperature=0.1, item_dim=6
    ),
}
CONFIG = TrainConfig(
    epochs=2, batch_size=12, learning_rate=0.01, arguments={"logging_steps": 1}, metric="loss"
)
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"max_grad_norm": 0.5, "weight_decay": 0.1},
    "bert": {"gradient_accumulation_steps": 2, "epochs": 1},
    "cosine": {
        "epochs": 1,
        "label_smoothing": 0.1,
        "recompute": True,
        "process_data": "partitions",
    },
}
LOSSES = [(0.0, False, True), (0.2, True, True), (0.2, True, False), (0.0, False, False)]
"""Smoothing, cosine, exponentials kept."""


def config(name: str, table: str, **more: Any) -> TrainConfig:
    return CONFIG.model_copy(update={"item_table": table, **SETTINGS[name], **more})


class RowCounts(TrainerCallback):
    """Numbers of rows of the table, its gradient and its optimizer state in this process."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def on_optimizer_step(self, *_arguments: Any, **others: Any) -> None:
        weight = others["model"].model.inputs.item_table.weight
        self.rows |= {"weight": len(weight), "gradient": len(weight.grad)}

    def on_step_end(self, *_arguments: Any, **others: Any) -> None:
        state = others["optimizer"].state[others["model"].model.inputs.item_table.weight]
        self.rows |= {name: len(value) for name, value in state.items() if value.dim()}


def losses(rank: int, count: int, folder: Path) -> None:
    """Loss and gradients of the mean over all targets, of a table in parts and in one."""
    generator = torch.Generator().manual_seed(0)
    whole = nn.Embedding(23, 5, padding_idx=0, dtype=torch.float64)
    with torch.no_grad():
        whole.weight.copy_(torch.randn(whole.weight.shape, generator=generator).double())
    shards = Shards(rank=rank, count=count, num_rows=23)
    for smoothing, normalize, kept in LOSSES:
        table = ShardedEmbedding(whole, shards)
        # the last process has no target, and reads one session
        numbers = [7, *range(4, 4 + count - 2), 0]
        every = torch.randn(sum(numbers), 5, generator=generator).double().requires_grad_()
        targets = torch.randint(0, 20, (sum(numbers),), generator=generator)
        read = torch.randint(0, 23, (count, 4), generator=generator)
        own = slice(sum(numbers[:rank]), sum(numbers[: rank + 1]))
        settings = Settings(3, smoothing, normalize, Scratch() if kept else None, None)
        queries = every.detach()[own].clone().requires_grad_()
        values = sharded_cross_entropy(queries, table.weight, targets[own], settings, shards)
        vectors = table(read[rank])
        # each process scales as the Trainer does, for a mean over processes
        ((values.sum() / len(targets) + vectors.square().sum()) * count).backward()

        expected_table = whole.weight.detach().clone().requires_grad_()
        items = expected_table[3:]
        items = functional.normalize(items, dim=-1) if normalize else items
        expected = functional.cross_entropy(
            every @ items.T, targets, reduction="none", label_smoothing=smoothing
        )
        looked_up = functional.embedding(read, expected_table, padding_idx=0)
        (expected.mean() + looked_up.square().sum()).backward()
        assert every.grad is not None
        assert expected_table.grad is not None
        torch.testing.assert_close(values, expected[own])
        torch.testing.assert_close(vectors, looked_up[rank])
        torch.testing.assert_close(queries.grad, every.grad[own] * count)
        torch.testing.assert_close(
            table.weight.grad, expected_table.grad[shards.first : shards.last]
        )
        compare_low_precision(every.detach().float(), table, targets, settings, shards, own, whole)
    (folder / f"losses{count}.{rank}").write_text("agree")


def compare_low_precision(
    every: Tensor,
    table: ShardedEmbedding,
    targets: Tensor,
    settings: Settings,
    shards: Shards,
    own: slice,
    whole: nn.Embedding,
) -> None:
    """Under autocast factors are rounded alike, and exponentials by the maximum of a chunk."""
    queries, all_queries = (part.clone().requires_grad_() for part in (every[own], every))
    weight = whole.weight.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        values = sharded_cross_entropy(queries, table.weight, targets[own], settings, shards)
        expected = catalogue_cross_entropy(
            all_queries,
            weight,
            targets,
            first=settings.first,
            smoothing=settings.smoothing,
            normalize=settings.normalize,
        )
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected[own], rtol=1e-5, atol=1e-5)
    table.weight.grad = None
    (values.sum() * shards.count).backward()
    expected.sum().backward()
    assert all_queries.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(queries.grad, all_queries.grad[own] * shards.count, rtol=0, atol=0.1)
    torch.testing.assert_close(
        table.weight.grad, weight.grad[shards.first : shards.last], rtol=0, atol=0.05
    )


def ranks(rank: int, count: int, folder: Path) -> None:
    """Ranks of targets that have some twins, some of them unknown, some seen before."""
    generator = torch.Generator().manual_seed(1)
    items = torch.randn(20, 5, generator=generator)
    items[15] = items[2]
    shards = Shards(rank=rank, count=count, num_rows=23)
    numbers = [6, *range(3, 3 + count - 2), 0]
    queries = torch.randn(sum(numbers), 5, generator=generator)
    targets = torch.randint(-1, 20, (sum(numbers),), generator=generator)
    targets[:2] = torch.tensor([2, 15])
    stretches = torch.randint(-1, 20, (sum(numbers), 4), generator=generator)
    first = sum(numbers[:rank])
    own = slice(first, first + numbers[rank])
    own_items = items[max(0, shards.first - 3) : shards.last - 3]
    for filtered in (False, True):
        every = seen(stretches) if filtered else None
        expected = rank_in_catalogue(queries, items, targets, seen=every).ranks
        sharded = rank_in_shards(
            queries[own],
            own_items,
            targets[own],
            shards,
            seen=seen(stretches[own]) if filtered else None,
        )
        assert sharded.tolist() == expected.tolist()
    (folder / f"ranks{count}.{rank}").write_text("agree")


def seen(stretches: Tensor) -> Seen:
    """(T, 4) items before each of T targets."""
    starts = 4 * torch.arange(len(stretches))
    return Seen(stretches.reshape(-1), starts, starts + 4)


def two(rank: int, folder: Path) -> None:
    losses(rank, 2, folder)
    ranks(rank, 2, folder)
    data = folder / "data"
    for name in ("gpt2", "bert"):
        for table in ("whole", "sharded"):
            train(data, MODELS[name], config(name, table), folder / f"{name}-{table}")
    saving = config("gpt2", "sharded", checkpoint_steps=5)
    try:
        train(data, MODELS["gpt2"], saving, folder / "resumed", callbacks=[Stop(5)])
    except KeyboardInterrupt:
        (folder / f"stopped.{rank}").touch()
    train(data, MODELS["gpt2"], saving, folder / "resumed")

    stop = [Stop(3, kill=True)] if rank == 1 else []
    try:
        train(data, MODELS["gpt2"], config("gpt2", "sharded"), folder / "lost", callbacks=stop)
    except ProcessError as error:
        (folder / "error").write_text(str(error))


def three(rank: int, folder: Path) -> None:
    losses(rank, 3, folder)
    ranks(rank, 3, folder)
    counts = RowCounts()
    data, model = folder / "data", MODELS["cosine"]
    train(data, model, config("cosine", "whole"), folder / "cosine-whole")
    sharded = config("cosine", "sharded")
    train(data, model, sharded, folder / "cosine-sharded", callbacks=[counts])
    (folder / f"rows.{rank}").write_text(json.dumps(counts.rows))


def run(work: Callable[[int, Path], None], rank: int, count: int, port: int, folder: Path) -> None:
    os.environ.update(
        WORLD_SIZE=str(count),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with joined_processes():
        assert distributed.get_world_size() == count
        work(rank, folder)


def main(folder: Path) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    port = free_ports().http
    running = [
        fork.Process(target=run, args=(work, rank, count, port + count, folder))
        for work, count in ((two, 2), (three, 3))
        for rank in range(count)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
