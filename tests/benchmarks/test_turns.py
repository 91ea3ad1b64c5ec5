"""Turns of measured processes: order, cost, and the end of every process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Program, Worker, environment, run_task
from benchmarks.sides import rates, ratios, take_turns
from pipeline.core.errors import PipelineError
from tests.conftest import ROOT

SIDE = """
import os, sys, time, threading
sys.path.insert(0, sys.argv[1])
from turns import Memory, Turns, open_channel
channel, task = open_channel()
print("a library prints on stdout")
memory = Memory()
if task.get("fails") == "at once":
    raise ValueError("no such model")
turns = Turns(channel, memory, task["warm_up"])
hoard = bytearray(task.get("bytes", 0))
hoard[::4096] = b"1" * len(hoard[::4096])
while True:
    with open(task["book"], "a") as book:
        book.write(task["name"])
    time.sleep(task.get("nap", 0))
    turns.count(task["sessions"], 5 * task["sessions"])
    if task.get("fails") == "later" and turns._ready:
        raise ValueError("no more memory")
    if not turns.step_ended():
        break
turns.end({"pid": os.getpid(), "variables": sorted(n for n in os.environ if "MALLOC" in n)})
"""


@pytest.fixture
def side(tmp_path: Path) -> Program:
    """Program that follows its task, in place of a training."""
    file = tmp_path / "side.py"
    file.write_text(SIDE, encoding="utf-8")
    return Program(
        command=(sys.executable, str(file), str(ROOT / "benchmarks")),
    )


def task(directory: Path, name: str, **changes: Any) -> dict[str, Any]:
    values = {"name": name, "sessions": 4, "warm_up": 1, "book": str(directory / "book")}
    return values | changes


def state(pid: int) -> str:
    """Return the state letter of a process, T for stopped, "" without a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return ""
    letter = next(line.split()[1] for line in status.splitlines() if line.startswith("State:"))
    return "" if letter == "Z" else letter


@pytest.fixture(autouse=True)
def others() -> None:
    """Remember children of other tests of this process, which `children` leaves out."""
    _others.clear()
    _others.update(all_children())


_others: set[int] = set()


def children() -> set[int]:
    """Return the processes that this test started."""
    return all_children() - _others


def all_children() -> set[int]:
    own = os.getpid()
    pids = Path(f"/proc/{own}/task/{own}/children").read_text(encoding="ascii")
    return {int(pid) for pid in pids.split()}


def turns(directory: Path, tasks: list[tuple[str, Program, dict[str, Any]]]) -> dict[str, Any]:
    return take_turns(tasks, allocator="default", core=None, turns=2, steps=3, logs=directory)


def test_sides_work_in_turn_after_their_warm_up(tmp_path: Path, side: Program) -> None:
    costs = turns(
        tmp_path,
        [("ours", side, task(tmp_path, "o")), ("theirs", side, task(tmp_path, "t", sessions=6))],
    )
    assert (tmp_path / "book").read_text() == "o" + "t" + 2 * ("ooo" + "ttt")
    assert costs["ours"]["sessions"] == 2 * 3 * 4
    assert costs["theirs"]["interactions"] == 2 * 3 * 6 * 5
    assert costs["theirs"]["steps"] == 6
    assert len(costs["ours"]["turns"]) == 2


def test_time_of_a_turn_is_that_of_its_steps(tmp_path: Path, side: Program) -> None:
    tasks = [
        ("quick", side, task(tmp_path, "q", nap=0.01)),
        ("slow", side, task(tmp_path, "s", nap=0.1)),
    ]
    costs = turns(tmp_path, tasks)
    assert costs["slow"]["seconds"] >= 0.6
    assert costs["quick"]["seconds"] < costs["slow"]["seconds"]
    assert costs["slow"]["cpu_seconds"] < 0.3  # it sleeps


def test_waiting_processes_are_stopped(tmp_path: Path, side: Program) -> None:
    with Worker(
        "ours",
        side,
        task(tmp_path, "o"),
        allocator="default",
        core=None,
        log=tmp_path / "log",
    ) as worker:
        worker.wait_until_ready()
        (pid,) = children()
        assert state(pid) == "T"
        worker.turn(2)
        assert state(pid) == "T"
        assert worker.end()["pid"] == pid
    assert not state(pid)


def test_peak_memory_excludes_what_was_resident_at_the_start(tmp_path: Path, side: Program) -> None:
    big = ("big", side, task(tmp_path, "b", bytes=64_000_000))
    costs = turns(tmp_path, [big, ("small", side, task(tmp_path, "s"))])
    assert 60e6 < costs["big"]["peak_bytes"] < 90e6
    assert costs["small"]["peak_bytes"] < 20e6


