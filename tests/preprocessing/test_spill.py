"""Sorting by session on disk: no row is lost, no session is cut, equal times keep their order."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.values import common_type
from pipeline.preprocessing.sorting import spill
from pipeline.preprocessing.sorting.spill import Spill, sorted_shard

IDS = st.one_of(
    st.integers(-3, 9),
    st.integers(-(2**63) + 1, 2**63 - 1),
)
TEXTS = st.text(st.sampled_from("abz0ßé\U0001f600"), min_size=1, max_size=3)


def blocks_of(ids: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(st.tuples(ids, st.integers(0, 4)), max_size=25)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_BATCH_ROWS", 6)
    monkeypatch.setattr(spill, "_STEP", 2)


@given(
    blocks=st.lists(blocks_of(IDS) | blocks_of(TEXTS), min_size=1, max_size=5),
    rows=st.integers(1, 30),
    dictionaries=st.booleans(),
)
@settings(deadline=None)
def test_shards_concatenate_to_the_log_by_session_and_time(
    blocks: list[list[tuple]], rows: int, dictionaries: bool
) -> None:
    texts = any(isinstance(row[0], str) for block in blocks for row in block)
    row_number = 0
    expected = []
    with tempfile.TemporaryDirectory() as folder:
        spilled = Spill(Path(folder))
        for number, block in enumerate(blocks):
            textual = any(isinstance(row[0], str) for row in block)
            sessions = [row[0] for row in block]
            numbers = list(range(row_number, row_number + len(block)))
            row_number += len(block)
            labels = pa.array([f"r{n}" for n in numbers], pa.string())
            table = pa.table(
                {
                    "session_id": pa.array(sessions, pa.string() if textual else pa.int64()),
                    "timestamp": pa.array([row[1] for row in block], pa.int64()),
                    "row": pa.array(numbers, pa.int64()),
                    # some blocks with a dictionary, others without
                    "label": labels.dictionary_encode() if dictionaries and number % 2 else labels,
                }
            )
            spilled.blocks.append(spilled.write_block(number, table))
            keys = [str(s) if texts else s for s in sessions]
            expected += zip(keys, table["timestamp"].to_pylist(), numbers, strict=True)
        kind = common_type([block.type for block in spilled.blocks])
        spilled.unify_sessions(kind)
        spilled.blocks = [block for block in spilled.blocks if block.rows]
        if not spilled.blocks:
            return
        rows_read, owners = [], []
        for bounds in spilled.bounds(rows):
            table, starts = sorted_shard(spilled, bounds, {"session_id": kind})
            part = table.to_pydict()
            rows_read += zip(part["session_id"], part["timestamp"], part["row"], strict=True)
            assert part["label"] == [f"r{n}" for n in part["row"]]
            assert len(set(part["session_id"])) == len(starts)
            owners += sorted(set(part["session_id"]))
        assert rows_read == sorted(expected)  # by row where session and time are equal
        assert len(owners) == len(set(owners))
