"""`python -m benchmarks gpu` on machines without a GPU: its refusal, and the failure of parts."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.__main__ import app
from benchmarks.gpu import Measurement, Stack
from benchmarks.settings import SETTINGS
from pipeline.core.errors import ConfigError, PipelineError
from tests.conftest import ROOT

STACK = Stack(torch="2.13.0", cuda="13.0", device="NVIDIA H200", cudf="24.12.0")
COST = {"seconds": 3.5, "work_seconds": 1.5, "cpu_seconds": 5.0, "peak_bytes": 2_000_000_000}


def test_machine_without_a_gpu_is_refused_with_a_remedy() -> None:
    stack = Stack.detect()
    if stack.device is not None:
        pytest.skip("this machine has a CUDA device")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    for part in ("no CUDA device", f"torch {stack.torch}", "cuDF", "`uv sync --extra gpu`"):
        assert part in line


@pytest.mark.parametrize(("cudf", "text"), [(None, "and no cuDF,"), ("24.12.0", "cuDF 24.12.0,")])
def test_refusal_names_the_cudf_of_the_environment(cudf: str | None, text: str) -> None:
    STACK.check()
    with pytest.raises(ConfigError, match=text):
        replace(STACK, device=None, cudf=cudf).check()


def test_broken_cudf_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(gpu.importlib, "import_module", fail)
    assert gpu._cudf_version() is None


def fail_with(message: str) -> Callable[..., Any]:
    def fail(*_arguments: Any) -> None:
        raise PipelineError(message)

    return fail


@pytest.mark.parametrize("as_json", [True, False])
def test_failure_of_a_part_leaves_the_others_and_gives_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    def preprocess(_self: Measurement, side: str) -> dict[str, Any]:
        if side == "cudf":
            raise MemoryError
        return COST

    rate = {"sessions_per_second": 1234.5, "step_ms": 8.04, "peak_gpu_bytes": 300e6}
    monkeypatch.setattr(Stack, "detect", lambda: STACK)
    monkeypatch.setattr(Measurement, "tests", lambda _self: {"passed": 5, "skipped": 1})
    monkeypatch.setattr(Measurement, "preprocess", preprocess)
    monkeypatch.setattr(Measurement, "compare", fail_with("no sessions\nof cuDF"))
    monkeypatch.setattr(Measurement, "train", lambda _self, _setting: rate)
    words = ["gpu", "--rows", "2000", "--out", str(tmp_path)] + (["--json"] if as_json else [])
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    facts = json.loads((tmp_path / "gpu.json").read_text())
    if as_json:
        assert json.loads(result.stdout) == facts
        assert facts["stack"]["device"] == "NVIDIA H200"
        errors = [part["error"] for part in facts["parts"]]
        assert errors == [None, None, "MemoryError", "no sessions of cuDF", None, None]
        assert facts["parts"][1]["figures"] == COST
        assert facts["parts"][2]["figures"] is None
        return
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines() if "  " in line)
    assert {name: cells.strip() for name, cells in rows.items()} == {
        "tests marked gpu": "5 passed, 1 skipped",
        "preprocess 2,000 rows, CPU": "3.50 s, 1.50 s without imports, peak 2,000 MB",
        "preprocess 2,000 rows, cuDF": "FAILED: MemoryError",
        "sessions of cuDF and CPU": "FAILED: no sessions of cuDF",
    } | {
        f"train gpt2-clm, {size}": "1,234 sessions/s, 8.0 ms a step, peak 300 MB of the GPU"
        for size in ("10,000 items, D 64", "200,000 items, D 128")
    }
    assert "NVIDIA H200; torch 2.13.0, CUDA 13.0; cuDF 24.12.0" in result.stdout


def test_tests_part_counts_outcomes_and_names_failed_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu"]\n')
    source = (
        "import pytest\n\n@pytest.mark.gpu\ndef test_works(): ...\n\ndef test_cpu(): assert 0\n"
        "\n@pytest.mark.gpu\ndef test_skips(): pytest.skip()\n"
    )
    (tmp_path / "test_stack.py").write_text(source)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert Measurement(tmp_path).tests() == {"passed": 1, "skipped": 1}
    (tmp_path / "test_more.py").write_text(source.replace("...", "assert False"))
    with pytest.raises(PipelineError, match=r"1 failed, 1 passed.*: test_more.py::test_works$"):
        Measurement(tmp_path).tests()


@pytest.mark.train
def test_parts_that_ran_without_the_gpu_fail(tmp_path: Path) -> None:
    if Stack.detect().device is not None:
        pytest.skip("this machine has a CUDA device")
    measurement = Measurement(tmp_path, rows=1_000, batch_size=64, steps=1)
    with pytest.raises(PipelineError, match="cudf ran on pandas, expected a CUDA device and cuDF"):
        measurement.preprocess("cudf")
    with pytest.raises(PipelineError, match="pipeline wrote no sessions"):
        measurement.compare("ours", "cudf")
    with pytest.raises(PipelineError, match="trained on the CPU"):
        measurement.train(replace(SETTINGS[1], items=100, d_model=8))
