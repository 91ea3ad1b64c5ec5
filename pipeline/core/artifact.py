"""Artifact directories: written atomically, described by a manifest, checked when opened.

A stage writes into a hidden sibling of its target, which replaces the target at the end. The
manifest, written last, holds the size and SHA-256 of every file.
"""

import ctypes
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ArtifactError
from pipeline.core.files import read_small_text, sync, written_errors
from pipeline.core.json_text import parse_json
from pipeline.core.locks import exclusive, lock, remove_leftovers, sibling
from pipeline.core.manifest import (
    DAMAGED,
    FORMAT,
    MANIFEST,
    Manifest,
    foreign_files,
    parse_manifest,
    write_manifest,
)
from pipeline.core.manifest import check_files as check_all_files
from pipeline.core.signature import sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_REMOTE = re.compile(r"[a-z][a-z0-9+]+:/")
_NEXT_STEP = {
    "data": "Run `pipeline preprocess LOGS --recipe FILE --out {path}` first.",
    "run": "Run `pipeline train DATA --out {path}` first.",
    "repository": "Run `pipeline export RUN --out {path}` first.",
    "onnx": "Run `pipeline export RUN --format onnx --out {path}` first.",
    "checkpoint": "The one before it is used.",
}
_EXPECTED = {
    "data": "Give one that `pipeline preprocess` wrote.",
    "run": "Give one that `pipeline train` wrote.",
    "repository": "Give one that `pipeline export` wrote.",
    "onnx": "Give one that `pipeline export --format onnx` wrote.",
    "checkpoint": "Go on from another one.",
}


@contextmanager
def new_artifact(
    path: Path,
    kind: str,
    facts: dict[str, Any],
    *,
    fingerprint: str | None = None,
    key: "Ed25519PrivateKey | None" = None,
) -> Iterator[Path]:
    """Yield a directory to write into; it becomes `path` when the block ends without an exception.

    `kind` is data, run, repository, onnx or checkpoint. `facts` is written to the manifest as it is
    at the end of the block, so the block may fill it in. `fingerprint` identifies what the artifact
    is made from, see `current_facts`; `key` signs the artifact. An artifact of the same kind at
    `path` is replaced.
    ArtifactError if anything else is at `path`, or if another process is writing it.
    """
    path = path.resolve()  # the target of a link is replaced, not the link
    check_replaceable(path, kind)
    partial = sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.parent):
            if not remove_leftovers(path):
                raise ArtifactError(
                    f"{path} is being written by another process. Wait for it, or choose another "
                    "--out."
                )
            partial.mkdir()
            descriptor = lock(partial)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror}. Choose another --out."
        ) from None
    try:
        with written_errors(path, partial):
            yield partial
            write_manifest(partial, kind, facts, fingerprint)
            if key is not None:
                sign(partial, key)
            replace_directory(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def scratch_beside(path: Path, word: str) -> Iterator[Path]:
    """Yield an empty directory beside `path`, named with `word`, that is removed at the end.

    Such directories of killed processes are removed first. ArtifactError if the folder of `path`
    cannot be written.
    """
    parent = next(each for each in path.absolute().parents if each.is_dir())
    directory = sibling(parent / path.name, word)
    try:
        with exclusive(parent):
            remove_leftovers(parent / path.name, word)
            directory.mkdir(mode=0o700)
            descriptor = lock(directory)
    except OSError as error:
        raise ArtifactError(
            f"{parent} cannot be written: {error.strerror}. Choose another --out."
        ) from None
    try:
        with written_errors(directory, directory):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def current_facts(path: Path, kind: str, fingerprint: str) -> dict[str, Any] | None:
    """Return the facts of the artifact at `path` if it is whole and has this fingerprint."""
    facts = whole_facts(path, kind)
    if facts is None or read_json(path / MANIFEST).get("fingerprint") != fingerprint:
        return None
    return facts


def whole_facts(path: Path, kind: str) -> dict[str, Any] | None:
    """Return the facts of the artifact at `path` if it is whole, else None.

    Directories that killed writers left beside it are removed.
    """
    with suppress(OSError), exclusive(path.resolve().parent):
        remove_leftovers(path.resolve())
    try:
        return read_manifest(path, kind)
    except ArtifactError:
        return None


def _no_manifest(path: Path, kind: str, next_step: str) -> str:
    """Error of a directory without a manifest, also for a folder of runs or of data."""
    inside = sorted(path.glob(f"[!.]*/{MANIFEST}")) if kind in ("data", "run") else []
    if inside:
        return f"{path} is a folder of directories such as {inside[0].parent}. {_EXPECTED[kind]}"
    return f"{path} is incomplete: missing {MANIFEST}. {next_step}"


def read_manifest(path: Path, kind: str, *, check_files: bool = True) -> dict[str, Any]:
    """Check an artifact against its manifest and return the manifest's facts.

    ArtifactError names the first file that is missing or differs; an artifact that is replaced
    during the check is read again. Without `check_files` only the manifest is read, which is
    immediate.
    """
    next_step = _NEXT_STEP[kind].format(path=path)
    if not path.is_dir():
        if path.exists():
            raise ArtifactError(f"{path} is no directory. {_EXPECTED[kind]}")
        raise ArtifactError(f"{path} does not exist. {next_step}")
    try:
        manifest = parse_manifest(path)
    except FileNotFoundError:
        raise ArtifactError(_no_manifest(path, kind, next_step)) from None
    except DAMAGED:
        raise ArtifactError(f"{path}/{MANIFEST} is damaged. {next_step}") from None
    if manifest.kind != kind:
        raise ArtifactError(
            f"{path} is a {manifest.kind} directory, expected a {kind} directory. {_EXPECTED[kind]}"
        )
    if manifest.format != FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest.format!r}, this version reads {FORMAT}. {next_step}"
        )
    if check_files:
        try:
            check_all_files(path, manifest, next_step)
        except ArtifactError:
            if not _is_replaced(path, manifest):
                raise
            return read_manifest(path, kind)
    return manifest.facts


