"""`python -m benchmarks preprocess`: programs, turns, and the comparison of outputs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import logs, outputs
from benchmarks import runner as runner_module
from benchmarks.__main__ import app
from benchmarks.logs import write_log
from benchmarks.outputs import Output, compare_outputs
from benchmarks.preprocessing import preprocessing_text
from benchmarks.runner import POLARS, Plan, Runner
from pipeline.core.errors import ConfigError, PipelineError
from tests.conftest import ROOT

CATEGORICAL = ("item_id", "category", "event")
FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def expected_sessions(log: Path) -> list[dict[str, Any]]:
    """Sessions of a log in plain Python; prices standardized, raw values otherwise."""
    rows_of: dict[int, list[dict[str, Any]]] = {}
    for row in pq.read_table(log).to_pylist():
        rows_of.setdefault(row["session_id"], []).append(row)
    kept = {session: rows for session, rows in sorted(rows_of.items()) if len(rows) >= 2}
    prices = np.log1p(
        [r["price"] for rows in kept.values() for r in rows if r["price"] is not None]
    )
    mean, deviation = prices.mean(), prices.std(ddof=1)
    sessions = []
    for session, rows in kept.items():
        newest = sorted(rows, key=lambda row: row["timestamp"])[-20:]
        lists = {name: [row[name] for row in newest] for name in (*CATEGORICAL, "timestamp")}
        lists["price"] = [
            0.0 if row["price"] is None else float((np.log1p(row["price"]) - mean) / deviation)
            for row in newest
        ]
        sessions.append({"session_id": session, **lists})
    return sessions


def write_output(
    folder: Path, sessions: list[dict[str, Any]], values: dict[str, list[Any]], files: int = 1
) -> Output:
    """Write sessions encoded by the vocabularies `values`, as a side does."""
    folder.mkdir()
    index = {n: {v: 3 + i for i, v in enumerate(column)} for n, column in values.items()}
    rows = [
        row | {name: [index[name].get(v, 2) for v in row[name]] for name in CATEGORICAL}
        for row in sessions
    ]
    lists = {"timestamp": pa.int64(), "price": pa.float32()}
    schema = pa.schema(
        [("session_id", pa.int64())]
        + [(name, pa.list_(lists.get(name, pa.int64()))) for name in outputs.COLUMNS]
    )
    parts = tuple(folder / f"{number}.parquet" for number in range(files))
    for number, part in enumerate(parts):
        share = rows[number * len(rows) // files : (number + 1) * len(rows) // files]
        pq.write_table(pa.Table.from_pylist(share, schema), part, row_group_size=7)
    for name, column in values.items():
        pq.write_table(pa.table({name: column}), folder / f"values-{name}.parquet")
    vocabularies = {name: folder / f"values-{name}.parquet" for name in values}
    return Output(files=parts, vocabularies=vocabularies)


def values_of(sessions: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: sorted({v for row in sessions for v in row[name]}) for name in CATEGORICAL}


def runner(plan: Plan, scratch: Path) -> Runner:
    started = Runner(plan, scratch, runner_module.usable_cores())
    started.recipe.write_text(json.dumps(runner_module.RECIPE), encoding="utf-8")
    return started


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Log with missing prices, sessions of one interaction and sessions that are cut."""
    monkeypatch.setattr(logs, "_SESSION_GAP_MS", 20_000)  # else the log ends before they do
    write_log(tmp_path / "log.parquet", 3_000, items=400)
    lengths = pd.read_parquet(tmp_path / "log.parquet")["session_id"].value_counts()
    assert lengths.max() > 20
    assert lengths.min() == 1
    assert pd.read_parquet(tmp_path / "log.parquet")["price"].isna().any()
    return tmp_path / "log.parquet"


