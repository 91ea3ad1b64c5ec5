"""Preprocessing on a GPU, where there is one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.core.artifact import read_manifest
from pipeline.core.merlin import has_cudf
from tests.conftest import ROOT, Shop

RECIPE = """
preprocess:
  session: session
  item: product
  timestamp: {column: time, unit: iso, features: [hour, weekday, elapsed]}
  session_gap: 30m
  drop_repeats: true
  split: {valid: 1d, test: 1d}
  features:
    - {name: category, kind: categorical, of: item}
    - {name: parts, kind: categorical, of: item, column: category, values_per_interaction: 2,
       separator: "-"}
    - {name: action, kind: categorical, min_count: 9000, hash_buckets: 3}
    - {name: price, kind: continuous, of: item, log: true}
    - {name: band, kind: categorical, column: price, buckets: [20, 50]}
    - {name: worth, kind: continuous, column: category, mean_of: price}
    - {name: device, kind: categorical, of: session}
"""


def run_preprocess(shop: Shop, out: Path, options: Sequence[str] = (), **environment: str) -> None:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(RECIPE)
    command = ["preprocess", str(shop.clicks), "--recipe", str(recipe), "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "pipeline", *command, *options],
        check=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def output(data: Path) -> dict[str, bytes]:
    """Files of the sessions, the schema and the fitted state."""
    paths = [*data.glob("sessions/*/*"), *data.glob("fitted/**/*.*"), data / "schema.pbtxt"]
    return {path.relative_to(data).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.gpu
@pytest.mark.parametrize("cluster", [(), ("--cluster", "local-cuda")], ids=["threads", "cluster"])
def test_output_of_cudf_has_the_bytes_of_the_cpu(
    shop: Shop, tmp_path: Path, cluster: tuple[str, ...]
) -> None:
    if not has_cudf():
        pytest.skip("no CUDA device with cuDF here: install the gpu extra on a machine with a GPU")
    run_preprocess(shop, tmp_path / "cudf", cluster)
    run_preprocess(shop, tmp_path / "pandas", CUDA_VISIBLE_DEVICES="")
    engines = [read_manifest(tmp_path / e, "data")["engine"] for e in ("cudf", "pandas")]
    assert engines == ["cudf", "pandas"]
    assert output(tmp_path / "cudf") == output(tmp_path / "pandas")


def test_recipe_of_the_comparison_has_every_kind_of_output(shop: Shop, tmp_path: Path) -> None:
    """Also without a GPU: the recipe runs, and the compared files hold all that it makes."""
    data = tmp_path / "data"
    run_preprocess(shop, data, CUDA_VISIBLE_DEVICES="")
    files = output(data)
    parts = {f"sessions/{part}/part-0.parquet" for part in ("train", "valid", "test")}
    fitted = {"fitted/fitted.json", "fitted/items.parquet", "fitted/targets/worth.parquet"}
    assert {*parts, *fitted, "fitted/categories/action.parquet", "schema.pbtxt"} <= files.keys()
    columns = set(pq.read_schema(data / "sessions" / "train" / "part-0.parquet").names)
    assert {"parts_2", "worth", "band", "weekday_sin", "device", "elapsed"} <= columns
