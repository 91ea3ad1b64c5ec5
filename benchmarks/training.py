"""`python -m benchmarks train`: sessions a second and peak memory of both sides, in turn."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import padded_batch, write_sessions
from benchmarks.machine import machine_lines
from benchmarks.processes import ALLOCATORS, Allocator, run_task
from benchmarks.settings import (
    BATCH_SIZE,
    EXACT,
    LONGEST,
    MLM_PROBABILITY,
    Form,
    Setting,
    choose_forms,
)
from benchmarks.sides import COST_HEADER, Sides, cost_cells, ratios, take_turns

_SESSIONS = 100_000
_WARM_UP_STEPS = 3
_ORIGINALS = {"shipped": "Transformers4Rec as shipped", "patient": "... without its busy wait"}
_HEAPS = {"default": "default allocator", "kept": "kept heap"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Measurements of each setting."""

    allocators: tuple[Allocator, ...] = ALLOCATORS
    originals: tuple[str, ...] = tuple(_ORIGINALS)
    """The original as shipped, and `patient`, without the busy wait of its loader."""
    forms: tuple[str, ...] = ()
    """Names of our forms, empty for all of a setting."""
    turns: int = 8
    steps: int | None = None
    """Steps of a turn, None for those of the setting."""
    comparison: bool = True
    """Compare loss and gradients first."""


def measure_training(sides: Sides, settings: Iterable[Setting], plan: Plan) -> list[dict[str, Any]]:
    """Compare loss and gradients of each setting, then measure speed and memory.

    PipelineError if a side fails; no process outlives the call.
    """
    results = []
    for setting in settings:
        data = write_training_data(sides.scratch, setting)
        forms = choose_forms(setting, plan.forms)
        result: dict[str, Any] = {
            "model": setting.name,
            "items": setting.items,
            "d_model": setting.d_model,
            "left_out": [name for name in setting.forms if name not in {f.name for f in forms}],
        }
        if plan.comparison:
            logger.info("%s: comparing loss and gradients", setting.title)
            result["comparison"] = compare_gradients(sides, setting, forms, data)
        result["speed"] = {
            allocator: _measure_speed(sides, setting, forms, data, allocator, plan)
            for allocator in plan.allocators
        }
        results.append(result)
    return results


def write_training_data(scratch: Path, setting: Setting) -> Path:
    """Return the data directory of a setting's catalogue, written at the first use."""
    data = scratch / f"items-{setting.items}"
    if not data.is_dir():
        write_sessions(data, items=setting.items, longest=LONGEST, parts={"train": _SESSIONS})
    return data


def compare_gradients(
    sides: Sides, setting: Setting, forms: list[Form], data: Path
) -> dict[str, Any]:
    """Return relative differences of loss and gradients, by form, from equal weights and batch.

    The original lets positions attend to padding under mlm, so sessions fill L there, and both
    mask the same positions. Without dropout, in float32.
    """
    random = np.random.default_rng(1)
    mlm = setting.masking == "mlm"
    items = padded_batch(random, BATCH_SIZE, setting.items, LONGEST, full=mlm)
    masked = random.random(items.shape) < MLM_PROBABILITY
    masked[:, 0], masked[:, 1] = True, False  # at least one, never all
    batch, arrays = sides.scratch / "batch.npz", sides.scratch / "original.npz"
    np.savez(batch, items=items, masked=masked)
    shared = {"task": "gradients", "data": str(data), "batch": str(batch)}
    run_task(
        "Transformers4Rec",
        sides.original,
        setting.original(dropout=0.0) | shared | {"out": str(arrays)},
        log=sides.scratch / "gradients-original.log",
        core=sides.core,
    )
    comparison = {
        form.name: run_task(
            "Our program",
            sides.ours,
            our_task(setting, form, dropout=0.0) | shared | {"original": str(arrays)},
            log=sides.scratch / "gradients-ours.log",
            core=sides.core,
        )
        for form in forms
        if form.same_loss
    }
    arrays.unlink()
    return comparison


