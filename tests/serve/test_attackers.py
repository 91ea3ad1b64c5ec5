"""Honest clients of a server beside attackers: `python -m benchmarks attackers`, for some seconds.

`uv run pytest -m slow -s -n 0 tests/serve/test_attackers.py` prints the figures.
"""

import pytest

from benchmarks.attackers import Plan, attackers_text, measure_attackers, summary
from benchmarks.machine import machine
from tests.conftest import Shop

SHARED_MACHINE = 2.0
"""Factor for other programs on the machine of the tests; the benchmark has the figures."""


@pytest.mark.slow
def test_attackers_leave_honest_clients_health_and_memory_alone(shop: Shop) -> None:
    result = measure_attackers(shop.repository, Plan(seconds=8, turns=2))
    result |= {"machine": machine(), "model": "the shop of the tests"}
    print("\n" + attackers_text(result))
    facts = summary(result)
    assert not result["restarted"]
    assert facts["errors"] == 0
    assert max(facts["p99_ratio"].values()) <= 3
    assert facts["health_p99_ms"]["with"] <= 100 * SHARED_MACHINE
    assert facts["memory_ratio"] <= 1.2
    assert result["after"]["processes"] == result["before"]["processes"]
    assert len(result["outcomes"]) >= 20
    assert all(counts.total() for counts in result["outcomes"].values())