@pytest.mark.slow
def test_ours_and_stock_nvtabular_write_the_sessions_of_plain_python(
    log: Path, tmp_path: Path
) -> None:
    sessions = expected_sessions(log)
    expected = write_output(tmp_path / "expected", sessions, values_of(sessions_with_all(log)))
    started = runner(Plan(rows=3_000), tmp_path)
    for side in ("ours", "nvtabular"):
        cost = started.run(side, log)
        assert 0 < cost.get("work_seconds", 1) < cost["seconds"] + 1
        assert cost["peak_bytes"] > 100e6
    same = {"same": True, "sessions": len(sessions), "difference": None}
    assert started.compare("ours", "nvtabular") == same
    ours = runner_module.output_of("ours", tmp_path / "ours")
    assert compare_outputs(expected, ours) == same


def test_polars_writes_the_sessions_of_plain_python(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="in the dev group alone")
    sessions = expected_sessions(log)
    expected = write_output(tmp_path / "expected", sessions, values_of(sessions_with_all(log)))
    runner(Plan(rows=3_000), tmp_path).run("polars", log)
    polars = runner_module.output_of("polars", tmp_path / "polars")
    assert compare_outputs(expected, polars) == {
        "same": True,
        "sessions": len(sessions),
        "difference": None,
    }


def sessions_with_all(log: Path) -> list[dict[str, Any]]:
    """Uncut sessions: vocabularies hold values of old interactions too."""
    frame = pd.read_parquet(log)
    frame = frame[frame.groupby("session_id")["item_id"].transform("size") >= 2]
    return [{name: frame[name].tolist() for name in CATEGORICAL}]


SESSIONS: list[dict[str, Any]] = [
    {
        "session_id": 10 + number,
        "item_id": [100 + (number + step) % 9 for step in range(2 + number % 4)],
        "category": [f"c{(number + step) % 5}" for step in range(2 + number % 4)],
        "event": ["view"] * (1 + number % 4) + ["cart"],
        "price": [0.1 * step - 1 for step in range(2 + number % 4)],
        "timestamp": [1_000 * number + step for step in range(2 + number % 4)],
    }
    for number in range(40)
]


@given(seed=st.integers(0, 2**32), part=st.integers(1, 50), files=st.integers(1, 3))
@FEW
def test_comparison_ignores_the_order_of_indices_and_sessions(
    tmp_path_factory: pytest.TempPathFactory, seed: int, part: int, files: int
) -> None:
    folder = tmp_path_factory.mktemp("outputs")
    random = np.random.default_rng(seed)
    values = values_of(SESSIONS)
    one = write_output(folder / "one", SESSIONS, values)
    shuffled = {name: random.permutation(column).tolist() for name, column in values.items()}
    rows = [SESSIONS[place] for place in random.permutation(len(SESSIONS))]
    other = write_output(folder / "other", rows, shuffled, files)
    other = replace(other, in_order=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "_SESSIONS", part)
        comparison = compare_outputs(one, other)
    assert comparison == {"same": True, "sessions": 40, "difference": None}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("item_id", [106, 999, 108, 100, 101], [106, None, 108, 100, 101]),
        ("category", ["c2", "c2", "c4", "c0", "c1"], None),
        ("event", ["view", "view", "cart", "view", "cart"], None),
        ("price", [-1.0, -0.9, -0.8, -0.7, -0.5998], None),
        ("price", [-1.0, -0.9, float("nan"), -0.7, -0.6], [-1.0, -0.9, None, -0.7, -0.6]),
        ("timestamp", [7000, 7001, 7002, 7004, 7003], None),
    ],
)
@pytest.mark.parametrize("part", [1, 4, 100])
def test_comparison_reports_the_first_different_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, name: str, value: Any, shown: Any
) -> None:
    monkeypatch.setattr(outputs, "_SESSIONS", part)
    values = values_of(SESSIONS)
    [place] = [n for n, row in enumerate(SESSIONS) if row["session_id"] == 17]
    planted = [row | ({name: value} if n == place else {}) for n, row in enumerate(SESSIONS)]
    one = write_output(tmp_path / "one", SESSIONS, values)
    other = write_output(tmp_path / "other", planted, values)
    comparison = compare_outputs(one, other)
    assert not comparison["same"]
    difference = comparison["difference"]
    assert (difference["column"], difference["session_id"]) == (name, 17)
    ticks = 1_000 if name == "timestamp" else 1  # shown as microseconds
    approximate = pytest.approx if name == "price" else (lambda values: values)
    assert [v for v in difference["other"] if v is not None] == approximate(
        [v * ticks for v in (shown or value) if v is not None]
    )
    assert difference["one"] == approximate([v * ticks for v in SESSIONS[place][name]])
    assert json.dumps(difference, allow_nan=False)


