"""From the cost of turns to rates and their ratios."""

from collections.abc import Sequence
from typing import Any


def rates(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Totals of turns, and sessions a second by the clock and by the time of the processor.

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


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many times the sessions a second, and which share of the memory."""
    return {
        "speed": ours["sessions_per_second"] / theirs["sessions_per_second"],
        "cpu_speed": ours["sessions_per_cpu_second"] / theirs["sessions_per_cpu_second"],
        "memory": ours["peak_bytes"] / theirs["peak_bytes"] if theirs["peak_bytes"] else 0.0,
    }
