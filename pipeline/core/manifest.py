"""Manifest of an artifact: its kind, its facts, and size and SHA-256 of every file."""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline import __version__
from pipeline.core.errors import ArtifactError
from pipeline.core.files import hash_file, read_small_text, sync
from pipeline.core.json_text import parse_json

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""Signature of the manifest, see `pipeline.core.signature`."""
WRITTEN_BY = f"pipeline {__version__}"
FORMAT = 1
KINDS = ("data", "run", "repository", "onnx", "checkpoint")
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError)
"""Errors that `parse_manifest` raises."""
_DIGEST = "sha256"
"""Key of the digest of all other keys, which detects a flipped bit in the manifest."""


class Manifest(NamedTuple):
    """Content of a manifest."""

    kind: str
    format: object
    files: dict[str, tuple[int, str]]
    """Size in bytes and SHA-256 by name."""
    facts: dict[str, Any]


def parse_manifest(path: Path) -> Manifest:
    """Read the manifest of an artifact. One of `DAMAGED` if it is missing or invalid."""
    manifest = parse_json(read_small_text(path / MANIFEST))
    digest = manifest.pop(_DIGEST, None)  # an earlier version wrote none
    if digest is not None and manifest["format"] == FORMAT and digest != digest_of(manifest):
        raise ValueError
    files = {name: (e["bytes"], e["sha256"]) for name, e in manifest["files"].items()}
    # kind and names are part of error messages, which are one line
    if manifest["kind"] not in KINDS or not files or not all(map(_is_inside, files)):
        raise ValueError
    return Manifest(manifest["kind"], manifest.get("format"), files, dict(manifest["facts"]))


def _is_inside(name: str) -> bool:
    """Whether a name refers to a file below the artifact."""
    path = PurePosixPath(name)
    return name.isprintable() and not path.is_absolute() and ".." not in path.parts


def check_files(path: Path, manifest: Manifest, next_step: str) -> None:
    """ArtifactError for the first file that is missing, a link or changed."""
    real = path.resolve()
    for name, (num_bytes, digest) in manifest.files.items():
        file = path / name
        if file.is_symlink() or file.resolve() != real / name:
            raise ArtifactError(
                f"{path}: {name} is a link, and links in artifacts are not followed. {next_step}"
            )
        try:
            if not file.is_file():
                raise FileNotFoundError
            is_same = file.stat().st_size == num_bytes and hash_file(file) == digest
        except FileNotFoundError:
            raise ArtifactError(f"{path} is incomplete: missing {name}. {next_step}") from None
        if not is_same:
            raise ArtifactError(f"{path} is damaged: {name} is not what was written. {next_step}")


def foreign_files(path: Path, manifest: Manifest) -> set[str]:
    """Return the names of files and links below `path` that are not part of its artifact.

    Bytecode that Python writes beside the code of a repository is left out.
    """
    entries = (p for p in path.rglob("*") if p.is_symlink() or not p.is_dir())
    names = [entry.relative_to(path) for entry in entries]
    own = {MANIFEST, SIGNATURE, *manifest.files}
    return {n.as_posix() for n in names if "__pycache__" not in n.parts[:-1]} - own


def write_manifest(
    directory: Path, kind: str, facts: dict[str, Any], fingerprint: str | None
) -> None:
    """Sync all files below `directory` to the disk, then write their manifest."""
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        sync(file)
        # some libraries create files that only their owner may read
        file.chmod(file.stat().st_mode | directory.stat().st_mode & 0o444)
        name = file.relative_to(directory).as_posix()
        files[name] = {"bytes": file.stat().st_size, "sha256": hash_file(file)}
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "written_by": WRITTEN_BY,
        "fingerprint": fingerprint,
        "facts": facts,
        "files": files,
    }
    # parsed again: a reader computes the digest of the facts as JSON returns them
    digest = digest_of(json.loads(json.dumps(manifest, allow_nan=False)))
    text = json.dumps({**manifest, _DIGEST: digest}, indent=2, allow_nan=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    sync(directory / MANIFEST)


def digest_of(values: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON values, independent of key order and whitespace."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
