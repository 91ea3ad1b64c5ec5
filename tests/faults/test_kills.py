"""SIGKILL at the writes of every stage: the output is the old one, the new one or absent."""

import os

import pytest

from tests.faults.commands import Fault
from tests.faults.stages import NOT_REPEATED, STAGES, Bench, check_whole, contents, visible

pytestmark = pytest.mark.faults
NUM_SAMPLES = 6
EVERY = os.environ.get("FAULTS") == "all"
"""Whether each call of a stage is hit, and not some of them."""


def sampled(calls: int, number: int = NUM_SAMPLES) -> list[int]:
    """Return numbers of calls to hit: the first, the last and some between, or all of them."""
    if EVERY or calls <= number:
        return list(range(1, calls + 1))
    return sorted({1 + round(i * (calls - 1) / (number - 1)) for i in range(number)})


@pytest.mark.parametrize("name", STAGES)
def test_killed_stage_leaves_old_or_new_and_the_same_command_ends_as_undisturbed(
    bench: Bench, name: str
) -> None:
    stage, old, new = STAGES[name], bench.before(name), bench.undisturbed(name)
    folder = bench.fresh(name)
    calls = bench.run(stage.command, folder, Fault.none(folder)).calls
    assert calls > 2
    for number in sampled(calls):
        folder = bench.fresh(name)
        killed = bench.run(stage.command, folder, Fault(folder, first=number))
        where = f"{name}, call {number} of {calls}: {killed.first_hit}"
        assert killed.status == -9, (where, killed.stderr)
        check_whole(folder)
        left = visible(contents(folder))
        if not stage.is_many:
            assert left in (visible(old), visible(new), {}), where
        if name in NOT_REPEATED and left == visible(new) != visible(old):
            continue
        again = bench.run(stage.command, folder)
        assert again.status == 0, (where, again.stderr)
        assert contents(folder) == new, where
