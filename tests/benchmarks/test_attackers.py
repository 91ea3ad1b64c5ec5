"""What the measurements of attackers compute and print, from figures that a reader can check."""

from collections import Counter
from typing import Any

from benchmarks.attackers import Plan, attackers_text, summary
from benchmarks.machine import machine
from benchmarks.soak import soak_text


def load(p99: float, errors: int = 0) -> dict[str, Any]:
    return {
        "requests_per_second": 100.0,
        "p50_ms": 2.0,
        "p99_ms": p99,
        "errors": {"refused": errors} if errors else {},
    }


def turn(p99: float, health: float, errors: int = 0) -> dict[str, Any]:
    return {"grpc": load(p99, errors), "http": load(2 * p99), "health_ms": [health] * 10}


RESULT: dict[str, Any] = {
    "machine": machine(),
    "model": "a model",
    "items": 7,
    "plan": vars(Plan()),
    "rows": {
        "without": [turn(10, 1), turn(20, 2), turn(30, 3)],
        "with": [turn(50, 9, errors=4), turn(30, 4), turn(40, 5)],
    },
    "outcomes": {"deep JSON": Counter({"400": 3, "open": 1})},
    "before": {"memory_bytes": 100_000_000, "files": 8, "processes": 5},
    "after": {"memory_bytes": 110_000_000, "files": 9, "processes": 5},
    "restarted": False,
}


def test_ratios_are_those_of_the_medians() -> None:
    facts = summary(RESULT)
    assert facts["p99_ratio"] == {"grpc": 2.0, "http": 2.0}
    assert (facts["errors"], facts["memory_ratio"]) == (4, 1.1)
    assert facts["health_max_ms"] == {"without": 3, "with": 9}
    text = attackers_text(RESULT)
    assert "deep JSON                   400 3, open 1" in text
    assert "errors of honest clients: 4; Triton restarted: no" in text


def test_soak_says_what_was_left_and_how_often_health_failed() -> None:
    windows = [turn(p99, 1) | {"memory_bytes": 10**8} for p99 in (10, 30, 20)]
    windows[1]["health_ms"][0] = float("inf")
    facts = {"memory_bytes": 10**8, "files": 8, "processes": 5, "shared_memory": 4}
    text = soak_text(
        {
            "machine": machine(),
            "plan": {"minutes": 1.0, "clients": 16, "attackers": 4},
            "windows": windows,
            "errors": Counter({"No server answers.": 2}),
            "outcomes": {"deep JSON": Counter({"400": 3})},
            "exports": 1,
            "kills": ["model", "none"],
            "before": facts,
            "after": facts,
            "left_processes": 0,
            "left_shared_memory": 0,
        }
    )
    assert "1 exports, 1 kills; 3 windows" in text
    assert "health: 1 of 30 times not ready" in text
    assert "     2 No server answers." in text
    [line] = [line for line in text.splitlines() if line.startswith("http, p99")]
    assert line.split() == ["http,", "p99", "ms", "40.0", "60.0"]
