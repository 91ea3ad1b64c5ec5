"""Artifact directories are whole or absent."""

import errno
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import artifact
from pipeline.core import manifest as manifests
from pipeline.core.artifact import (
    check_replaceable,
    current_facts,
    new_artifact,
    read_json,
    read_manifest,
)
from pipeline.core.errors import ArtifactError
from pipeline.core.files import hash_file
from pipeline.data.fingerprint import fingerprint_of

FILES = {"schema.pbtxt": b"feature", "sessions/train/part-0.parquet": b"PAR1" * 10, "empty": b""}


def write(path: Path, kind: str = "data", files: dict[str, bytes] = FILES) -> None:
    facts: dict = {}
    with new_artifact(path, kind, facts) as directory:
        for name, content in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
        facts["files"] = len(files)  # filled in by the block


def write_until(path: Path, error: BaseException) -> None:
    with new_artifact(path, "data", {}) as directory:
        (directory / "file").write_text("x")
        raise error


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def refusal(path: Path, kind: str = "data") -> str:
    with pytest.raises(ArtifactError) as caught:
        read_manifest(path, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_artifact_is_read_with_its_facts(tmp_path: Path) -> None:
    write(tmp_path / "a" / "shop")
    assert read_manifest(tmp_path / "a" / "shop", "data") == {"files": 3}
    manifest = json.loads((tmp_path / "a" / "shop" / "manifest.json").read_text())
    assert set(manifest["files"]) == set(FILES)
    assert names_in(tmp_path / "a") == ["shop"]


def test_target_does_not_exist_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "shop"
    with new_artifact(path, "data", {}) as directory:
        (directory / "file").write_text("x")
        assert not path.exists()
        assert "does not exist" in refusal(path)
    assert path.is_dir()


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt()])
def test_exception_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_until(tmp_path / "shop", error)
    assert names_in(tmp_path) == []


def test_exception_leaves_the_previous_artifact_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "shop")
    with pytest.raises(RuntimeError):
        write_until(tmp_path / "shop", RuntimeError())
    assert read_manifest(tmp_path / "shop", "data") == {"files": 3}
    assert names_in(tmp_path) == ["shop"]


def test_facts_without_json_form_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError), new_artifact(tmp_path / "shop", "data", {"x": float("nan")}):
        pass
    assert names_in(tmp_path) == []


def test_artifact_of_the_same_kind_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "shop")
    write(tmp_path / "shop", files={"other": b"1"})
    assert read_manifest(tmp_path / "shop", "data") == {"files": 1}
    assert names_in(tmp_path / "shop") == ["manifest.json", "other"]
    assert names_in(tmp_path) == ["shop"]


def test_empty_directory_may_be_the_target(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    write(tmp_path / "shop")
    read_manifest(tmp_path / "shop", "data")


def test_link_is_followed_and_what_it_points_at_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk" / "shop")
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "shop")
    write(tmp_path / "latest", files={"other": b"1"})
    assert (tmp_path / "latest").is_symlink()
    assert read_manifest(tmp_path / "disk" / "shop", "data") == {"files": 1}
    assert names_in(tmp_path) == ["disk", "latest"]
    assert names_in(tmp_path / "disk") == ["shop"]


def foreign_directory(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def foreign_manifest(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "a browser extension"}')


@pytest.mark.parametrize(
    "put",
    [
        foreign_directory,
        foreign_manifest,
        lambda path: path.write_text("a file"),
        lambda path: write(path, "run"),
    ],
    ids=["directory", "directory with a manifest", "file", "artifact of another kind"],
)
def test_target_that_is_no_artifact_is_left_alone(tmp_path: Path, put: object) -> None:
    path = tmp_path / "shop"
    put(path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ArtifactError, match=r"left alone. Choose another --out"):
        write(path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_artifact_with_foreign_files_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "shop")
    (tmp_path / "shop" / "sessions" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds sessions/notes.txt, .* Move that away"):
        write(tmp_path / "shop")
    assert (tmp_path / "shop" / "sessions" / "notes.txt").read_text() == "mine"
    (tmp_path / "shop" / "sessions" / "notes.txt").unlink()
    (tmp_path / "shop" / "__pycache__").mkdir()  # Triton's Python leaves such
    (tmp_path / "shop" / "__pycache__" / "model.pyc").write_text("x")
    write(tmp_path / "shop")
    assert not (tmp_path / "shop" / "__pycache__").exists()


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        (".", r"--out \. is the working directory\. Name a directory in it"),
        ("s3://bucket/shop", r"is no local directory\. Write to one and copy"),
        ("https://host/shop", "is no local directory"),
    ],
)
def test_working_directory_and_remote_targets_are_refused(
    out: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=expected):
        check_replaceable(Path(out), "data")
    with pytest.raises(ArtifactError, match="is the working directory"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [None, 3, "x", [[1]]])
