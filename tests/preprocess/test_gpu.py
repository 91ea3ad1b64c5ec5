"""Preprocessing on a GPU, where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.columns import NULL, PADDING
from pipeline.core.merlin import has_cudf
from pipeline.preprocess.encoding import _looked_up, indices_of
from pipeline.preprocess.operators import GroupSessions
from tests.conftest import ROOT, Shop


@pytest.mark.gpu
def test_sessions_from_cudf_equal_those_from_pandas(shop: Shop, tmp_path: Path) -> None:
    if not has_cudf():
        pytest.skip("no CUDA device with cuDF here: install the gpu extra on a machine with a GPU")
    tables = {}
    for engine, devices in (("cudf", {}), ("pandas", {"CUDA_VISIBLE_DEVICES": ""})):
        out = tmp_path / engine
        command = [
            "preprocess",
            "configs/demo.yaml",
            "--input",
            str(shop.clicks),
            "--out",
            str(out),
        ]
        subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *command],
            check=True,
            cwd=ROOT,
            env={**os.environ, **devices},
        )
        for part in ("train", "valid", "test"):
            tables[engine, part] = pq.read_table(out / "sessions" / part)
    for part in ("train", "valid", "test"):
        gpu, cpu = tables["cudf", part], tables["pandas", part]
        assert gpu["session_id"].to_pylist() == cpu["session_id"].to_pylist()
        # equally frequent items may get each other's index, lengths and numbers may not differ
        for name in ("price", "elapsed", "hour_sin", "hour_cos"):
            for left, right in zip(gpu[name].to_pylist(), cpu[name].to_pylist(), strict=True):
                assert left == pytest.approx(right, abs=1e-5)
        lengths = [[len(items) for items in t["item_id"].to_pylist()] for t in (gpu, cpu)]
        assert lengths[0] == lengths[1]


@given(
    values=st.lists(st.sampled_from(["a", "b", "c", "rare", "", None]), max_size=30),
    vocabulary=st.permutations(["a", "b", "c"]),
    hash_buckets=st.sampled_from([0, 1, 4]),
    missing=st.sampled_from([NULL, PADDING]),
)
@settings(deadline=None)
def test_the_data_frame_way_of_cudf_encodes_like_the_array_way(
    values: list[str | None], vocabulary: list[str], hash_buckets: int, missing: int
) -> None:
    column = pd.Series(values, dtype=object, index=np.arange(len(values)) * 3 + 1)
    given = (column, pa.array(vocabulary), hash_buckets, missing)
    assert _looked_up(*given).tolist() == indices_of(*given).tolist()


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 99)), min_size=1, max_size=40
    ),
    keep=st.none() | st.integers(1, 4),
)
@settings(deadline=None)
def test_the_data_frame_way_of_cudf_groups_like_the_array_way(
    rows: list[tuple[int, int, int]], keep: int | None
) -> None:
    """cuDF follows pandas' names: its branch of the operators runs on pandas as well."""
    frame = pd.DataFrame(rows, columns=["session_id", "timestamp", "item_id"])
    frame["device"] = frame["item_id"] % 5
    group = GroupSessions("session_id", "timestamp", ("device",), keep)
    listed = ["item_id", "timestamp"]
    arrays = group._on_arrays(frame, listed)
    frames = group._on_cudf(frame, listed)
    assert arrays["session_id"].tolist() == frames["session_id"].tolist()
    assert arrays["device"].tolist() == frames["device"].tolist()
    for name in listed:
        assert [list(v) for v in arrays[name]] == [list(v) for v in frames[name]]
