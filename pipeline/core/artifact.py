"""Directories that are whole or absent.

A stage writes into a hidden sibling of its target and puts that in its place at the end; the
manifest, written last, holds the size and hash of every file. Whoever opens a directory checks it
first.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.core.errors import ArtifactError

MANIFEST = "manifest.json"
_FORMAT = 1
_WRITTEN_BY = f"pipeline {__version__}"
_NEXT_STEP = {
    "data": "Run `pipeline preprocess CONFIG --input FILE --out {path}` first.",
    "run": "Run `pipeline train DATA --out {path}` first.",
    "repository": "Run `pipeline export RUN --out {path}` first.",
    "checkpoint": "Go on from another one.",
}
_EXPECTED = {
    "data": "Give one that `pipeline preprocess` wrote.",
    "run": "Give one that `pipeline train` wrote.",
    "repository": "Give one that `pipeline export` wrote.",
    "checkpoint": "Go on from another one.",
}


@contextmanager
def new_artifact(
    path: Path, kind: str, facts: dict[str, Any], *, made_from: str | None = None
) -> Iterator[Path]:
    """Give a directory to write into; it becomes `path` when the block ends without an error.

    `kind` is data, run, repository or checkpoint. `facts` goes into the manifest as it is when
    the block ends, so the block may fill it in; `made_from` is what `current_facts` compares. An
    artifact of the same kind at `path` is replaced; ArtifactError if anything else is there, or if
    another process is writing it.
    """
    path = path.resolve()  # what a link points at is replaced, not the link
    check_replaceable(path, kind)
    partial = _sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            if not _remove_leftovers(path):
                raise ArtifactError(
                    f"{path} is being written by another process. Wait for it, or choose another "
                    "--out."
                )
            partial.mkdir()
            lock = _lock(partial)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror}. Choose another --out."
        ) from None
    try:
        yield partial
        _write_manifest(partial, kind, facts, made_from)
        _replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def current_facts(path: Path, kind: str, made_from: str) -> dict[str, Any] | None:
    """The facts of an artifact that is whole and was made from just this; None if there is none.

    With it a stage that was done before is not done again. What killed writers left is removed, as
    the stage would do.
    """
    with suppress(OSError), _locked(path.resolve().parent):
        _remove_leftovers(path.resolve())
    try:
        facts = read_manifest(path, kind)
    except ArtifactError:
        return None
    return facts if read_json(path / MANIFEST).get("made_from") == made_from else None


def fingerprint(settings: Any, files: list[Path], artifacts: list[Path]) -> str:
    """Stands for all that an output depends on: settings, logs by content, artifacts by manifest.

    Of a log the name counts as well, which tells its format. OSError for a file that is not there.
    """
    parts = {
        "written_by": _WRITTEN_BY,
        "settings": settings,
        "files": [[file.name, _hash(file)] for file in files],
        "artifacts": [_hash(artifact / MANIFEST) for artifact in artifacts],
    }
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path, kind: str, *, check_files: bool = True) -> dict[str, Any]:
    """Check a whole artifact and return the facts of its manifest.

    ArtifactError names the first file that is missing or differs. Without `check_files` only the
    manifest itself is looked at, which takes no time.
    """
    next_step = _NEXT_STEP[kind].format(path=path)
    if not path.is_dir():
        if path.exists():
            raise ArtifactError(f"{path} is no directory. {_EXPECTED[kind]}")
        raise ArtifactError(f"{path} does not exist. {next_step}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["kind"]
        files = {name: (e["bytes"], e["sha256"]) for name, e in manifest["files"].items()}
        facts = dict(manifest["facts"])
        # they stand in errors, which are one line
        if found not in _NEXT_STEP or not all(name.isprintable() for name in files):
            raise ValueError
    except FileNotFoundError:
        raise ArtifactError(f"{path} is incomplete: missing {MANIFEST}. {next_step}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise ArtifactError(f"{path}/{MANIFEST} is damaged. {next_step}") from None
    if found != kind:
        raise ArtifactError(f"{path} is a {found} directory, expected {kind}. {_EXPECTED[kind]}")
    if manifest.get("format") != _FORMAT:
        version = repr(manifest.get("format"))
        raise ArtifactError(
            f"{path} has format {version}, this version reads {_FORMAT}. {next_step}"
        )
    for name, (num_bytes, digest) in files.items() if check_files else ():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{path} is incomplete: missing {name}. {next_step}")
        if file.stat().st_size != num_bytes or _hash(file) != digest:
            raise ArtifactError(f"{path} is damaged: {name} is not what was written. {next_step}")
    return facts


def content_of(path: Path, below: str) -> str:
    """Stands for the files of an artifact below a folder of it: their names and content.

    ArtifactError as `read_manifest`, if the manifest cannot be read.
    """
    try:
        files = read_json(path / MANIFEST)["files"].items()
        parts = sorted((name, entry["sha256"]) for name, entry in files)
    except (KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path}/{MANIFEST} is damaged.") from None
    text = json.dumps([part for part in parts if part[0].startswith(f"{below}/")])
    return hashlib.sha256(text.encode()).hexdigest()


def check_replaceable(path: Path, kind: str) -> None:
    """ArtifactError if something else than an artifact of this kind would be overwritten."""
    if path.is_mount():
        raise ArtifactError(f"{path} is a mount point. Choose a directory inside it.")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found, files = manifest["kind"], set(manifest["files"])
        found = found if found in _NEXT_STEP else None
    except (OSError, ValueError, KeyError, TypeError):
        found, files = None, set()
    if found != kind:
        what = f"a {found} directory" if found else "something that this program did not write"
        raise ArtifactError(f"{path} is {what}; it is left alone. Choose another --out.")
    foreign = _files_beside(path, files)
    if foreign:
        raise ArtifactError(
            f"{path} holds {foreign[0]}, which is no part of it; it is left alone. Move that away, "
            "or choose another --out."
        )


def _files_beside(path: Path, known: set[str]) -> list[str]:
    """Files below an artifact that its manifest does not name."""
    names = (p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir())
    # Python may leave compiled copies beside the code of a repository
    known = {MANIFEST, *known}
    return sorted(name for name in names if name not in known and "__pycache__" not in name)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON of an artifact. ArtifactError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}") from None


def _write_manifest(
    directory: Path, kind: str, facts: dict[str, Any], made_from: str | None
) -> None:
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        _sync(file)
        # what a library wrote for its own user alone is as readable as the rest
        file.chmod(file.stat().st_mode | directory.stat().st_mode & 0o444)
        name = file.relative_to(directory).as_posix()
        files[name] = {"bytes": file.stat().st_size, "sha256": _hash(file)}
    manifest = {
        "format": _FORMAT,
        "kind": kind,
        "written_by": _WRITTEN_BY,
        "made_from": made_from,
        "facts": facts,
        "files": files,
    }
    write_json(directory / MANIFEST, manifest)
    _sync(directory / MANIFEST)


def _replace(partial: Path, path: Path) -> None:
    """Put `partial` in the place of `path`; what was there ends up at `partial`, or is gone."""
    if not path.exists():
        partial.rename(path)
    else:
        try:
            _exchange(partial, path)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            _replace_in_two_steps(partial, path)
    _sync(path.parent)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories in one step, so that there is never nothing (Linux, renameat2(2))."""
    at_fdcwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems answer that cannot exchange, some of those over a network."""


def _replace_in_two_steps(partial: Path, path: Path) -> None:
    """Between the two there is nothing at `path`, and never half of something."""
    old = _sibling(path)
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(path: Path) -> Path:
    """A hidden name beside `path` that no other writer takes."""
    return path.parent / f".{path.name}.partial-{secrets.token_hex(8)}"


def _remove_leftovers(path: Path) -> bool:
    """Remove what writers of `path` left that were killed: nobody holds their lock any more.

    Returns whether no writer is at work.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.partial-[0-9a-f]{{16}}")
    alone = True
    for old in path.parent.iterdir():
        if ours.fullmatch(old.name):
            try:
                lock = _lock(old)
            except BlockingIOError:
                alone = False
            except OSError:
                pass  # not ours to remove
            else:
                if lock is not None:
                    shutil.rmtree(old, ignore_errors=True)
                    os.close(lock)
    return alone


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Alone in `directory`, where that can be had: one writer begins while no other cleans up."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int | None:
    """Hold a directory until the descriptor is closed or the process has ended, however it did.

    Unlike a process id this holds between containers too. None where the file system has no such
    locks; BlockingIOError if another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """The manifest must not reach the disk before what it vouches for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
