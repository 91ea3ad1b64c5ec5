"""`python -m benchmarks evaluate`: how fast both sides evaluate, and that the numbers agree."""

from typing import Any

from benchmarks import ratios
from benchmarks.data import write_sessions
from benchmarks.processes import Allocator
from benchmarks.settings import LONGEST, Setting
from benchmarks.speed import Sides, our_task, take_turns

_TRAIN_SESSIONS = 20_000
_TRAIN_STEPS = 20
"""The original learns what is popular, so that a target is in some lists."""
_WARM_UP_SESSIONS = 256


def measure_evaluation(
    sides: Sides, setting: Setting, *, sessions: int, turns: int, allocator: Allocator
) -> dict[str, Any]:
    """The last item of so many sessions by both, from the same weights, in turn.

    The original's Trainer computes its own metrics at 10 and 20. Its loader's busy wait is taken
    away: what trained before would go on polling beside the evaluation. The numbers that are
    compared come from a further pass with its reserved rows hidden, as they are in ours.
    """
    data = sides.scratch / "evaluation"
    parts = {"train": _TRAIN_SESSIONS, "warm_up": _WARM_UP_SESSIONS, "valid": sessions}
    write_sessions(data, items=setting.items, longest=LONGEST, parts=parts)
    shared = {"task": "evaluate", "data": str(data)}
    weights = str(sides.scratch / "weights.npz")
    original = setting.original() | shared | {"warm_up": _TRAIN_STEPS}
    costs = take_turns(
        [
            # first: it writes the weights that ours reads
            (
                "Transformers4Rec",
                sides.original,
                original | {"out": weights, "busy_wait": False},
            ),
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
        "ratios": {
            "Transformers4Rec": ratios.compare(costs["pipeline"], costs["Transformers4Rec"])
        },
        "metrics": metrics,
        "metric_difference": max(abs(metrics["pipeline"][n] - v) for n, v in theirs.items()),
    }
