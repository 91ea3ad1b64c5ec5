"""Sessions per second and memory of an evaluation over the whole catalogue.

    python -m benchmarks.evaluation_memory --items 200000 --sessions 2000

Sessions are random, of 5 interactions on average; each has one target, its last interaction. A
separate process evaluates N sessions and another one 4 N, which shows the growth of memory with the
number of sessions. Time is CPU time of one core. Some ranks are compared with those of a table of
all scores.
"""

import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pipeline.data.loader import RaggedBatch

_LONGEST = 20
_BATCH = 1024
_COMPARED = 256


@dataclass(frozen=True)
class Cost:
    """Cost of an evaluation, and the number of ranks that differ from those of all scores."""

    targets: int
    sessions_per_cpu_second: float
    sessions_per_second: float
    peak_mib: float
    grown_mib: float
    """Peak beyond that of imports and model."""
    compared_ranks: int
    differing_ranks: int


def main(
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 200_000,
    d_model: Annotated[int, typer.Option(help="D: width of items and hidden states.")] = 128,
    sessions: Annotated[int, typer.Option(help="N; 4 N are evaluated as well.")] = 2_000,
    list_length: Annotated[int, typer.Option(help="K: also count lists of this length.")] = 0,
    positions: Annotated[Literal["last", "all"], typer.Option(help="Targets.")] = "last",
) -> None:
    """Evaluate a GPT-2 of two layers with random weights."""
    typer.echo(f"{items:,} items, D {d_model}, {positions} positions, lists of {list_length}")
    for number in (sessions, 4 * sessions):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            cost = process.submit(measure, items, d_model, number, list_length, positions).result()
        typer.echo(
            f"{number:>9,} sessions  {cost.targets:>9,} targets  "
            f"{cost.sessions_per_cpu_second:>7,.0f} sessions/s of CPU time "
            f"({cost.sessions_per_second:,.0f} by wall-clock time)  "
            f"peak {cost.peak_mib:,.0f} MiB, {cost.grown_mib:,.0f} above the model's  "
            f"{cost.differing_ranks} of {cost.compared_ranks} ranks differ"
        )


def measure(
    items: int, d_model: int, sessions: int, list_length: int, positions: Literal["last", "all"]
) -> Cost:
    """Evaluate in this process, on one core."""
    import torch

    from pipeline import model as tr
    from pipeline.core.columns import FIRST_ITEM
    from pipeline.evaluation.targets import hidden_at_targets, rank_targets
    from pipeline.model.build import build_model
    from pipeline.recipe.model import ModelConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    schema = tr.Schema((tr.ColumnSchema.create_categorical("item_id", items, tags=["item_id"]),))
    config = ModelConfig(architecture="gpt2", d_model=d_model, n_head=4, n_layer=2)
    model = build_model(schema, config, _LONGEST).eval()
    lengths = (list_length,) if list_length else ()
    before = _peak_mib()
    begin, wall = time.process_time(), time.perf_counter()
    ranked = rank_targets(model, random_sessions(items, sessions), positions, list_lengths=lengths)
    cpu_seconds, seconds = time.process_time() - begin, time.perf_counter() - wall
    peak, targets = _peak_mib(), len(ranked.ranks)
    few = list(random_sessions(items, _COMPARED))
    ranked = rank_targets(model, few, positions, list_lengths=lengths)
    differing = compared = 0
    with torch.inference_mode():
        for batch in few:
            hidden, target_ids = hidden_at_targets(model, batch, positions)
            for rows, ids in zip(hidden.split(32), target_ids.split(32), strict=True):
                scores = model.scores(rows)[:, FIRST_ITEM:]
                columns = (ids - FIRST_ITEM).unsqueeze(1)  # (b, 1), negative if unknown
                below = scores < scores.gather(1, columns.clamp(min=0))
                ranks = torch.where(columns[:, 0] >= 0, (~below).sum(1), scores.size(1) + 1)
                expected = ranks.numpy()
                differing += int((expected != ranked.ranks[compared : compared + len(rows)]).sum())
                compared += len(rows)
    return Cost(
        targets=targets,
        sessions_per_cpu_second=sessions / cpu_seconds,
        sessions_per_second=sessions / seconds,
        peak_mib=peak,
        grown_mib=peak - before,
        compared_ranks=compared,
        differing_ranks=differing,
    )


def random_sessions(items: int, sessions: int) -> Iterator["RaggedBatch"]:
    """Yield batches of sessions of 2 to 21 interactions, 5 on average, as a loader does."""
    import numpy as np
    import torch

    from pipeline.core.columns import FIRST_ITEM
    from pipeline.data.loader import RaggedBatch

    generator = np.random.default_rng(0)
    for first in range(0, sessions, _BATCH):
        size = min(_BATCH, sessions - first)
        lengths = np.clip(1 + generator.geometric(0.25, size), 2, _LONGEST + 1)
        values = generator.integers(FIRST_ITEM, FIRST_ITEM + items, lengths.sum())
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        yield RaggedBatch({"item_id": torch.from_numpy(values)}, {}, torch.from_numpy(offsets))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