def _is_replaced(path: Path, manifest: Manifest) -> bool:
    """Whether a writer has replaced the artifact since its manifest was read."""
    try:
        return parse_manifest(path) != manifest
    except DAMAGED:
        return False


def check_replaceable(path: Path, kind: str) -> None:
    """ArtifactError if `path` is remote, the working directory, or not an artifact of `kind`."""
    if _REMOTE.match(str(path)):
        raise ArtifactError(
            f"--out {path} is no local directory. Write to one and copy it from there."
        )
    if path.resolve() == Path.cwd():
        raise ArtifactError(
            f"--out {path} is the working directory. Name a directory in it, such as "
            f"--out {kind}/shop."
        )
    if path.is_mount():
        raise ArtifactError(f"{path} is a mount point. Choose a directory inside it.")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        manifest = parse_manifest(path)
        what = f"a {manifest.kind} directory"
    except DAMAGED:
        manifest, what = None, "something that this program did not write"
    if manifest is None or manifest.kind != kind:
        raise ArtifactError(f"{path} is {what}; it is left alone. Choose another --out.")
    if foreign := foreign_files(path, manifest):
        raise ArtifactError(
            f"{path} holds {min(foreign)}, which is no part of it; it is left alone. Move that "
            "away, or choose another --out."
        )


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, *, constants: bool = False) -> dict[str, Any]:
    """Parse a JSON file of an artifact. ArtifactError if it is missing or not a JSON object.

    `constants` allows NaN and infinity.
    """
    try:
        value = parse_json(read_small_text(path), constants=constants)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is damaged: it holds no object of JSON.")
    return value


def replace_directory(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`; an earlier artifact at `path` ends up at `partial` or is gone."""
    if not path.exists():
        partial.rename(path)
    else:
        try:
            _exchange(partial, path)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            _replace_in_two_steps(partial, path)
    sync(path.parent)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories atomically, so that `path` always exists (Linux, renameat2(2))."""
    at_fdcwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without exchange, such as some network file systems."""


def _replace_in_two_steps(partial: Path, path: Path) -> None:
    """Replace by two renames: `path` is missing between them, but never incomplete."""
    old = sibling(path)
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
