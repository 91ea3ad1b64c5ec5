"""Compared programs, their turns, and the rates and ratios of their costs."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.processes import Allocator, Program, Worker

COST_HEADER = f"{'sessions/s':>10} {'CPU s':>8} {'/CPU s':>8} {'MB':>7}"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Programs of both sides, their core and folder."""

    ours: Program
    original: Program
    core: int | None
    """Core of both programs, None if the system has no affinity."""
    scratch: Path
    """Folder for data, arrays and logs."""


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
    """Run tasks in turn, one active process at a time; return the cost by name of the task.

    Each task is (name, program, task) and gets `turns` turns of `steps` steps. A cost holds the
    totals of `rates`, the facts that the process sends at its end, and its turns. PipelineError if
    a process fails; no process outlives the call.
    """
    with (
        tqdm(total=len(tasks) * (turns + 1), desc=title, unit="turn", disable=None) as bar,
        ExitStack() as stack,
    ):
        if bar.disable:
            logger.info("%s", title)
        workers: list[Worker] = []
        for name, program, task in tasks:
            log = logs / f"{name.replace(' ', '-')}.log"
            worker = Worker(name, program, task, allocator=allocator, core=core, log=log)
            workers.append(stack.enter_context(worker))
            worker.wait_until_ready()
            bar.update()
        costs: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
        for _ in range(turns):
            for worker in workers:
                costs[worker.name].append(worker.turn(steps))
                bar.update()
        return {
            worker.name: rates(costs[worker.name]) | worker.end() | {"turns": costs[worker.name]}
            for worker in workers
        }


def rates(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return totals of turns, and sessions a second by wall-clock and by CPU time.

    Totals, not means of turns: batches of short sessions hold more of them.
    """
    totals = {
        name: sum(turn[name] for turn in turns)
        for name in ("seconds", "cpu_seconds", "steps", "sessions", "interactions")
    }
    return totals | {
        "sessions_per_second": totals["sessions"] / totals["seconds"],
        "sessions_per_cpu_second": totals["sessions"] / totals["cpu_seconds"],
    }


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return the ratios of ours to theirs: speed by both clocks, and peak memory."""
    return {
        "speed": ours["sessions_per_second"] / theirs["sessions_per_second"],
        "cpu_speed": ours["sessions_per_cpu_second"] / theirs["sessions_per_cpu_second"],
        "memory": ours["peak_bytes"] / theirs["peak_bytes"] if theirs["peak_bytes"] else 0.0,
    }


def cost_cells(cost: dict[str, Any]) -> str:
    """Return the cells of a table row below `COST_HEADER`."""
    return (
        f"{cost['sessions_per_second']:>10,.0f} {cost['cpu_seconds']:>8.1f} "
        f"{cost['sessions_per_cpu_second']:>8,.0f} {cost['peak_bytes'] / 1e6:>7,.0f}"
    )