def test_comparison_reports_another_order_of_ordered_outputs(tmp_path: Path) -> None:
    values = values_of(SESSIONS)
    one = write_output(tmp_path / "one", SESSIONS, values)
    swapped = [*SESSIONS[:5], SESSIONS[6], SESSIONS[5], *SESSIONS[7:]]
    other = write_output(tmp_path / "other", swapped, values)
    difference = compare_outputs(one, other)["difference"]
    assert difference == {"column": "session_id", "session_id": 15, "one": 15, "other": 16}


def test_prices_within_the_tolerance_are_equal(tmp_path: Path) -> None:
    near = [row | {"price": [v + 9e-5 for v in row["price"]]} for row in SESSIONS]
    values = values_of(SESSIONS)
    one = write_output(tmp_path / "one", SESSIONS, values)
    assert compare_outputs(one, write_output(tmp_path / "other", near, values))["same"]


@pytest.mark.parametrize("part", [1, 5, 100])
@pytest.mark.parametrize("gone", [0, 13, 39])
def test_comparison_reports_a_missing_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, gone: int
) -> None:
    monkeypatch.setattr(outputs, "_SESSIONS", part)
    values = values_of(SESSIONS)
    one = write_output(tmp_path / "one", SESSIONS, values)
    other = write_output(tmp_path / "other", [*SESSIONS[:gone], *SESSIONS[gone + 1 :]], values)
    for sides in ((one, other), (other, one)):
        comparison = compare_outputs(*sides)
        assert not comparison["same"]
        difference = comparison["difference"]
        assert difference["column"] == "session_id"
        assert 10 + gone in (difference["one"], difference["other"])


def test_comparison_reports_other_values_of_a_vocabulary(tmp_path: Path) -> None:
    values = values_of(SESSIONS)
    one = write_output(tmp_path / "one", SESSIONS, values)
    more = values | {"event": [*values["event"], "share"]}
    comparison = compare_outputs(one, write_output(tmp_path / "other", SESSIONS, more))
    assert comparison["difference"] == {
        "column": "event",
        "session_id": None,
        "one": {"values": 2, "alone": []},
        "other": {"values": 3, "alone": ["share"]},
    }


FAKE = """
import json, os, shutil, sys, time
source, out, book, name, size, fails = sys.argv[1:]
hoard = bytearray(int(size)); hoard[::4096] = b"1" * len(hoard[::4096])
if fails:
    print("a warning", file=sys.stderr); sys.exit(fails)
shutil.copytree(source, out)
with open(book, "a") as stream:
    stream.write(json.dumps([name, len(os.sched_getaffinity(0)), sorted(os.environ)]) + "\\n")
print("a library says something")
print(json.dumps({"seconds": 0.01, "versions": {name: "1"}}))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the programs by copies of prepared outputs; return the file of their calls."""
    values = values_of(SESSIONS)
    prepared = {side: write_output(tmp_path / side, SESSIONS, values) for side in ("a", "b")}
    planted = [*SESSIONS[:7], SESSIONS[7] | {"event": ["cart"] * 5}, *SESSIONS[8:]]
    prepared["b"] = write_output(tmp_path / "planted", planted, values)
    source = {"ours": "a", "polars": "a", "nvtabular": "b"}

    def command(self: Runner, side: str, log: Path, out: Path) -> list[str]:
        folder = prepared[source[side]].files[0].parent
        size = {"ours": 300, "polars": 30, "nvtabular": 3}[side] * 1_000_000
        fails = "no more memory" if os.environ.get("FAILS") == side else ""
        program = [sys.executable, "-S", "-c", FAKE, str(folder), str(out), str(tmp_path / "book")]
        return [*program, side, str(size), fails]

    def output(side: str, out: Path) -> Output:
        original = prepared[source[side]]
        vocabularies = {name: out / file.name for name, file in original.vocabularies.items()}
        return replace(original, files=(out / "0.parquet",), vocabularies=vocabularies)

    monkeypatch.setattr(Runner, "_command", command)
    monkeypatch.setattr(runner_module, "output_of", output)
    monkeypatch.setattr(Plan, "_check_polars", lambda self: None)
    return tmp_path / "book"


