"""`python -m benchmarks preprocess`: one log through ours, Polars and stock NVTabular.

Each side runs in a separate process, one after the other; their outputs are compared afterwards.
"""

import logging
import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_lines
from benchmarks.runner import NEWEST, SIDES, SMALL_ROWS, Plan, Runner

_SHOWN = 300
"""Characters of a value that are shown."""

logger = logging.getLogger(__name__)


def measure_preprocessing(plan: Plan, scratch: Path) -> dict[str, Any]:
    """Measure each side and compare the outputs.

    `scratch` is an empty folder for logs and outputs. ConfigError for a plan that cannot run,
    PipelineError if a side fails.
    """
    plan.check()
    runner = Runner.prepare(plan, scratch)
    for side in plan.sides:
        runner.run(side, runner.small)  # programs and libraries are then in the page cache
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in plan.sides}
    versions: dict[str, dict[str, str]] = {}
    for turn in range(plan.turns):
        for side in plan.sides if turn % 2 == 0 else reversed(plan.sides):
            logger.info("turn %d of %d: %s", turn + 1, plan.turns, side)
            cost = runner.turn(side)
            if "versions" in cost:
                versions[side] = cost.pop("versions")
            turns[side].append(cost)
    logger.info("comparing the outputs")
    first, *others = plan.sides
    comparisons = {side: {"with": first, **runner.compare(first, side)} for side in others}
    costs = {
        side: {name: statistics.median(cost[name] for cost in some) for name in some[0]}
        | {"turns": some}
        for side, some in turns.items()
    }
    return {
        "rows": plan.rows,
        "items": plan.items,
        "seed": plan.seed,
        "newest": NEWEST,
        "small_rows": SMALL_ROWS,
        "cores": len(runner.cores) or os.cpu_count(),
        "log_bytes": runner.log.stat().st_size,
        "versions": versions,
        "sides": costs,
        "ratios": {
            side: _ratios(costs["ours"], cost)
            for side, cost in costs.items()
            if "ours" in costs and side != "ours"
        },
        "comparisons": comparisons,
        "same": all(c["same"] for c in comparisons.values()) if comparisons else None,
    }


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return ours divided by theirs; lower is better."""
    return {
        name.removesuffix("_bytes"): ours[name] / theirs[name]
        for name in ("seconds", "work_seconds", "cpu_seconds", "peak_bytes")
    }


def preprocessing_text(result: dict[str, Any]) -> str:
    """Return a table of costs, the ratios, and whether the outputs agree."""
    turns = max(len(cost["turns"]) for cost in result["sides"].values())
    versions = {SIDES[side]: names for side, names in result["versions"].items()}
    lines = [
        *machine_lines(result | {"versions": versions}, result["cores"]),
        f"{result['rows']:,} interactions of {result['items']:,} items, three features, newest "
        f"{result['newest']} kept" + (f"; medians of {turns} turns" if turns > 1 else ""),
        "",
        f"{'':<18}{'seconds':>10}{'without imports':>18}{'CPU s':>10}{'peak MB':>10}",
    ]
    for side, cost in result["sides"].items():
        lines.append(
            f"{SIDES[side]:<18}{cost['seconds']:>10.2f}{cost['work_seconds']:>18.2f}"
            f"{cost['cpu_seconds']:>10.2f}{cost['peak_bytes'] / 1e6:>10,.0f}"
        )
    lines.append("")
    for side, ratio in result["ratios"].items():
        lines.append(
            f"pipeline over {SIDES[side]}: {ratio['seconds']:.3f} times the seconds "
            f"({1 / ratio['seconds']:.2f} times as fast), {ratio['work_seconds']:.3f} without "
            f"imports, {ratio['peak']:.2f} times the memory"
        )
    lines += [comparison_line(side, facts) for side, facts in result["comparisons"].items()]
    lines += [
        "",
        "seconds: of the whole process, imports included; peak MB: resident, of the same.",
        "without imports: as the program reports; of pipeline the seconds less those of a log of "
        f"{result['small_rows']:,} rows.",
    ]
    return "\n".join(lines)


def comparison_line(side: str, comparison: dict[str, Any]) -> str:
    """Return a line with the number of equal sessions, or with the first difference."""
    names = f"{SIDES[side]} and {SIDES[comparison['with']]}"
    if comparison["same"]:
        return f"{names} wrote the same {comparison['sessions']:,} sessions."
    difference = comparison["difference"]
    column, session = difference["column"], difference["session_id"]
    place = f"the vocabulary of {column}" if session is None else f"{column} of session {session}"
    other, one = (_shortened(difference[name]) for name in ("other", "one"))
    return f"{names} DIFFER in {place}: {other} and {one}."


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
