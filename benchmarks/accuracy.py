"""`python -m benchmarks accuracy`: what both sides learn from the same data in as many epochs.

Both rank the same targets in the whole catalogue after the same prefixes; the original gets each
prefix as an input of its own, through its inference path.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import run_task
from benchmarks.settings import BATCH_SIZE, Setting
from benchmarks.speed import Sides, say

CUTOFFS = (10, 20)
WARMUP_RATIO = 0.05
SCHEDULE = "linear"
_SHOWN = tuple(f"{metric}@{cutoff}" for cutoff in CUTOFFS for metric in ("recall", "mrr", "ndcg"))


def compare_accuracy(
    sides: Sides,
    data: Path,
    setting: Setting,
    *,
    epochs: int,
    learning_rate: float,
    seeds: int,
    part: str,
    positions: str,
) -> dict[str, Any]:
    """Train both sides `seeds` times on `data` and rank the targets of `part`.

    `setting` names the model; its number of items is that of the data. Returns the metrics of
    every run, their means, and the difference of ours with half the width of its 95 % interval
    over the targets. PipelineError where a side fails.
    """
    runs = []
    ranks: dict[str, list[np.ndarray]] = {"pipeline": [], "Transformers4Rec": []}
    facts: dict[str, Any] = {}
    prefixes = sides.scratch / "prefixes.npz"
    for seed in range(seeds):
        for side, done in _train_both(
            sides, data, setting, prefixes, epochs, learning_rate, seed, part, positions
        ):
            found = np.load(sides.scratch / "ranks.npy", allow_pickle=False)
            ranks[side].append(found)
            facts |= done.get("facts", {})
            runs.append(
                {
                    "side": side,
                    "seed": seed,
                    "seconds": done["seconds"],
                    "loss": done["loss"],
                    "metrics": _metrics(found),
                    "versions": done["versions"],
                }
            )
    means = {
        side: {name: float(np.mean([r["metrics"][name] for r in runs if r["side"] == side]))
               for name in _SHOWN}
        for side in ranks
    }  # fmt: skip
    difference, half_width = {}, {}
    for name in _SHOWN:
        gains = [np.mean([_gain(name, r) for r in ranks[side]], 0) for side in ranks]
        paired = gains[0] - gains[1]
        difference[name] = float(paired.mean())
        half_width[name] = 1.96 * float(paired.std()) / math.sqrt(len(paired))
    versions = {run["side"]: run.pop("versions") for run in runs}
    return facts | {
        "data": str(data),
        "model": setting.name,
        "d_model": setting.d_model,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "part": part,
        "positions": positions,
        "versions": versions,
        "runs": runs,
        "mean": means,
        "difference": difference,
        "half_width": half_width,
    }


def _train_both(
    sides: Sides,
    data: Path,
    setting: Setting,
    prefixes: Path,
    epochs: int,
    learning_rate: float,
    seed: int,
    part: str,
    positions: str,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ours, then the original; each leaves its ranks in ranks.npy."""
    shared = {
        "task": "accuracy",
        "data": str(data),
        "prefixes": str(prefixes),
        "out": str(sides.scratch / "ranks.npy"),
    }
    train = setting.train_config(
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        schedule=SCHEDULE,
        warmup_ratio=WARMUP_RATIO,
    )
    say(f"seed {seed}: ours")
    ours = {
        "model": setting.model_config().model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "run": str(sides.scratch / f"run-{seed}"),
        "part": part,
        "positions": positions,
    }
    log = sides.scratch / "accuracy-ours.log"
    done = run_task("Our program", sides.ours, ours | shared, log=log, core=sides.core)
    yield "pipeline", done
    facts = done["facts"]
    steps = math.ceil(facts["train_sessions"] / BATCH_SIZE) * epochs
    say(f"seed {seed}: the original")
    theirs = setting.original(
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        schedule=SCHEDULE,
        warmup_steps=math.ceil(WARMUP_RATIO * steps),
        # training rows hold their target as well
        longest=facts["longest"] + 1,
    )
    log = sides.scratch / "accuracy-original.log"
    yield (
        "Transformers4Rec",
        run_task("Transformers4Rec", sides.original, theirs | shared, log=log, core=sides.core),
    )


def _metrics(ranks: np.ndarray) -> dict[str, float]:
    return {name: float(_gain(name, ranks).mean()) for name in _SHOWN}


def _gain(name: str, ranks: np.ndarray) -> np.ndarray:
    """(N,) ranks -> (N,) what each adds to the mean of a metric with one target."""
    metric, _, cutoff = name.partition("@")
    inside = ranks <= int(cutoff)
    match metric:
        case "mrr":
            gains = 1 / ranks
        case "ndcg":
            gains = 1 / np.log2(ranks + 1)
        case _:
            gains = np.ones(len(ranks))
    return np.where(inside, gains, 0.0)