def test_sides_take_turns_and_differences_are_reported(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARS_MAX_THREADS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["preprocess", "--rows", "1000", "--turns", "2", "--cores", "1"]
    words += ["--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "preprocess.json").read_text()) == facts
    entries = [json.loads(line) for line in fake.read_text().splitlines()]
    warm_up, first, second = (
        ["ours", "polars", "nvtabular"],
        ["ours", "ours", "polars", "nvtabular"],
        ["nvtabular", "polars", "ours", "ours"],
    )
    assert [entry[0] for entry in entries] == warm_up + first + second
    for _, cores, variables in entries:
        assert cores == 1
        assert not [name for name in variables if name.endswith("_THREADS")]
    costs = facts["sides"]
    assert costs["ours"]["peak_bytes"] > 300e6
    # the memory of the parent does not count
    assert 30e6 < costs["polars"]["peak_bytes"] < 60e6
    assert facts["ratios"]["polars"]["peak"] == pytest.approx(
        costs["ours"]["peak_bytes"] / costs["polars"]["peak_bytes"]
    )
    for cost in costs["ours"]["turns"]:
        assert cost["work_seconds"] == pytest.approx(cost["seconds"] - cost["start_seconds"])
        assert cost["start_peak_bytes"] > 300e6
    assert facts["comparisons"]["polars"] == {
        "with": "ours", "same": True, "sessions": 40, "difference": None,
    }  # fmt: skip
    assert facts["comparisons"]["nvtabular"]["difference"]["session_id"] == 17
    assert facts["same"] is False
    text = preprocessing_text(facts)
    assert "Polars and pipeline wrote the same 40 sessions." in text
    assert "NVTabular, stock and pipeline DIFFER in event of session 17: ['cart', 'cart'" in text


def test_failure_names_the_side_and_its_last_line(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "polars")
    with pytest.raises(PipelineError, match="polars ended with status 1: no more memory"):
        runner(Plan(), tmp_path).run("polars", tmp_path / "log")


def test_measured_program_ends_with_its_meter(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.meter", str(os.getpid()), "",
         str(tmp_path / "out"), sys.executable, "-c", program],
        stdout=subprocess.DEVNULL, cwd=ROOT,
    ) as meter:  # fmt: skip
        deadline = time.monotonic() + 30
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        pid = int(note.read_text())
        meter.send_signal(signal.SIGKILL)
        meter.wait()
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sides", "ours,pandas"], "There is no side 'pandas', expected some of ours, polars"),
        (["--sides", ""], "--sides is '', expected each once of"),
        (["--sides", "ours,ours"], "--sides is 'ours,ours', expected each once of"),
        (["--cores", "5000"], "--cores is 5000, but this process may use"),
        (["--polars-python", "nowhere/python"], "nowhere/python cannot be run: No such file"),
        (["--polars-python", "false"], "cannot import polars. Install it there .*polars==2.1.0"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    words: list[str], message: str, tmp_path: Path
) -> None:
    python = tmp_path / "false"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    words = [str(python) if word == "false" else word for word in words]
    with pytest.raises(ConfigError, match=message) as raised:
        CliRunner().invoke(
            app, ["preprocess", *words], catch_exceptions=False, standalone_mode=False
        )
    assert "\n" not in str(raised.value)


def test_hint_names_the_polars_version_of_the_dev_group() -> None:
    assert f'"{POLARS}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