def test_artifact_whose_manifest_is_damaged_is_left_alone(tmp_path: Path, files: object) -> None:
    write(tmp_path / "shop")
    text = json.dumps({"kind": "data", "files": files})
    (tmp_path / "shop" / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="left alone"):
        write(tmp_path / "shop")


def cannot_exchange(*_paths: Path) -> None:
    raise OSError(errno.EINVAL, "no such flag")


def test_rename_that_fails_puts_the_previous_artifact_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "shop")
    monkeypatch.setattr(artifact, "_exchange", cannot_exchange)
    rename = Path.rename

    def fail_for_the_new_one(path: Path, target: Path) -> None:
        if target.name == "shop" and (path / "new").exists():
            raise OSError
        rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError):
        write(tmp_path / "shop", files={"new": b"1"})
    assert read_manifest(tmp_path / "shop", "data") == {"files": 3}
    assert names_in(tmp_path) == ["shop"]


def test_mount_point_is_refused_before_the_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a rename onto one fails, at the end of hours of training
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    (tmp_path / "volume").mkdir()
    with pytest.raises(ArtifactError, match="Choose a directory inside it"):
        write(tmp_path / "volume")
    write(tmp_path / "volume" / "shop")


def test_target_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written: Not a directory"):
        write(tmp_path / "file" / "deep" / "shop")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write(tmp_path / "file" / "shop")


def test_directory_that_does_not_exist_names_the_command_that_writes_it(tmp_path: Path) -> None:
    for kind, command in (("data", "preprocess"), ("run", "train"), ("repository", "export")):
        message = refusal(tmp_path / "shop", kind)
        assert "does not exist" in message
        assert f"Run `pipeline {command} " in message


def test_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "shop", "run")
    assert "is a run directory, expected a data directory" in refusal(tmp_path / "shop")


def test_another_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "shop")
    manifest = json.loads((tmp_path / "shop" / "manifest.json").read_text())
    (tmp_path / "shop" / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    assert "has format 99, this version reads 1" in refusal(tmp_path / "shop")


def test_check_without_files_reads_the_manifest_alone(tmp_path: Path) -> None:
    write(tmp_path / "shop")
    (tmp_path / "shop" / "empty").write_text("changed")
    assert read_manifest(tmp_path / "shop", "data", check_files=False) == {"files": 3}
    with pytest.raises(ArtifactError, match="is a data directory, expected a run directory"):
        read_manifest(tmp_path / "shop", "run", check_files=False)


def test_artifact_that_is_replaced_during_the_check_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "shop")
    hashed = []

    def replace_first(file: Path) -> str:
        hashed.append(file)
        if len(hashed) == 1:
            write(tmp_path / "shop", files={"other": b"1"})
        return hash_file(file)

    monkeypatch.setattr(manifests, "hash_file", replace_first)
    assert read_manifest(tmp_path / "shop", "data") == {"files": 1}


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "shop")
    (tmp_path / "shop" / name).unlink()
    assert f"incomplete: missing {name}" in refusal(tmp_path / "shop")