@pytest.mark.parametrize(("fails", "reason"), [("at once", "model"), ("later", "memory")])
def test_failure_of_one_side_ends_the_others(
    tmp_path: Path, side: Program, fails: str, reason: str
) -> None:
    tasks = [
        ("ours", side, task(tmp_path, "o")),
        ("theirs", side, task(tmp_path, "t", fails=fails)),
    ]
    with pytest.raises(PipelineError, match=rf"theirs ended with status 1: ValueError: .*{reason}"):
        turns(tmp_path, tasks)
    assert children() == set()


def test_program_that_does_not_start_is_reported_in_one_line(tmp_path: Path) -> None:
    program = Program(command=(sys.executable, str(tmp_path / "nowhere.py")))
    with pytest.raises(PipelineError, match="can't open file") as raised:
        run_task("theirs", program, {}, log=tmp_path / "log")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_command(
    tmp_path: Path, side: Program, number: signal.Signals
) -> None:
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # the runner of the tests may ignore it
from pathlib import Path
from benchmarks.processes import Program
from benchmarks.sides import take_turns
from pipeline.cli.console import run_app
import typer
app = typer.Typer()
side = Program(command={side.command!r})
tasks = [(n, side, {{"name": n, "sessions": 1, "warm_up": 1, "nap": 0.05,
          "book": {str(tmp_path / "book")!r}}}) for n in "ot"]
@app.command()
def command():
    take_turns(tasks, allocator="default", core=None, turns=10_000, steps=1,
               logs=Path({str(tmp_path)!r}))
run_app(app)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    book = tmp_path / "book"
    try:
        deadline = time.monotonic() + 60
        while not (book.is_file() and "ot" in book.read_text()[2:]):
            assert time.monotonic() < deadline
            assert parent.poll() is None
            time.sleep(0.05)
        pids = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert len(pids) == 2
        parent.send_signal(number)
        parent.wait(timeout=60)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while any(state(int(pid)) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_rates_are_of_totals_and_ratios_of_rates() -> None:
    def turn(seconds: float, sessions: int) -> dict[str, Any]:
        cost = {"seconds": seconds, "cpu_seconds": seconds / 2, "steps": 1}
        return cost | {"sessions": sessions, "interactions": 5 * sessions}

    ours = rates([turn(1.0, 300), turn(3.0, 100)]) | {"peak_bytes": 50}
    theirs = rates([turn(4.0, 80), turn(4.0, 80)]) | {"peak_bytes": 200}
    assert ours["sessions_per_second"] == 100
    assert ours["sessions_per_cpu_second"] == 200
    assert theirs["sessions_per_second"] == 20
    assert ratios(ours, theirs) == {"speed": 5.0, "cpu_speed": 5.0, "memory": 0.25}


def test_measured_processes_ignore_the_users_allocator_and_threads(
    tmp_path: Path, side: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    default, kept = environment("default"), environment("kept")
    assert not [name for name in default if name.startswith(("MALLOC_", "LD_PRELOAD"))]
    assert default["OMP_NUM_THREADS"] == kept["OMP_NUM_THREADS"] == "1"
    assert kept["MALLOC_MMAP_MAX_"] == "0"
    variables = take_turns(
        [("ours", side, task(tmp_path, "o"))],
        allocator="kept",
        core=None,
        turns=1,
        steps=1,
        logs=tmp_path,
    )["ours"]["variables"]
    assert variables == ["MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_"]


def test_side_runs_on_its_core(tmp_path: Path) -> None:
    file = tmp_path / "core.py"
    file.write_text(
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from turns import open_channel\n"
        "channel, task = open_channel()\n"
        "channel.send({'cores': sorted(os.sched_getaffinity(0))})\n",
        encoding="utf-8",
    )
    program = Program(command=(sys.executable, str(file), str(ROOT / "benchmarks")))
    core = min(os.sched_getaffinity(0))
    answer = run_task("ours", program, {}, log=tmp_path / "log", core=core)
    assert answer == {"cores": [core]}


def test_messages_are_lines_of_json(tmp_path: Path, side: Program) -> None:
    message = json.dumps(task(tmp_path, "o") | {"parent": os.getpid(), "core": None})
    done = subprocess.run(
        side.command,
        input=f'{message}\n{{"steps": 1}}\n',
        capture_output=True,
        text=True,
        timeout=60,
    )
    ready, cost, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready == {"ready": True}
    assert cost["sessions"] == 4
    assert end["peak_bytes"] >= 0
    assert "a library prints on stdout" in done.stderr
