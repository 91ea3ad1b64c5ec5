"""`python -m benchmarks gpu` without a GPU: its processes, its figures, and all parts on a CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.gpu import measure, stack, training
from benchmarks.gpu.measure import Part, measure_gpu, phases, run_part
from benchmarks.gpu.plan import COMPILED, Plan
from benchmarks.gpu.preprocessing import sessions_by_hand
from benchmarks.gpu.profile import StepProfile, union_length
from benchmarks.gpu.worker import PARTS, rows_of
from pipeline.core.errors import ConfigError, PipelineError
from tests.conftest import ROOT


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(scratch=tmp_path, device="cpu").tiny()


def test_machine_without_a_gpu_is_refused_with_a_remedy() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    for part in ("no CUDA device", f"torch {torch.__version__}", "`uv sync --extra gpu`"):
        assert part in line


def test_plan_survives_json(plan: Plan, tmp_path: Path) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    whole = Plan(scratch=tmp_path)
    assert Plan.from_json(whole.to_json()) == whole


def test_every_part_has_a_function(plan: Plan) -> None:
    for each in (plan, Plan(scratch=plan.scratch)):
        names = [part.name for phase in phases(each) for part in phase]
        titles = [f"train {setting.title}" for setting in each.training]
        titles += [f"train compiled {setting.title}" for setting in each.training[:COMPILED]]
        assert sorted(names) == sorted([*PARTS, *titles])
        assert len(set(names)) == len(names)


def test_failures_and_time_limits_of_parts_leave_the_others(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [Part("evaluate", 0.2), Part("no part", 60), Part("log", 60)]
    monkeypatch.setattr(measure, "phases", lambda _: [parts])
    late, missing, log = measure_gpu(plan)["parts"]
    assert late["error"] == "took more than 0 s"
    assert missing["error"] == "status 1: KeyError: 'no part'"
    assert missing["rows"] == {}
    assert log["error"] is None
    assert log["rows"] == {"log": {"note": "3,000 interactions"}}
    assert [part["failed"] for part in (late, missing, log)] == [True, True, False]


def test_part_is_not_started_without_time(plan: Plan) -> None:
    result = run_part(plan, Part("log", 60), time.monotonic() + 1)
    assert result.error is not None
    assert result.error.startswith("not run")


def test_parts_are_chosen_by_the_beginnings_of_their_names(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(_plan: Plan, part: Part, _deadline: float) -> measure.PartResult:
        ran.append(part.name)
        return measure.PartResult(part.name, 1.0, {}, None)

    monkeypatch.setattr(measure, "run_part", run)
    measure_gpu(plan, ["stack", "train xlnet"])
    assert ran == ["stack", "train xlnet-mlm, 25 items, D 16, B 32, fp32"]
    expected = "stack, log, tests, train, preprocess, evaluate, export, serve"
    with pytest.raises(ConfigError, match=f"--parts is 'nothing', expected some of {expected}"):
        measure_gpu(plan, ["nothing"])


@pytest.mark.parametrize("as_json", [True, False])
def test_command_writes_figures_and_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    rows = {
        "ours": {"sessions_per_second": 1234.5, "milliseconds": 8.04, "peak_bytes": 3e9},
        "by hand": {"error": "out of memory"},
    }

    def run(_plan: Plan, part: Part, _deadline: float) -> measure.PartResult:
        failed = part.name == "serve"
        return measure.PartResult(
            part.name, 2.0, {} if failed else rows, "no backend" if failed else None
        )

    monkeypatch.setattr(measure, "run_part", run)
    words = ["gpu", "--device", "cpu", "--tiny", "--parts", "export,serve", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words + (["--json"] if as_json else []))
    assert result.exit_code == 1
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert [part["name"] for part in facts["parts"]] == ["export", "serve"]
    assert facts["parts"][0]["rows"] == rows
    if as_json:
        assert json.loads(result.stdout) == facts
        return
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["ours", "1,234", "8.04", "3.00"] in lines
    assert ["by", "hand", "FAILED:", "out", "of", "memory"] in lines
    assert ["serve", "FAILED:", "no", "backend"] in lines


@pytest.mark.train
@pytest.mark.parametrize("number", [0, 3, 4])
def test_training_parts_run_on_a_cpu(plan: Plan, number: int) -> None:
    rows = dict(rows_of(f"train {plan.training[number].title}", plan))
    expected = {"ours"}
    if plan.training[number].has_hand_written:
        expected |= {"by hand, eager", "by hand, compiled"}
    assert rows.keys() == expected
    for figures in rows.values():
        rate = plan.training[number].batch_size / figures["milliseconds"] * 1_000
        assert figures["sessions_per_second"] == pytest.approx(rate, rel=0.01)
        assert figures["host_syncs"] > 0


@pytest.mark.train
def test_our_training_fails_without_the_loops_by_hand(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(training, "train_ours", fail)
    rows = dict(rows_of(f"train {plan.training[1].title}", plan))
    assert rows.pop("ours") == {"error": "RuntimeError: out of memory"}
    assert rows.keys() == {"by hand, eager", "by hand, compiled"}
    assert all(figures["sessions_per_second"] > 0 for figures in rows.values())


@pytest.mark.slow
@pytest.mark.train
def test_compiled_training_runs_on_a_cpu(plan: Plan) -> None:
    rows = dict(rows_of(f"train compiled {plan.training[1].title}", plan))
    assert rows.keys() == {"ours, compiled"}
    assert rows["ours, compiled"]["sessions_per_second"] > 0


@pytest.mark.train
def test_preprocessing_parts_run_on_a_cpu(plan: Plan) -> None:
    rows: dict[str, Any] = {}
    for part in [name for name in PARTS if name in ("stack", "log") or "preprocess" in name]:
        rows |= rows_of(part, plan)
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    assert rows["same"]["note"] == "801 sessions have the same values, 1 of 1 files the same bytes"
    assert rows["by-hand"]["note"] == "801 sessions by pandas"
    assert rows["nvtabular"]["note"] == "801 sessions"
    assert rows["ours"]["note"] == "pandas"
    assert rows["ours"]["rows_per_second"] > 0


@pytest.mark.train
def test_evaluation_and_exported_program_run_on_a_cpu(plan: Plan) -> None:
    rows = dict(rows_of("evaluate", plan)) | dict(rows_of("export", plan))
    assert list(rows) == [
        "ranks",
        "ranks and lists",
        "export",
        "program, batch of 1",
        "program, batch of 16",
    ]
    assert all(figures.get("sessions_per_second", 1) > 0 for figures in rows.values())


def test_missing_log_and_repository_are_named(plan: Plan) -> None:
    for part, message in (
        ("preprocess cuDF by hand", "no log"),
        ("preprocess sessions of both", "ours wrote no sessions"),
        ("serve", "no exported repository"),
    ):
        with pytest.raises(PipelineError, match=message):
            list(rows_of(part, plan))


def test_sessions_by_hand_are_newest_lists_of_indices_by_frequency() -> None:
    log = pd.DataFrame(
        {
            "session_id": [7, 5, 7, 9, 5, 7],
            "item_id": [30, 10, 20, 10, 20, 20],
            "timestamp": [3, 1, 1, 1, 2, 2],
            "category": ["b", "a", "a", "a", "a", "a"],
            "event": ["view"] * 6,
            "price": [np.e - 1, 0.0, np.nan, 5.0, np.nan, 0.0],
        }
    )
    sessions = sessions_by_hand(np, log)
    assert sessions.index.tolist() == [5, 7]
    assert sessions["item_id"].tolist() == [[4, 3], [3, 3, 5]]
    assert sessions["category"].tolist() == [[3, 3], [3, 3, 4]]
    assert sessions["timestamp"].tolist() == [[1, 2], [1, 2, 3]]
    low, high = -(0.5**0.5), 2**0.5  # of 0, 0, 1: mean 1/3, deviation 2^0.5 / 3
    assert np.hstack(sessions["price"]).tolist() == pytest.approx([low, 0, 0, low, high])


def event(name: str, device: DeviceType, start: float, end: float, **more: Any) -> Any:
    return SimpleNamespace(
        name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end), **more
    )


def test_profile_of_a_gpu_counts_kernels_and_synchronizations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, cuda = DeviceType.CPU, DeviceType.CUDA
    events = [
        event("cudaLaunchKernel", cpu, 0, 1),
        event("cudaGraphLaunch", cpu, 1, 2),
        event("cudaStreamSynchronize", cpu, 2, 3),
        event("cudaStreamSynchronize", cpu, 3, 4),
        event("cudaDeviceSynchronize", cpu, 4, 5),  # of the end
        event("aten::item", cpu, 2, 3),
        event("gemm", cuda, 0, 600),
        event("softmax", cuda, 500, 1_000),  # on another stream
        event("Memcpy DtoH (Device -> Pinned)", cuda, 1_500, 2_500),
        event("Optimizer.step", cuda, 0, 9_000, is_user_annotation=True),
    ]
    profiler = SimpleNamespace(start=lambda: None, stop=lambda: None, events=lambda: events)
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    profile = StepProfile(torch.device("cuda"))
    profile.start()
    assert profile.stop(2, 0.004) == {
        "kernels": 1.0,
        "launches": 1.0,
        "host_syncs": 1.0,
        "gpu_milliseconds": 1.0,
        "gpu_busy": pytest.approx(0.25),
    }


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9))))
def test_length_of_a_union_counts_each_moment_once(ranges: list[tuple[int, int]]) -> None:
    moments = {each for start, length in ranges for each in range(start, start + length)}
    assert union_length((start, start + length) for start, length in ranges) == len(moments)


def test_tests_part_counts_outcomes_and_names_failed_tests(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu"]\n')
    source = (
        "import pytest\n\n@pytest.mark.gpu\ndef test_works(): ...\n\ndef test_cpu(): assert 0\n"
        "\n@pytest.mark.gpu\ndef test_skips(): pytest.skip()\n"
    )
    (tmp_path / "tests" / "test_stack.py").write_text(source)
    (tmp_path / "tests" / "test_other.py").write_text("raise RuntimeError('not collected')\n")
    monkeypatch.setattr(stack, "ROOT", tmp_path)
    assert list(stack.run_tests(plan)) == [("outcomes", {"note": "1 passed, 1 skipped"})]
    (tmp_path / "tests" / "test_more.py").write_text(source.replace("...", "assert False"))
    with pytest.raises(PipelineError, match=r"1 failed, 1 passed.*test_more.py::test_works$"):
        list(stack.run_tests(plan))


def test_failed_check_of_the_stack_leaves_the_others(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_plan: Plan) -> str:
        raise OSError("libcuda.so.1: cannot open shared object file")

    for name in ("check_torch", "check_compile", "check_nvtabular", "check_loader"):
        monkeypatch.setattr(stack, name, lambda _: "")
    monkeypatch.setattr(stack, "check_arrays", fail)
    rows = dict(stack.check(plan))
    assert rows["arrays"] == {"error": "OSError: libcuda.so.1: cannot open shared object file"}
    assert rows["data frames"] == {"note": f"pandas {pd.__version__}"}