@given(name=st.sampled_from(sorted(FILES)), data=st.data())
@settings(deadline=None, max_examples=50)
def test_truncated_longer_or_changed_file_is_named(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("artifact") / "shop"
    write(path)
    content = FILES[name]
    damaged = data.draw(
        st.one_of(
            st.integers(0, max(len(content) - 1, 0)).map(lambda end: content[:end]),
            st.binary(min_size=1, max_size=4).map(lambda more: content + more),
            st.binary(min_size=len(content), max_size=len(content)),
        ).filter(lambda changed: changed != content)
        if content
        else st.binary(min_size=1, max_size=4)
    )
    (path / name).write_bytes(damaged)
    assert f"damaged: {name} is not what was written" in refusal(path)


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_truncated_manifest_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("artifact") / "shop"
    write(path)
    whole = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 2))])
    assert "manifest.json is damaged" in refusal(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    max_leaves=5,
)


@given(field=st.sampled_from(["kind", "files", "facts", "format", "entry"]), value=JSON)
@settings(deadline=None)
def test_manifest_with_any_json_in_a_field_raises_artifact_error_alone(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object
) -> None:
    path = tmp_path_factory.mktemp("artifact") / "shop"
    write(path, files={"file": b"x"})
    manifest = json.loads((path / "manifest.json").read_text())
    if field == "entry":
        manifest["files"]["file"] = value
    else:
        manifest[field] = value
    (path / "manifest.json").write_text(json.dumps(manifest))
    try:
        read_manifest(path, "data")
    except ArtifactError as error:
        message = str(error)
        assert "\n" not in message
    else:
        assert field in ("facts", "files") or (field, value) == ("format", 1)


def test_invalid_json_raises_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    for name in ("x.json", "none.json"):
        with pytest.raises(ArtifactError, match=f"{name} is missing or damaged"):
            read_json(tmp_path / name)


WRITER = """
import errno, os, sys, time
from pathlib import Path
from pipeline.core import artifact
from pipeline.core import manifest as manifests

stop = int(sys.argv[2])
def step(count=[0]):
    if count[0] == stop:
        print("here", flush=True)
        time.sleep(60)
    count[0] += 1

if sys.argv[3] == "two steps":
    def cannot(*_paths):
        raise OSError(errno.EINVAL, "no such flag")
    artifact._exchange = cannot
inside = [(artifact, "write_manifest"), (artifact, "sync"), (artifact, "_exchange")]
for module, name in [*inside, (manifests, "sync"), (manifests, "hash_file")]:
    def stepping(*arguments, inner=getattr(module, name), **more):
        step()
        return inner(*arguments, **more)
    setattr(module, name, stepping)
def renaming(*arguments, inner=Path.rename):
    step()
    inner(*arguments)
    step()
Path.rename = renaming

facts = {}
with artifact.new_artifact(Path(sys.argv[1]), "data", facts) as directory:
    for number in range(2):
        step()
        with (directory / f"file-{number}").open("wb") as stream:
            stream.write(b"new" * 1000)
            stream.flush()
            step()
            stream.write(b"new" * 1000)
    facts["version"] = "new"
print("done", flush=True)
"""
"""Stops for good at the moment that its second argument counts: inside a file, between files,
around the hashes, the manifest and each rename."""


def killed_writer(path: Path, stop: int, steps: str) -> str:
    """Kill a writer at one of its steps; return what it said last."""
    command = [sys.executable, "-c", WRITER, str(path), str(stop), steps]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    return said


@pytest.mark.parametrize(
    ("before", "steps", "expected"),
    [
        (False, "one step", {"absent", "new"}),
        # where the file system can exchange two directories one always exists
        (True, "one step", {"old", "new"}),
        (True, "two steps", {"old", "absent", "new"}),
    ],
    ids=["absent", "existing", "existing, no exchange"],
)
def test_writer_killed_at_any_moment_leaves_a_whole_artifact_or_none(
    tmp_path: Path, before: bool, steps: str, expected: set[str]
) -> None:
    seen = set()
    said = "here"
    for stop in itertools.count():
        if said == "done":
            break
        path = tmp_path / f"stop-{stop}" / "shop"
        if before:
            with new_artifact(path, "data", {"version": "old"}) as directory:
                (directory / "old-file").write_text("old")
        said = killed_writer(path, stop, steps)
        try:
            version = read_manifest(path, "data")["version"]
        except ArtifactError as error:
            message = str(error)
            assert "does not exist" in message
            version = "absent"
        else:
            assert (path / "old-file").exists() == (version == "old")
        seen.add(version)
        if said == "done":
            assert version == "new"
        # the next writer removes what the killed one left, and only that
        write(path)
        assert names_in(path.parent) == ["shop"]
    assert stop > 10
    assert seen == expected


