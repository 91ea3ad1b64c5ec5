"""A seeded fuzzer: logs damaged in all ways at once lose no row that is not accounted for."""

import random
import time
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.logs import compression
from pipeline.logs import text as logbytes
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.preprocess import Preprocess
from tests.preprocessing.damage import Case, make_case
from tests.preprocessing.sorted_log import sort


def check(case: Case, seed: int) -> str:
    begun = time.perf_counter()
    try:
        facts, sessions = sort(Preprocess.from_dict(case.recipe, "recipe"), case.files)
    except DataError as error:
        message = str(error)
    else:
        message = ""
    finally:
        assert time.perf_counter() - begun < 20, (seed, case.done)
    if message:
        assert "\n" not in message, (seed, case.done)
        assert case.may_refuse, (seed, case.done, message)
        return "refused"
    assert facts["read"] == facts["kept"] + sum(facts.get("dropped", {}).values())
    if case.read is not None:
        assert facts["read"] == case.read, (seed, case.done, facts)
    for name, session in case.sessions.items():
        assert sorted(sessions[name], key=str) == session, (seed, name, case.done, facts)
    return "read"


def fuzz(
    seeds: range, folder: Path, monkeypatch: pytest.MonkeyPatch, *, wild: bool
) -> dict[str, int]:
    chance = random.Random(seeds.start)
    outcomes: dict[str, int] = defaultdict(int)
    for seed in seeds:
        # small blocks, so that each of their borders is met
        size = chance.choice([64, 500, 4_096, 1 << 22])
        monkeypatch.setattr(logbytes, "BLOCK_BYTES", size)
        monkeypatch.setattr(compression, "_PIECE_BYTES", max(16, size // 8))
        monkeypatch.setattr(spill, "SHARD_ROWS", chance.choice([16, 100, 10**6]))
        monkeypatch.setattr(spill, "_STEP", 4)
        monkeypatch.setattr(spill, "_BATCH_ROWS", 12)
        (folder / str(seed)).mkdir()
        case = make_case(seed, folder / str(seed), wild=wild)
        outcomes[check(case, seed)] += 1
        outcomes["sessions"] += len(case.sessions)
    return outcomes


@pytest.mark.parametrize("wild", [False, True])
def test_damaged_logs_are_read_and_every_row_is_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wild: bool
) -> None:
    outcomes = fuzz(range(100), tmp_path, monkeypatch, wild=wild)
    assert outcomes["read"] > (20 if wild else 50)
    assert wild or outcomes["sessions"] > 300


@pytest.mark.slow
@pytest.mark.parametrize("wild", [False, True])
def test_thousands_of_damaged_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wild: bool
) -> None:
    outcomes = fuzz(range(1_000, 4_000), tmp_path, monkeypatch, wild=wild)
    print(dict(outcomes))
    assert outcomes["read"] > 1_000
