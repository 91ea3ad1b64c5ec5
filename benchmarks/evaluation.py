"""`python -m benchmarks evaluate`: speed of both evaluations, and the difference of metrics."""

from typing import Any

from benchmarks.data import write_sessions
from benchmarks.machine import machine_lines
from benchmarks.processes import Allocator
from benchmarks.settings import LONGEST, Setting
from benchmarks.sides import COST_HEADER, Sides, cost_cells, ratios, take_turns
from benchmarks.training import our_task

_TRAIN_SESSIONS = 20_000
_TRAIN_STEPS = 20
"""Steps in which the original learns popularity, so that some lists hold their target."""
_WARM_UP_SESSIONS = 256


def measure_evaluation(
    sides: Sides, setting: Setting, *, sessions: int, turns: int, allocator: Allocator
) -> dict[str, Any]:
    """Rank the last item of each session by both sides in turn, from the same weights.

    The original's Trainer computes its own metrics at 10 and 20. The busy wait of its loader is
    off, as the loader of the training would keep polling during the evaluation. The compared
    metrics come from a further pass with its reserved rows excluded, as in ours.
    """
    data = sides.scratch / "evaluation"
    parts = {"train": _TRAIN_SESSIONS, "warm_up": _WARM_UP_SESSIONS, "valid": sessions}
    write_sessions(data, items=setting.items, longest=LONGEST, parts=parts)
    shared = {"task": "evaluate", "data": str(data)}
    weights = str(sides.scratch / "weights.npz")
    original = setting.original() | shared | {"warm_up": _TRAIN_STEPS}
    original |= {"out": weights, "busy_wait": False}
    costs = take_turns(
        [
            # first: it writes the weights that ours reads
            ("Transformers4Rec", sides.original, original),
            ("pipeline", sides.ours, our_task(setting) | shared | {"original": weights}),
        ],
        allocator=allocator,
        core=sides.core,
        turns=turns,
        steps=1,
        logs=sides.scratch,
        title=f"evaluation of {setting.name}, {setting.items:,} items",
    )
    metrics = {name: cost.pop("metrics") for name, cost in costs.items()}
    theirs = metrics["Transformers4Rec"]
    metrics["pipeline"] = {name: metrics["pipeline"][name] for name in theirs}
    return {
        "model": setting.name,
        "items": setting.items,
        "d_model": setting.d_model,
        "sessions": sessions,
        "allocator": allocator,
        "versions": {name: cost.pop("versions") for name, cost in costs.items()},
        "costs": costs,
        "ratios": {"Transformers4Rec": ratios(costs["pipeline"], costs["Transformers4Rec"])},
        "metrics": metrics,
        "metric_difference": max(abs(metrics["pipeline"][n] - v) for n, v in theirs.items()),
    }


def evaluation_text(result: dict[str, Any]) -> str:
    """Return rates and metrics of both evaluations as text."""
    lines = [
        *machine_lines(result),
        "",
        f"{result['model']}, {result['items']:,} items, D {result['d_model']}: the last item of "
        f"{result['sessions']:,} sessions, metrics at 10 and 20",
        f"{'':<28} {COST_HEADER}",
    ]
    lines += [f"{name:<28} {cost_cells(cost)}" for name, cost in result["costs"].items()]
    for name, ratio in result["ratios"].items():
        lines.append(
            f"pipeline over {name}: {ratio['speed']:.2f} times, {ratio['cpu_speed']:.2f} by CPU "
            "time"
        )
    for name, values in result["metrics"].items():
        cells = "  ".join(f"{metric} {value:.6f}" for metric, value in values.items())
        lines.append(f"{name:<28} {cells}")
    lines.append(f"largest difference of a metric: {result['metric_difference']:.1e}")
    return "\n".join(lines)
