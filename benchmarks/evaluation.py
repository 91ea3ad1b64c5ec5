"""Sessions per second and memory of an evaluation over the whole catalogue.

    python benchmarks/evaluation.py --items 200000 --sessions 2000

Sessions are random, of 5 interactions on average; each has one target, its last interaction. A
process of its own evaluates N sessions and another 4 N, so that what grows shows. Time is that of
one core, however busy the machine. Some ranks are compared with those of a table of all scores.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import click

_LONGEST = 20
_BATCH = 1024
_COMPARED = 256


@click.command()
@click.option("--items", default=200_000, show_default=True, help="Size of the catalogue.")
@click.option("--width", default=128, show_default=True, help="D, of item vectors and states.")
@click.option("--sessions", default=2_000, show_default=True, help="N; 4 N are evaluated as well.")
@click.option("--list-length", default=0, show_default=True, help="Also count lists of this K.")
@click.option("--positions", type=click.Choice(["last", "all"]), default="last", show_default=True)
@click.option("--one", is_flag=True, hidden=True, help="In this process, N sessions alone.")
def main(
    items: int, width: int, sessions: int, list_length: int, positions: str, one: bool
) -> None:
    """Evaluate a GPT-2 of two layers with random weights."""
    if one:
        click.echo(json.dumps(measure(items, width, sessions, list_length, positions)))
        return
    click.echo(f"{items:,} items of width {width}, {positions} positions, lists of {list_length}")
    for number in (sessions, 4 * sessions):
        words = ["--items", items, "--width", width, "--sessions", number, "--one"]
        words += ["--list-length", list_length, "--positions", positions]
        found = json.loads(
            subprocess.run(
                [sys.executable, __file__, *map(str, words)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
        )
        click.echo(
            f"{number:>9,} sessions  {found['targets']:>9,} targets  "
            f"{found['sessions_per_second']:>7,.0f} sessions/s of one core's time "
            f"({found['wall_sessions_per_second']:,.0f} by the clock)  "
            f"peak {found['peak_mib']:,.0f} MiB, {found['grown_mib']:,.0f} above the model's  "
            f"{found['differing_ranks']} of {found['compared_ranks']} ranks differ"
        )


def measure(
    num_items: int, width: int, num_sessions: int, list_length: int, positions: str
) -> dict[str, float]:
    """Evaluate in this process, on one core."""
    import torch

    from pipeline import model as tr
    from pipeline.core.columns import FIRST_ITEM
    from pipeline.evaluation.targets import hidden_at_targets, rank_targets
    from pipeline.model import ranking_metric
    from pipeline.model.build import build_model
    from pipeline.recipe.model import ModelConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    schema = tr.Schema(
        (tr.ColumnSchema.create_categorical("item_id", num_items, tags=["item_id"]),)
    )
    config = ModelConfig(architecture="gpt2", d_model=width, n_head=4, n_layer=2)
    model = build_model(schema, config, _LONGEST).eval()
    before = _peak_mib()
    begin, wall = time.process_time(), time.perf_counter()
    ranked = rank_targets(
        model,
        sessions_at_random(num_items, num_sessions),
        positions,  # type: ignore[arg-type]
        list_lengths=_lengths(list_length),
    )
    found = {
        "targets": len(ranked.ranks),
        "sessions_per_second": num_sessions / (time.process_time() - begin),
        "wall_sessions_per_second": num_sessions / (time.perf_counter() - wall),
        "peak_mib": _peak_mib(),
        "grown_mib": _peak_mib() - before,
    }
    few = list(sessions_at_random(num_items, _COMPARED))
    ranked = rank_targets(model, few, positions, list_lengths=_lengths(list_length))  # type: ignore[arg-type]
    differing = compared = 0
    with torch.inference_mode():
        for hidden, targets in hidden_at_targets(model, few, positions, 512):  # type: ignore[arg-type]
            for part, wanted in zip(hidden.split(32), targets.split(32), strict=True):
                scores = model.scores(part)[:, FIRST_ITEM:]
                expected = ranking_metric.ranks(scores, wanted - FIRST_ITEM).numpy()
                differing += int((expected != ranked.ranks[compared : compared + len(part)]).sum())
                compared += len(part)
    return {**found, "differing_ranks": differing, "compared_ranks": compared}


def sessions_at_random(num_items: int, num_sessions: int) -> Iterator[object]:
    """Batches of sessions of 2 to 21 interactions, 5 on average, as a loader gives them."""
    import numpy as np
    import torch

    from pipeline.core.columns import FIRST_ITEM
    from pipeline.data.loader import RaggedBatch

    generator = np.random.default_rng(0)
    for first in range(0, num_sessions, _BATCH):
        size = min(_BATCH, num_sessions - first)
        lengths = np.clip(1 + generator.geometric(0.25, size), 2, _LONGEST + 1)
        items = generator.integers(FIRST_ITEM, FIRST_ITEM + num_items, lengths.sum())
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        yield RaggedBatch({"item_id": torch.from_numpy(items)}, {}, torch.from_numpy(offsets))


def _lengths(list_length: int) -> tuple[int, ...]:
    return (list_length,) if list_length else ()


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
