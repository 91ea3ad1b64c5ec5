"""Too few file handles, too little memory, another time of day, a second writer."""

import signal
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipeline.core.artifact import new_artifact
from pipeline.core.files import atomic_write
from pipeline.updating.state import locked
from tests.faults.stages import STAGES, Bench, check_whole, contents, visible

pytestmark = pytest.mark.faults
YEAR = 365 * 86_400


@pytest.mark.parametrize("files", [2, 8])
@pytest.mark.parametrize("name", STAGES)
def test_too_few_file_handles_are_one_line(bench: Bench, name: str, files: int) -> None:
    check_limited(bench, name, "Too many open files", files=files)


@pytest.mark.parametrize("memory_mb", [30, 200])
@pytest.mark.parametrize("name", STAGES)
def test_too_little_memory_is_one_line(bench: Bench, name: str, memory_mb: int) -> None:
    check_limited(bench, name, "out of memory", memory_mb=memory_mb)


def check_limited(bench: Bench, name: str, reason: str, **limit: int) -> None:
    """Run a stage with a limit: it ends with `reason`, or as without the limit.

    C++ code of pyarrow and torch may abort the process for want of memory or of a thread, of which
    Python learns nothing.
    """
    stage, old, new = STAGES[name], bench.before(name), bench.undisturbed(name)
    folder = bench.fresh(name)
    outcome = bench.run(stage.command, folder, **limit)
    check_whole(folder)
    left = visible(contents(folder))
    if outcome.status == 0:
        assert left == visible(new)
        return
    if "memory_mb" not in limit or outcome.status != -signal.SIGABRT:
        assert reason in outcome.error_line
    if not stage.is_many:
        assert left == visible(old)
    bench.prepare(stage.command, folder)
    assert contents(folder) == new


@pytest.mark.parametrize("name", STAGES)
def test_stage_on_another_day_writes_the_same(bench: Bench, name: str) -> None:
    # before the times of a log, preprocessing notes that these are in the future
    is_note = name.startswith(("preprocess", "update"))
    years = -30 if [*STAGES].index(name) % 2 and not is_note else 30
    new, folder = bench.undisturbed(name), bench.fresh(name)
    outcome = bench.run(STAGES[name].command, folder, clock_seconds=years * YEAR)
    assert outcome.status == 0, outcome.stderr
    assert contents(folder) == new


@pytest.mark.parametrize("name", ["preprocess", "train --seeds", "update", "export"])
def test_output_stays_up_to_date_when_the_clock_is_moved(bench: Bench, name: str) -> None:
    bench.undisturbed(name)
    folder = bench.folder / f"after {name}"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    for seconds in (-30 * YEAR, 30 * YEAR):
        outcome = bench.run(STAGES[name].command, folder, clock_seconds=seconds)
        assert outcome.status == 0, outcome.stderr
    written = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert {path.name for path in written} <= {"update.json"}


def test_exports_while_the_clock_jumps_keep_the_newest_versions(bench: Bench) -> None:
    bench.fresh("update")
    folder = bench.fresh("export, nothing before")
    for turn in range(5):
        seconds = (-1) ** turn * 10 * YEAR
        outcome = bench.run(["export", "IN/run", "--out", "out"], folder, clock_seconds=seconds)
        assert f"version {turn + 1}:" in outcome.stdout, outcome.stderr
    versions = {path.name for path in (folder / "out" / "recommender").iterdir() if path.is_dir()}
    assert versions >= {"4", "5"}
    bench.prepare(["rollback", "out"], folder)
    outcome = bench.run(["export", "IN/run", "--out", "out"], folder, clock_seconds=-20 * YEAR)
    assert "version 6:" in outcome.stdout, outcome.stderr


def other_writer(name: str, folder: Path) -> AbstractContextManager[Any]:
    """Hold the output of a stage as another process does that is writing it."""
    if name.startswith("update"):
        return locked(folder / "out")
    if name == "tune":
        (folder / "out").mkdir()
        return FileLock(folder / "out" / ".lock")
    files = {"synthesize": "out.csv.gz", "compare": "out.html", "report": "out.json"}
    files |= {"monitor": "out.html", "evaluate --ranks": "out.parquet"}
    files |= {"predict": "out.parquet", "predict --embeddings": "out.parquet"}
    if name in files:
        return atomic_write(folder / files[name])
    if name == "train --seeds":
        return new_artifact(folder / "out" / "seed-1", "run", {})
    kind = {"preprocess": "data", "train": "run", "rollback": "repository"}.get(name.split(",")[0])
    kind = kind or {"preprocess": "data", "train": "run"}.get(name.split(" ")[0], "repository")
    return new_artifact(folder / "out", "onnx" if "onnx" in name else kind, {})


class StopWritingError(Exception):
    """Ends the other writer without a result."""


@pytest.mark.parametrize("name", STAGES)
def test_second_writer_of_an_output_is_refused_in_one_line(bench: Bench, name: str) -> None:
    stage, new, folder = STAGES[name], bench.undisturbed(name), bench.fresh(name)
    with suppress(StopWritingError), other_writer(name, folder):
        outcome = bench.run(stage.command, folder)
        raise StopWritingError
    assert "out" in outcome.error_line
    words = ("is being written by another process", "being used by another search")
    assert any(each in outcome.error_line for each in (*words, "Another `pipeline update`"))
    bench.prepare(stage.command, folder)
    assert contents(folder) == new