def test_partial_directories_of_running_writers_and_other_programs_stay(tmp_path: Path) -> None:
    dead = tmp_path / f".shop.partial-{0:016x}"
    others = [
        tmp_path / ".shop.partial-notes",
        tmp_path / f".shop.partial-{0:015x}x",
        tmp_path / f".shop2.partial-{0:016x}",
        tmp_path / f".shop.partial-{0:017x}",
    ]
    for path in (dead, *others):
        path.mkdir()
        (path / "file").write_text("x")
    living = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "shop"), "3", "one step"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert living.stdout is not None
    assert living.stdout.readline() == "here\n"
    with pytest.raises(ArtifactError, match="is being written by another process"):
        write(tmp_path / "shop")
    hidden = set(tmp_path.glob(".shop.partial-*")) - set(others)
    assert len(hidden) == 1  # of the one that lives, in the middle of its work
    assert (hidden.pop() / "file-0").exists()
    assert not dead.exists()
    assert all((path / "file").exists() for path in others)
    living.kill()
    living.communicate()
    write(tmp_path / "shop")
    assert not set(tmp_path.glob(".shop.partial-*")) - set(others)


def test_second_writer_of_one_target_is_refused_while_the_first_works(tmp_path: Path) -> None:
    # a lock tells, not a process id: in containers theirs may be the same
    with new_artifact(tmp_path / "shop", "data", {"writer": 1}) as first:
        (first / "one").write_text("1")
        with pytest.raises(ArtifactError, match="is being written by another process"):
            write(tmp_path / "shop")
        write(tmp_path / "shop2")
    assert read_manifest(tmp_path / "shop", "data") == {"writer": 1}
    write(tmp_path / "shop")
    assert names_in(tmp_path) == ["shop", "shop2"]


def test_files_reach_the_disk_before_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(manifests, "sync", lambda path: synced.append(path.name))
    write(tmp_path / "shop")
    assert synced.index("manifest.json") > max(
        synced.index(name) for name in ("schema.pbtxt", "part-0.parquet", "empty")
    )


def test_only_an_artifact_with_the_same_fingerprint_is_current(tmp_path: Path) -> None:
    def make(settings: dict, log: str) -> str:
        (tmp_path / "log.csv").write_text(log)
        return fingerprint_of(settings, [tmp_path / "log.csv"], [])

    path = tmp_path / "shop"
    fingerprint = make({"items": 1}, "a,b")
    assert current_facts(path, "data", fingerprint) is None
    with new_artifact(path, "data", {"rows": 1}, fingerprint=fingerprint) as directory:
        (directory / "file").write_text("x")
    assert current_facts(path, "data", make({"items": 1}, "a,b")) == {"rows": 1}
    assert current_facts(path, "run", fingerprint) is None
    assert current_facts(path, "data", make({"items": 2}, "a,b")) is None
    assert current_facts(path, "data", make({"items": 1}, "a,c")) is None
    # the partial directory of a killed writer is removed
    (tmp_path / f".shop.partial-{0:016x}").mkdir()
    assert current_facts(path, "data", fingerprint) == {"rows": 1}
    assert names_in(tmp_path) == ["log.csv", "shop"]
    (path / "file").write_text("y")
    assert current_facts(path, "data", fingerprint) is None
    # one that was written without saying what from is never current
    write(path)
    assert current_facts(path, "data", fingerprint) is None


def test_fingerprint_of_an_output_changes_with_the_artifact_it_reads(
    tmp_path: Path,
) -> None:
    write(tmp_path / "data")
    before = fingerprint_of({}, [], [tmp_path / "data"])
    write(tmp_path / "data")
    assert fingerprint_of({}, [], [tmp_path / "data"]) == before
    write(tmp_path / "data", files={"other": b"1"})
    assert fingerprint_of({}, [], [tmp_path / "data"]) != before
