"""The environment of Transformers4Rec: made by uv on demand, used again afterwards."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import Program
from pipeline.core.errors import PipelineError

FOLDER = Path(__file__).with_name("transformers4rec")
"""The original's program and its requirements."""
EXCLUDE_NEWER = "2026-11-20T00:00:00Z"
"""Packages as of this day: what builds an sdist is not pinned otherwise."""
_MARKER = "pipeline-benchmark.txt"
"""In a whole environment: the fingerprint of its requirements."""


def default_environment() -> Path:
    """In the user's cache folder; other requirements are another environment."""
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) if cache else Path.home() / ".cache"
    return folder / "pipeline" / f"transformers4rec-{_fingerprint()[:12]}"


def original_program(environment: Path | None) -> Program:
    """The original's program in its environment, which is made where it is not there.

    PipelineError where that cannot be done, or where something else is at its place.
    """
    place = (environment or default_environment()).expanduser().absolute()
    python = place / "bin" / "python"
    if not _is_whole(place):
        if place.exists() and not place.is_dir():
            raise PipelineError(f"{place} is no directory. Choose another --environment.")
        if place.exists() and any(place.iterdir()) and not (place / _MARKER).is_file():
            raise PipelineError(
                f"{place} is not an environment of this benchmark; it is left alone. Choose "
                "another --environment."
            )
        _make(place)
    folder = FOLDER
    turns = Path(__file__).with_name("turns.py")
    return Program(command=(str(python), str(folder / "program.py"), str(turns)))


def our_program() -> Program:
    """Our side, in this environment."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return Program(
        command=(sys.executable, "-m", "benchmarks.ours"),
        variables=(("PYTHONPATH", path),),
    )


def _fingerprint() -> str:
    requirements = (FOLDER / "requirements.txt").read_bytes()
    return hashlib.sha256(requirements + EXCLUDE_NEWER.encode()).hexdigest()


def _is_whole(place: Path) -> bool:
    try:
        return (place / _MARKER).read_text(encoding="utf-8") == _fingerprint()
    except OSError:
        return False


def _make(place: Path) -> None:
    """Made beside its place and moved there when it is whole."""
    uv = _find_uv()
    print(  # noqa: T201
        f"Transformers4Rec's environment is installed into {place}, once.", file=sys.stderr
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    made = partial / "environment"
    try:
        # from a folder of no project: uv would heed the overrides in the pyproject.toml of ours
        _run([*uv, "venv", "--relocatable", "--python", sys.executable, str(made)], partial)
        _run(
            [
                *(*uv, "pip", "install", "--python", str(made / "bin" / "python")),
                *("--exclude-newer", EXCLUDE_NEWER),
                "--compile-bytecode",
                "--no-deps",  # all are pinned; dask-cuda, which needs a newer pandas, is left out
                *("--requirement", str(FOLDER / "requirements.txt")),
            ],
            partial,
        )
        (made / _MARKER).write_text(_fingerprint(), encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        made.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _find_uv() -> list[str]:
    if found := shutil.which("uv"):
        return [found]
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    raise PipelineError(
        "uv is needed to install Transformers4Rec, and it is neither on PATH nor a module of this "
        "Python. Install it (`pip install uv`), or give --environment with one that is whole."
    )


def _run(command: list[str], folder: Path) -> None:
    """Run uv in a folder; all that it says goes to stderr."""
    status = subprocess.run(command, stdout=sys.stderr, cwd=folder, check=False).returncode
    if status:
        raise PipelineError(
            f"`uv {' '.join(command[-2:])}` ended with status {status}, see above: "
            "Transformers4Rec could not be installed. Check the network, and try again."
        )
