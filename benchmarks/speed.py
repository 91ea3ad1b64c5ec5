"""Training speed: sessions a second and peak memory, both sides in turn."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import ratios
from benchmarks.data import padded_batch, write_sessions
from benchmarks.processes import Allocator, Program, Worker, run_task, workers
from benchmarks.settings import (
    BATCH_SIZE,
    EXACT,
    LONGEST,
    MLM_PROBABILITY,
    Form,
    Setting,
    choose_forms,
)

ORIGINALS = ("shipped", "patient")
"""The original as it comes, and without the busy wait of its loader."""
_SESSIONS = 100_000
_WARM_UP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Programs of both sides and where they run."""

    ours: Program
    original: Program
    core: int | None
    scratch: Path
    """For data, arrays and logs."""


def measure(
    sides: Sides,
    settings: Iterable[Setting],
    *,
    allocators: tuple[Allocator, ...],
    originals: tuple[str, ...] = ORIGINALS,
    forms: tuple[str, ...] = (),
    turns: int = 8,
    steps: int | None = None,
    comparison: bool = True,
) -> list[dict[str, Any]]:
    """Each setting in turn: whether both sides compute the same, then what they cost.

    `steps` of a turn, those of the setting where it is not given. PipelineError where a side
    fails; no process outlives the call.
    """
    results = []
    for setting in settings:
        data = sides.scratch / f"items-{setting.items}"
        if not data.is_dir():
            write_sessions(data, items=setting.items, longest=LONGEST, parts={"train": _SESSIONS})
        chosen = choose_forms(setting, forms)
        result: dict[str, Any] = {
            "model": setting.name,
            "items": setting.items,
            "d_model": setting.d_model,
            "left_out": [name for name in setting.forms if name not in {f.name for f in chosen}],
        }
        if comparison:
            say(f"{_title(setting)}: comparing loss and gradients")
            result["comparison"] = compare_mathematics(sides, setting, chosen, data)
        result["speed"] = {
            allocator: _measure_one(
                sides, setting, chosen, data, allocator, originals, turns, steps or setting.steps
            )
            for allocator in allocators
        }
        results.append(result)
    return results


def compare_mathematics(
    sides: Sides, setting: Setting, forms: list[Form], data: Path
) -> dict[str, Any]:
    """Relative differences of loss and gradients, by form, on one batch from equal weights.

    The original lets positions see padding under mlm, so sessions fill L there, and both hide the
    same positions. Without dropout, in float32.
    """
    random = np.random.default_rng(1)
    mlm = setting.masking == "mlm"
    items = padded_batch(random, BATCH_SIZE, setting.items, LONGEST, full=mlm)
    hidden = random.random(items.shape) < MLM_PROBABILITY
    hidden[:, 0], hidden[:, 1] = True, False  # at least one, never all
    batch, arrays = sides.scratch / "batch.npz", sides.scratch / "original.npz"
    np.savez(batch, items=items, hidden=hidden)
    shared = {"task": "gradients", "data": str(data), "batch": str(batch)}
    run_task(
        "Transformers4Rec",
        sides.original,
        setting.original(dropout=0.0) | shared | {"out": str(arrays)},
        log=sides.scratch / "gradients-original.log",
        core=sides.core,
    )
    found = {}
    for form in forms:
        if form.same_loss:
            found[form.name] = run_task(
                "Our program",
                sides.ours,
                our_task(setting, form, dropout=0.0) | shared | {"original": str(arrays)},
                log=sides.scratch / "gradients-ours.log",
                core=sides.core,
            )
    arrays.unlink()
    return found


def our_task(setting: Setting, form: Form = EXACT, **changes: Any) -> dict[str, Any]:
    """What our program is told of a setting."""
    return {
        "model": setting.model_config(form, **changes).model_dump(mode="json"),
        "train": setting.train_config(form).model_dump(mode="json"),
        "longest": LONGEST,
    }


def _measure_one(
    sides: Sides,
    setting: Setting,
    forms: list[Form],
    data: Path,
    allocator: Allocator,
    originals: tuple[str, ...],
    turns: int,
    steps: int,
) -> dict[str, Any]:
    shared = {"task": "train", "data": str(data), "warm_up": _WARM_UP_STEPS}
    tasks = [(f"ours {form.name}", sides.ours, our_task(setting, form) | shared) for form in forms]
    # the original stands between two of ours
    for place, name in enumerate(originals):
        task = setting.original() | shared | {"busy_wait": name == "shipped"}
        tasks.insert(2 * place + 1, (f"original {name}", sides.original, task))
    costs = take_turns(
        tasks,
        allocator=allocator,
        core=sides.core,
        turns=turns,
        steps=steps,
        logs=sides.scratch,
        title=f"{_title(setting)}, {allocator} heap",
    )
    ours = {form.name: costs[f"ours {form.name}"] for form in forms}
    theirs = {name: costs[f"original {name}"] for name in originals}
    return {
        "ours": ours,
        "original": theirs,
        "versions": {
            "pipeline": _versions(ours),
            "Transformers4Rec": _versions(theirs),
        },
        "ratios": {
            form: {name: ratios.compare(mine, theirs[name]) for name in originals}
            for form, mine in ours.items()
        },
    }


def _versions(costs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Take them out of what each process said at its end; they agree."""
    found: dict[str, str] = {}
    for cost in costs.values():
        found = cost.pop("versions")
    return found


def take_turns(
    tasks: list[tuple[str, Program, dict[str, Any]]],
    *,
    allocator: Allocator,
    core: int | None,
    turns: int,
    steps: int,
    logs: Path,
    title: str = "turns",
) -> dict[str, dict[str, Any]]:
    """Give each task a turn, `turns` times over, one at work at a time; totals by name.

    Each has the peak of its memory, and its turns one by one.
    """
    with (
        tqdm(total=len(tasks) * (turns + 1), desc=title, unit="turn", disable=None) as bar,
        workers([]) as started,
    ):
        if bar.disable:
            say(title)
        for name, program, task in tasks:
            log = logs / f"{name.replace(' ', '-')}.log"
            worker = Worker(name, program, task, allocator=allocator, core=core, log=log)
            started.append(worker)
            worker.wait_until_ready()
            bar.update()
        costs: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in started}
        for _ in range(turns):
            for worker in started:
                costs[worker.name].append(worker.turn(steps))
                bar.update()
        return {
            worker.name: ratios.rates(costs[worker.name])
            | worker.end()
            | {"turns": costs[worker.name]}
            for worker in started
        }


def _title(setting: Setting) -> str:
    return f"{setting.name}, {setting.items:,} items, D {setting.d_model}"


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
