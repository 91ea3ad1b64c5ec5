"""Disks that are full, read-only or broken: one line that names the output, which stays whole."""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import CHANGES, Fault
from tests.faults.stages import NOT_REPEATED, STAGES, Bench, check_whole, contents, visible
from tests.faults.test_kills import sampled

pytestmark = pytest.mark.faults
DATABASE = re.compile(
    r"out/study\.db was not written or not read: "
    r"(database or disk is full|disk I/O error|unable to open database file|"
    r"attempt to write a readonly database)"
)
"""What SQLite says of the same errors."""
CHECKPOINTS = ".checkpoints/"
WRITING = ("open", "write", "mkdir")


def check_failed(bench: Bench, name: str, fault: Fault, reason: str) -> None:
    """Run a stage with a fault, and again without.

    It says `reason` in one line that names its output, and leaves old or new.
    """
    stage, old, new = STAGES[name], bench.before(name), bench.undisturbed(name)
    folder = bench.fresh(name)
    outcome = bench.run(stage.command, folder, fault)
    where = f"{name}, call {fault.first}: {outcome.first_hit}"
    if outcome.status == 0:  # a directory could not be synced, or a hidden file not be removed
        assert visible(contents(folder)) == visible(new), where
        return
    line = outcome.error_line
    assert reason in line or (name == "tune" and DATABASE.search(line)), (where, line)
    outputs = (str(folder), "Error: out", "Error: figures/")
    assert any(output in line for output in outputs), (where, line)
    check_whole(folder)
    left = visible(contents(folder))
    # the last call makes the rename of the output reach the disk
    is_new = left == visible(new) != visible(old) and fault.kinds == ("sync",)
    if not stage.is_many:
        assert left in (visible(old), {}) or is_new, where
    if is_new and name in NOT_REPEATED:
        return
    assert not list(folder.rglob(".*.partial-*")), where
    again = bench.run(stage.command, folder)
    assert again.status == 0, (where, again.stderr)
    # --if-needed leaves the checkpoints of a training that ended after its run was written
    kept = {name: content for name, content in contents(folder).items() if CHECKPOINTS not in name}
    assert kept == new, where


def calls_of(bench: Bench, name: str, kinds: tuple[str, ...]) -> int:
    """Number of calls of these kinds in an undisturbed run."""
    folder = bench.fresh(name)
    return bench.run(STAGES[name].command, folder, Fault.none(folder, kinds)).calls


@pytest.mark.parametrize("name", STAGES)
def test_disk_that_is_full_from_any_write_on_is_one_line(bench: Bench, name: str) -> None:
    for number in sampled(calls_of(bench, name, WRITING), 5):
        fault = Fault.full_disk(bench.folder / "case", number)
        check_failed(bench, name, fault, "No space left on device")


@pytest.mark.parametrize("name", STAGES)
def test_read_only_file_system_is_one_line(bench: Bench, name: str) -> None:
    fault = Fault(bench.folder / "case", errno.EROFS, CHANGES)
    check_failed(bench, name, fault, "Read-only file system")


@pytest.mark.parametrize("kind", ["write", "sync"])
@pytest.mark.parametrize("name", STAGES)
def test_broken_disk_is_one_line(bench: Bench, name: str, kind: str) -> None:
    for number in sampled(calls_of(bench, name, (kind,)), 2):
        fault = Fault(bench.folder / "case", errno.EIO, (kind,), number)
        check_failed(bench, name, fault, "Input/output error")


@pytest.mark.parametrize("name", STAGES)
def test_rename_that_fails_is_one_line(bench: Bench, name: str) -> None:
    for number in sampled(calls_of(bench, name, ("rename",)), 2):
        fault = Fault(bench.folder / "case", errno.EXDEV, ("rename",), number)
        check_failed(bench, name, fault, "Invalid cross-device link")


@pytest.mark.parametrize("name", STAGES)
def test_file_system_without_locks_and_exchange_is_written_alike(bench: Bench, name: str) -> None:
    new, folder = bench.undisturbed(name), bench.fresh(name)
    fault = Fault(folder, errno.ENOLCK, ("lock",))
    outcome = bench.run(STAGES[name].command, folder, fault)
    if name == "tune":  # SQLite cannot do without
        assert "out is on a file system without locks" in outcome.error_line
        return
    assert outcome.status == 0, outcome.stderr
    assert contents(folder) == new


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """File system in memory of 64 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this container may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if not stage.earlier])
def test_small_disk_and_a_read_only_one_are_one_line(
    bench: Bench, name: str, small_disk: Path
) -> None:
    size = sum(p.stat().st_size for p in (bench.folder / f"after {name}").rglob("*"))
    outcome = bench.run(STAGES[name].command, small_disk)
    if size > 64 << 10:
        line = outcome.error_line
        assert "No space left on device" in line or DATABASE.search(line)
        assert "out" in outcome.error_line
    shutil.rmtree(small_disk / "out", ignore_errors=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    outcome = bench.run(STAGES[name].command, small_disk)
    assert "Read-only file system" in outcome.error_line
    assert str(small_disk) in outcome.error_line or "out" in outcome.error_line