def our_task(setting: Setting, form: Form = EXACT, **changes: Any) -> dict[str, Any]:
    """Return a setting as the task of our program; `changes` are of the model."""
    return {
        "model": setting.model_config(form, **changes).model_dump(mode="json"),
        "train": setting.train_config(form).model_dump(mode="json"),
        "longest": LONGEST,
    }


def training_task(setting: Setting, form: Form, data: Path) -> dict[str, Any]:
    """Return the task of our program that trains turn by turn on `data`."""
    return our_task(setting, form) | _shared_task(data)


def _shared_task(data: Path) -> dict[str, Any]:
    return {"task": "train", "data": str(data), "warm_up": _WARM_UP_STEPS}


def _measure_speed(
    sides: Sides,
    setting: Setting,
    forms: list[Form],
    data: Path,
    allocator: Allocator,
    plan: Plan,
) -> dict[str, Any]:
    tasks = [
        (f"ours {form.name}", sides.ours, training_task(setting, form, data)) for form in forms
    ]
    # the original runs between two of ours
    for position, name in enumerate(plan.originals):
        task = setting.original() | _shared_task(data) | {"busy_wait": name == "shipped"}
        tasks.insert(2 * position + 1, (f"original {name}", sides.original, task))
    costs = take_turns(
        tasks,
        allocator=allocator,
        core=sides.core,
        turns=plan.turns,
        steps=plan.steps or setting.steps,
        logs=sides.scratch,
        title=f"{setting.title}, {allocator} heap",
    )
    ours = {form.name: costs[f"ours {form.name}"] for form in forms}
    theirs = {name: costs[f"original {name}"] for name in plan.originals}
    return {
        "ours": ours,
        "original": theirs,
        "versions": {"pipeline": _versions(ours), "Transformers4Rec": _versions(theirs)},
        "ratios": {
            form: {name: ratios(cost, theirs[name]) for name in plan.originals}
            for form, cost in ours.items()
        },
    }


def _versions(costs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Remove `versions` from all costs of a side and return one, as they are the same."""
    versions: dict[str, str] = {}
    for cost in costs.values():
        versions = cost.pop("versions")
    return versions


def training_text(result: dict[str, Any]) -> str:
    """Return rates, memory and ratios of each setting as text."""
    blocks = ["\n".join(machine_lines(result))]
    for setting in result["settings"]:
        lines = [
            f"{setting['model']}, {setting['items']:,} items, D {setting['d_model']}: two layers, "
            f"batches of {result['batch_size']} sessions, L {result['longest']}"
        ]
        lines += _comparison_lines(setting.get("comparison", {}))
        for allocator, speed in setting["speed"].items():
            lines += ["", *_speed_table(_HEAPS[allocator], speed)]
        if setting["left_out"]:
            lines.append(f"Not measured: {', '.join(setting['left_out'])}.")
        blocks.append("\n".join(lines))
    blocks.append(
        "times: sessions a second of ours over the original's, by wall-clock time and by CPU time;"
        "\nMB: peak beyond what was resident after imports, and ours over the original's."
    )
    return "\n\n".join(blocks)


def _comparison_lines(comparison: dict[str, Any]) -> list[str]:
    return [
        f"Same weights, same batch, {form}: loss {differences['loss']:.6f}, the original's "
        f"{differences['original_loss']:.6f};\n  relative difference "
        f"{differences['loss_difference']:.1e}, of the gradients of {differences['parameters']} "
        f"parameters at most {differences['gradient_difference']:.1e}"
        for form, differences in comparison.items()
    ]


def _speed_table(title: str, speed: dict[str, Any]) -> list[str]:
    originals = speed["original"]
    lines = [f"{title:<28} {COST_HEADER}" + "".join(f"  {'over ' + n:>26}" for n in originals)]
    for name, cost in originals.items():
        lines.append(f"{_ORIGINALS[name]:<28} {cost_cells(cost)}")
    for form, cost in speed["ours"].items():
        cells = [
            f"{ratio['speed']:.2f}, {ratio['cpu_speed']:.2f} times, {ratio['memory']:.2f}"
            for ratio in (speed["ratios"][form][name] for name in originals)
        ]
        lines.append(
            f"{'pipeline, ' + form:<28} {cost_cells(cost)}" + "".join(f"  {c:>26}" for c in cells)
        )
    return lines
