"""Synthetic log of `python -m benchmarks preprocess`."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import logs
from benchmarks.logs import write_log

FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(rows=st.integers(1, 3_000), items=st.integers(1, 500), seed=st.integers(0, 2**32))
@FEW
def test_log_is_sorted_by_time_and_items_keep_category_and_price(
    tmp_path: Path, rows: int, items: int, seed: int
) -> None:
    write_log(tmp_path / "a.parquet", rows, items=items, seed=seed)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.equals(logs.SCHEMA)
    log = table.to_pandas()
    assert len(log) == rows
    assert log["timestamp"].is_monotonic_increasing
    assert not log.duplicated(["session_id", "timestamp"]).any()
    of_items = log.groupby("item_id")[["category", "price"]].nunique(dropna=False)
    assert (of_items == 1).all(axis=None)
    assert len(of_items) <= items
    assert not log.drop(columns="price").isna().any(axis=None)


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_logs(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file, seed in zip(files, (5, 5, 6), strict=True):
        write_log(file, 20_000, items=1_000, seed=seed)
    first, second, third = (file.read_bytes() for file in files)
    assert first == second
    assert first != third


def test_log_does_not_depend_on_the_size_of_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_BLOCK_SESSIONS", 512)
    write_log(tmp_path / "whole", 20_000, items=300)
    monkeypatch.setattr(logs, "BLOCK_ROWS", 3_000)
    write_log(tmp_path / "blocks", 20_000, items=300)
    write_log(tmp_path / "fewer", 7_001, items=300)
    whole, blocks, fewer = (pq.read_table(tmp_path / n) for n in ("whole", "blocks", "fewer"))
    assert pq.ParquetFile(tmp_path / "blocks").num_row_groups == 7
    assert blocks == whole
    assert fewer == whole.slice(0, 7_001)
    times = whole["timestamp"].to_numpy()
    assert (np.diff(times) >= 0).all(), "sessions of one block reach into the next"
    ends = whole.to_pandas().groupby("session_id")["timestamp"].agg(["min", "max"])
    middle = times[len(times) // 2]
    assert ((ends["min"] < middle) & (ends["max"] > middle)).sum() > 100, "sessions overlap"


def test_log_has_the_documented_lengths_prices_and_popularity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # many blocks of sessions: an id that two of them used would make longer ones
    monkeypatch.setattr(logs, "_BLOCK_SESSIONS", 4_096)
    write_log(tmp_path / "log", 200_000, items=2_000)
    log = pd.read_parquet(tmp_path / "log")
    lengths = log["session_id"].value_counts()
    assert lengths.mean() == pytest.approx(5, rel=0.05)
    assert lengths.max() <= logs.LONGEST
    of_items = log.drop_duplicates("item_id")
    assert 0 < of_items["price"].isna().mean() < 0.03
    assert np.log(of_items["price"]).mean() == pytest.approx(3, abs=0.1)
    counts = log["item_id"].value_counts()
    assert counts.iloc[0] > 1.5 * counts.iloc[1] > 2 * counts.iloc[3]
    assert set(log["event"]) == set(logs.EVENTS)
