"""`python -m benchmarks accuracy`: metrics of both sides after equal epochs on the same data.

Both rank the same targets in the whole catalogue after the same prefixes; the original gets each
prefix as a separate input, through its inference path.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine_lines
from benchmarks.processes import run_task
from benchmarks.settings import BATCH_SIZE, Setting
from benchmarks.sides import Sides

CUTOFFS = (10, 20)
WARMUP_RATIO = 0.05
SCHEDULE = "linear"
_METRICS = tuple(f"{metric}@{cutoff}" for cutoff in CUTOFFS for metric in ("recall", "mrr", "ndcg"))

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Training of both sides, and the targets that they rank."""

    data: Path
    """Directory that preprocess wrote."""
    setting: Setting
    """Model; its number of items is that of the data."""
    epochs: int
    learning_rate: float
    seeds: int
    """Runs of each side."""
    part: str
    """Sessions to rank: valid or test."""
    positions: str
    """Targets of a session: all or last."""


def compare_accuracy(sides: Sides, plan: Plan) -> dict[str, Any]:
    """Train both sides once per seed and rank the targets.

    Returns the metrics of every run, their means, and the difference of ours with half the width
    of its 95 % interval over the targets. PipelineError if a side fails.
    """
    runs = []
    ranks: dict[str, list[np.ndarray]] = {"pipeline": [], "Transformers4Rec": []}
    facts: dict[str, Any] = {}
    for seed in range(plan.seeds):
        for side, result in _train_both(sides, plan, seed):
            run_ranks = np.load(sides.scratch / "ranks.npy", allow_pickle=False)
            ranks[side].append(run_ranks)
            facts |= result.get("facts", {})
            metrics = {name: float(_gains(name, run_ranks).mean()) for name in _METRICS}
            run = {name: result[name] for name in ("seconds", "loss", "versions")}
            runs.append({"side": side, "seed": seed, "metrics": metrics} | run)
    means: dict[str, dict[str, float]] = {side: {} for side in ranks}
    difference, half_width = {}, {}
    for name in _METRICS:
        ours, theirs = (np.mean([_gains(name, r) for r in ranks[side]], 0) for side in ranks)
        for side, gains in zip(ranks, (ours, theirs), strict=True):
            means[side][name] = float(gains.mean())
        difference[name] = float((ours - theirs).mean())
        half_width[name] = 1.96 * float((ours - theirs).std()) / math.sqrt(len(ours))
    versions = {run["side"]: run.pop("versions") for run in runs}
    return facts | {
        "data": str(plan.data),
        "model": plan.setting.name,
        "d_model": plan.setting.d_model,
        "epochs": plan.epochs,
        "learning_rate": plan.learning_rate,
        "part": plan.part,
        "positions": plan.positions,
        "versions": versions,
        "runs": runs,
        "mean": means,
        "difference": difference,
        "half_width": half_width,
    }


def _train_both(sides: Sides, plan: Plan, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (side, result) of ours, then of the original; each writes its ranks to ranks.npy."""
    shared = {
        "task": "accuracy",
        "data": str(plan.data),
        "prefixes": str(sides.scratch / "prefixes.npz"),
        "out": str(sides.scratch / "ranks.npy"),
    }
    options: dict[str, Any] = {
        "epochs": plan.epochs,
        "learning_rate": plan.learning_rate,
        "seed": seed,
        "schedule": SCHEDULE,
    }
    train = plan.setting.train_config(**options, warmup_ratio=WARMUP_RATIO)
    ours = shared | {
        "model": plan.setting.model_config().model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "run": str(sides.scratch / f"run-{seed}"),
        "part": plan.part,
        "positions": plan.positions,
    }
    logger.info("seed %d: ours", seed)
    log = sides.scratch / "accuracy-ours.log"
    result = run_task("Our program", sides.ours, ours, log=log, core=sides.core)
    yield "pipeline", result
    facts = result["facts"]
    steps = math.ceil(facts["train_sessions"] / BATCH_SIZE) * plan.epochs
    theirs = shared | plan.setting.original(
        **options,
        warmup_steps=math.ceil(WARMUP_RATIO * steps),
        longest=facts["longest"] + 1,  # a training row also holds its target
    )
    logger.info("seed %d: the original", seed)
    log = sides.scratch / "accuracy-original.log"
    result = run_task("Transformers4Rec", sides.original, theirs, log=log, core=sides.core)
    yield "Transformers4Rec", result


def _gains(name: str, ranks: np.ndarray) -> np.ndarray:
    """(N,) ranks -> (N,) values whose mean is a metric with one target."""
    metric, _, cutoff = name.partition("@")
    match metric:
        case "mrr":
            gains = 1 / ranks
        case "ndcg":
            gains = 1 / np.log2(ranks + 1)
        case _:
            gains = np.ones(len(ranks))
    return np.where(ranks <= int(cutoff), gains, 0.0)


def accuracy_text(result: dict[str, Any]) -> str:
    """Metrics of both sides by seed, and the difference."""

    def row(label: str, values: dict[str, float]) -> str:
        return f"{label:<30}" + "".join(f"{values[name]:>12.4f}" for name in names)

    names = list(result["mean"]["pipeline"])
    lines = [
        *machine_lines(result),
        "",
        f"{result['data']}: {result['targets']:,} targets ({result['positions']} positions), "
        f"{result['catalogue_items']:,} items ranked; {result['model']}, D {result['d_model']}, "
        f"{result['epochs']} epochs each",
        f"{'':<30}" + "".join(f"{name:>12}" for name in names) + f"{'seconds':>10}",
    ]
    for run in result["runs"]:
        label = f"{run['side']}, seed {run['seed']}"
        lines.append(row(label, run["metrics"]) + f"{run['seconds']:>10.1f}")
    lines += [row(f"{side}, mean", means) for side, means in result["mean"].items()]
    lines.append(row("difference", result["difference"]))
    lines.append(row("95 % interval, +-", result["half_width"]))
    return "\n".join(lines)
