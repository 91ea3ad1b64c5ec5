"""Memory and time of processes that train with a whole or a sharded item table.

    python -m benchmarks.sharding_memory --items 200000 --processes 2

Sessions are random, of 5 interactions, and hold each item once. Each process reports its memory
beyond that of its imports: the peak of training, validation and a checkpoint included, and the peak
until the run is written.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

_LENGTH = 5


@dataclass(frozen=True)
class Plan:
    """Training of all processes."""

    folder: Path
    """Folder of data, runs and results."""
    d_model: int
    processes: int
    batch: int
    steps: int
    recompute: bool


def main(
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 200_000,
    d_model: Annotated[int, typer.Option(help="D: width of items and hidden states.")] = 128,
    processes: Annotated[int, typer.Option(help="Number of processes.")] = 2,
    batch: Annotated[int, typer.Option(help="B: sessions of a batch of each process.")] = 128,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 6,
    recompute: Annotated[
        bool, typer.Option("--recompute/--keep", help="As `train.recompute`.")
    ] = True,
) -> None:
    """Train a GPT-2 of two layers."""
    with tempfile.TemporaryDirectory(prefix="pipeline-sharding-") as scratch:
        plan = Plan(Path(scratch), d_model, processes, batch, steps, recompute)
        write_data(plan.folder, items)
        typer.echo(f"{items:,} items, D {d_model}, {processes} processes of batch {batch}")
        for table in ("whole", "sharded"):
            parent = multiprocessing.get_context("spawn").Process(target=start, args=(plan, table))
            parent.start()
            parent.join()
            if parent.exitcode:
                typer.echo((plan.folder / f"{table}.log").read_text()[-8_000:], err=True)
                raise typer.Exit(1)
            for rank in range(processes):
                cost = json.loads((plan.folder / f"{table}.{rank}").read_text())
                typer.echo(
                    f"{table:>8}  process {rank}  training {cost['training_mib']:,.0f} MiB, "
                    f"to the end {cost['end_mib']:,.0f} MiB  {cost['step_seconds']:.2f} s a step"
                )


def write_data(folder: Path, items: int) -> None:
    """Write a data directory whose training sessions hold each item once."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    from pipeline.preprocessing.run import preprocess
    from pipeline.recipe.preprocess import Preprocess

    ids = np.random.default_rng(0).permutation(items)
    log = pa.table({"session_id": np.arange(items) // _LENGTH, "item_id": ids})
    pyarrow.csv.write_csv(log, folder / "log.csv")
    split: Any = {"valid": 0.01}
    recipe = Preprocess(split=split, timestamp=None)
    preprocess(recipe, [folder / "log.csv"], [], folder / "data")


def start(plan: Plan, table: str) -> None:
    """Import once, then train in forked processes; exit with 1 if one of them fails.

    Their stderr goes to a log in the folder.
    """
    log = os.open(plan.folder / f"{table}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, sys.stderr.fileno())
    import torch

    import pipeline.training.trainer  # noqa: F401
    from pipeline.serve.triton.ports import free_ports

    torch.set_num_threads(1)
    port = free_ports().http
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=work, args=(rank, port, plan, table)) for rank in range(plan.processes)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    sys.exit(int(any(process.exitcode for process in workers)))


def work(rank: int, port: int, plan: Plan, table: str) -> None:
    """Train as one process of several, and write the cost to a file."""
    from transformers import TrainerCallback

    from pipeline.recipe.model import ModelConfig
    from pipeline.recipe.train import TrainConfig
    from pipeline.training.run import train

    os.environ.update(
        WORLD_SIZE=str(plan.processes),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    before = peak_mib()
    cost: dict[str, float] = {}

    class CostCallback(TrainerCallback):
        def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
            self.begin = time.monotonic()

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            cost["step_seconds"] = time.monotonic() - self.begin

        def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
            cost["training_mib"] = peak_mib() - before

    model = ModelConfig(
        architecture="gpt2", d_model=plan.d_model, n_head=4, n_layer=2, item_vectors="random"
    )
    config = TrainConfig.from_dict(
        {
            "batch_size": plan.batch,
            "recompute": plan.recompute,
            "item_table": table,
            "arguments": {"max_steps": plan.steps},
        },
        "settings",
    )
    train(plan.folder / "data", model, config, plan.folder / table, callbacks=[CostCallback()])
    cost["end_mib"] = peak_mib() - before
    (plan.folder / f"{table}.{rank}").write_text(json.dumps(cost))


def peak_mib() -> float:
    """Return the peak of resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
