"""A run that was killed and started again writes what an undisturbed one writes, byte for byte."""

import filecmp
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, Shop

MOMENTS = {
    "sorting": "*/log/block-*.arrow",
    "sorted": "*/log/part-*.arrow",
    "learned": "fitted/fitted.json",
    "transforming": "sessions/train/part-0.parquet",
    "almost done": "schema.pbtxt",
}
"""Of a run, and what is then in its hidden directory."""


def start(shop: Shop, out: Path) -> subprocess.Popen[bytes]:
    command = ["preprocess", str(shop.clicks), "--recipe", "configs/demo.yaml", "--out", str(out)]
    return subprocess.Popen([sys.executable, "-m", "pipeline", *command], cwd=ROOT)


def files(directory: Path) -> list[str]:
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(name, marks=[] if name == "transforming" else pytest.mark.slow)
        for name in MOMENTS
    ],
)
def test_killed_run_leaves_no_trace_for_the_next_one(
    shop: Shop, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "data"
    process = start(shop, out)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(f".data.partial-*/{MOMENTS[moment]}")):
        assert process.poll() is None, f"it ended before it was {moment}"
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    assert start(shop, out).wait(120) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert files(out) == files(shop.data)
    _, different, failed = filecmp.cmpfiles(out, shop.data, files(out), shallow=False)
    assert (different, failed) == ([], [])
