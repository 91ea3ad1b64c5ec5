"""`python -m benchmarks sharding`: one table over two processes, by this project and by libraries.

Two processes of one thread each train the forms of `sharded_tables.py`, which take turns in new
processes. TorchRec is not a dependency: without it its form is left out.
"""

import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_lines
from benchmarks.sharded_tables import FORMS, HAS_TORCHREC, NUM_PROCESSES, Task, run

SAMPLED_STEPS = 20
"""Steps of a sampled loss per step of an exact loss, which takes about a hundred times as long."""
_SCORE_COPIES = 4
"""Number of (T, V / 2) tensors that a step of DTensor holds at once."""
_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes and turns of a benchmark."""

    items: tuple[int, ...] = (100_000, 1_000_000)
    """V of each table."""
    targets: int = 2_048
    """T of a step, in all processes."""
    d_model: int = 128
    negatives: int = 256
    turns: int = 3
    steps: int = 2
    """Steps of a turn with an exact loss."""


def measure_sharding(plan: Plan) -> dict[str, Any]:
    """Measure all forms of each table."""
    tables = [_measure_table(plan, items) for items in plan.items]
    names = ["torch", *(["torchrec", "fbgemm-gpu-cpu"] if HAS_TORCHREC else [])]
    return {
        "targets": plan.targets,
        "d_model": plan.d_model,
        "negatives": plan.negatives,
        "turns": plan.turns,
        "versions": {"packages": {name: metadata.version(name) for name in names}},
        "tables": tables,
    }


def _measure_table(plan: Plan, items: int) -> dict[str, Any]:
    left_out = {form: reason for form in FORMS if (reason := _obstacle(form, plan, items))}
    results: dict[str, list[list[dict[str, Any]]]] = {
        form: [] for form in FORMS if form not in left_out
    }
    for _ in range(plan.turns):
        for form, turns in results.items():
            turns.append(_turn(form, plan, items))
    rows = [{"form": form, **_figures(turns)} for form, turns in results.items()]
    for row in rows:
        loss = row["form"].split(",")[0]
        own = next(other for other in rows if other["form"] == f"{loss}, own")
        row["speed_ratio"] = row["steps_per_second"] / own["steps_per_second"]
        row["processor_ratio"] = row["processor_seconds"] / own["processor_seconds"]
    return {
        "items": items,
        "rows": rows,
        "left_out": left_out,
        "loss_differences": {loss: _difference(rows, loss) for loss in ("exact", "sampled")},
    }


def _obstacle(form: str, plan: Plan, items: int) -> str | None:
    """Return why a form cannot be measured here, None if it can."""
    if form == "sampled, TorchRec" and not HAS_TORCHREC:
        return "torchrec is not installed"
    needed = _SCORE_COPIES * 4 * plan.targets * items
    available = _available_bytes()
    if form == "exact, DTensor" and needed > available:
        return (
            f"scores of {plan.targets:,} targets take {needed / 2**30:.0f} GiB, "
            f"{available / 2**30:.0f} GiB are free"
        )
    return None


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _turn(form: str, plan: Plan, items: int) -> list[dict[str, Any]]:
    """Return the result of each process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run.__module__])  # imported once, not in each process
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-sharding-") as scratch,
        ProcessPoolExecutor(NUM_PROCESSES, mp_context=context) as pool,
    ):
        task = Task(
            form=form,
            items=items,
            d_model=plan.d_model,
            targets=plan.targets,
            negatives=plan.negatives,
            steps=plan.steps * (SAMPLED_STEPS if form.startswith("sampled") else 1),
            rendezvous=Path(scratch) / "rendezvous",
        )
        results = [pool.submit(run, task, rank) for rank in range(NUM_PROCESSES)]
        return [result.result() for result in results]


def _figures(turns: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians over the turns; processor time and memory are the maximum of the processes."""
    seconds = [processes[0]["step_seconds"] for processes in turns]
    used = [max(process["processor_seconds"] for process in turn) for turn in turns]
    return {
        "steps_per_second": 1 / statistics.median(seconds),
        "step_seconds": seconds,
        "processor_seconds": statistics.median(used),
        "peak_bytes": max(process["peak_bytes"] for turn in turns for process in turn),
        "losses": turns[0][0]["losses"],
    }


def _difference(rows: list[dict[str, Any]], loss: str) -> float:
    """Return the largest difference of the first losses, before any step, relative to the loss."""
    first = [row["losses"][0] for row in rows if row["form"].startswith(loss)]
    return (max(first) - min(first)) / max(first)


def sharding_text(result: dict[str, Any]) -> str:
    """Return a table of the forms, with ratios to our sharded table.

    Processor time of a step and memory are those of one process.
    """
    lines = [
        *machine_lines(result, NUM_PROCESSES),
        f"D {result['d_model']}, {result['targets']:,} targets a step, {result['negatives']} "
        f"negatives; {NUM_PROCESSES} gloo processes of one thread; medians of {result['turns']} "
        "turns",
    ]
    for table in result["tables"]:
        head = f"{table['items']:,} items"
        lines += ["", f"{head:<18}{'steps/s':>9}{'ratio':>7}{'CPU s':>9}{'ratio':>7}{'MiB':>8}"]
        lines += [
            f"{row['form']:<18}{row['steps_per_second']:>9.3g}{row['speed_ratio']:>7.2f}"
            f"{row['processor_seconds']:>9.3g}{row['processor_ratio']:>7.2f}"
            f"{row['peak_bytes'] / 2**20:>8,.0f}"
            for row in table["rows"]
        ]
        lines += [f"{form:<18} left out: {why}" for form, why in table["left_out"].items()]
        for loss, difference in table["loss_differences"].items():
            verdict = "agree" if difference <= _TOLERANCE else "DIFFER"
            lines.append(f"{loss}: first losses {verdict}, largest difference {difference:.0e}")
    return "\n".join(lines)
