"""Memory and time of processes that train with the item table whole or in parts.

    python benchmarks/sharding.py --items 200000 --processes 2

Sessions are random, of 5 interactions, so that each item occurs. Each process says how much more
memory it took than its imports: at most while it trained, validation and a checkpoint included,
and at most until the run was written.
"""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

_LENGTH = 5


@click.command()
@click.option("--items", default=200_000, show_default=True, help="Size of the catalogue.")
@click.option("--width", default=128, show_default=True, help="D, of item vectors and states.")
@click.option("--processes", default=2, show_default=True, help="N.")
@click.option("--batch", default=128, show_default=True, help="Sessions of a process.")
@click.option("--steps", default=6, show_default=True, help="Training steps.")
@click.option("--recompute/--keep", default=True, show_default=True, help="As `train.recompute`.")
@click.option("--one", nargs=2, hidden=True, help="Train in these processes: folder and table.")
def main(
    items: int,
    width: int,
    processes: int,
    batch: int,
    steps: int,
    recompute: bool,
    one: tuple[str, str] | None,
) -> None:
    """Train a GPT-2 of two layers."""
    settings = {"width": width, "batch": batch, "steps": steps, "recompute": recompute}
    if one:
        start(Path(one[0]), one[1], processes, settings)
        return
    with tempfile.TemporaryDirectory(prefix="pipeline-sharding-") as scratch:
        folder = Path(scratch)
        write_data(folder, items)
        click.echo(f"{items:,} items of width {width}, {processes} processes of batch {batch}")
        for table in ("whole", "sharded"):
            words = ["--processes", processes, "--width", width, "--batch", batch]
            words += ["--steps", steps, "--recompute" if recompute else "--keep"]
            words += ["--one", folder, table]
            command = [sys.executable, __file__, *map(str, words)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            for rank in range(processes):
                found = json.loads((folder / f"{table}.{rank}").read_text())
                click.echo(
                    f"{table:>8}  process {rank}  training {found['training_mib']:,.0f} MiB, "
                    f"to the end {found['end_mib']:,.0f} MiB  {found['step_seconds']:.2f} s a step"
                )


def write_data(folder: Path, num_items: int) -> None:
    """A data directory whose training sessions hold each item once."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    from pipeline.preprocessing.run import preprocess
    from pipeline.recipe.preprocess import Preprocess

    items = np.random.default_rng(0).permutation(num_items)
    log = pa.table({"session_id": np.arange(num_items) // _LENGTH, "item_id": items})
    pyarrow.csv.write_csv(log, folder / "log.csv")
    split: Any = {"valid": 0.01}
    recipe = Preprocess(split=split, timestamp=None)
    preprocess(recipe, [folder / "log.csv"], [], folder / "data")


def start(folder: Path, table: str, processes: int, settings: dict[str, Any]) -> None:
    """Import once, then train in so many processes."""
    import torch

    import pipeline.training.trainer  # noqa: F401
    from pipeline.serve.triton.ports import free_ports

    torch.set_num_threads(1)
    port = free_ports().http
    fork = multiprocessing.get_context("fork")
    running = [
        fork.Process(target=work, args=(rank, processes, port, folder, table, settings))
        for rank in range(processes)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()


def work(
    rank: int, count: int, port: int, folder: Path, table: str, settings: dict[str, Any]
) -> None:
    """Train as one of several, and write down what it took."""
    from transformers import TrainerCallback

    from pipeline.recipe.model import ModelConfig
    from pipeline.recipe.train import TrainConfig
    from pipeline.training.run import train

    os.environ.update(
        WORLD_SIZE=str(count),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    before = peak_mib()
    found: dict[str, float] = {}

    class Look(TrainerCallback):
        def on_step_begin(self, *_arguments: Any, **_others: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_arguments: Any, **_others: Any) -> None:
            found["step_seconds"] = time.monotonic() - self.began

        def on_train_end(self, *_arguments: Any, **_others: Any) -> None:
            found["training_mib"] = peak_mib() - before

    width = settings["width"]
    model = ModelConfig(d_model=width, n_head=4, n_layer=2)
    config = TrainConfig.from_dict(
        {
            "batch_size": settings["batch"],
            "recompute": settings["recompute"],
            "item_table": table,
            "arguments": {"max_steps": settings["steps"]},
        },
        "settings",
    )
    train(folder / "data", model, config, folder / table, callbacks=[Look()])
    found["end_mib"] = peak_mib() - before
    (folder / f"{table}.{rank}").write_text(json.dumps(found))


def peak_mib() -> float:
    """Most memory so far of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
