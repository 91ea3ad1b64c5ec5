"""Environment of Transformers4Rec, which uv creates at the first use."""

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import Program, python_path
from pipeline.core.errors import PipelineError

FOLDER = Path(__file__).with_name("transformers4rec")
"""The original's program and its requirements."""
EXCLUDE_NEWER = "2026-11-20T00:00:00Z"
"""Latest date of packages, which also pins the build dependencies of sdists."""
_MARKER = "pipeline-benchmark.txt"
"""File of a complete environment with the fingerprint of its requirements."""

logger = logging.getLogger(__name__)


def default_environment() -> Path:
    """Return the path of the environment in the user's cache, one for each set of requirements."""
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) if cache else Path.home() / ".cache"
    return folder / "pipeline" / f"transformers4rec-{_fingerprint()[:12]}"


def original_program(environment: Path | None) -> Program:
    """Return the original's program in its environment, which is created if it is missing.

    PipelineError if the installation fails or if the path holds something else.
    """
    path = (environment or default_environment()).expanduser().absolute()
    python = path / "bin" / "python"
    if not _is_complete(path):
        if path.exists() and not path.is_dir():
            raise PipelineError(f"{path} is no directory. Choose another --environment.")
        if path.exists() and any(path.iterdir()) and not (path / _MARKER).is_file():
            raise PipelineError(
                f"{path} is not an environment of this benchmark; it is left alone. Choose "
                "another --environment."
            )
        _create(path)
    turns = Path(__file__).with_name("turns.py")
    return Program(command=(str(python), str(FOLDER / "program.py"), str(turns)))


def our_program(*, gpu: bool = False) -> Program:
    """Return the program of our side, in the environment of this process."""
    command = (sys.executable, "-m", "benchmarks.ours")
    return Program(command=command, variables=(("PYTHONPATH", python_path()),), gpu=gpu)


def _fingerprint() -> str:
    requirements = (FOLDER / "requirements.txt").read_bytes()
    return hashlib.sha256(requirements + EXCLUDE_NEWER.encode()).hexdigest()


def _is_complete(path: Path) -> bool:
    try:
        return (path / _MARKER).read_text(encoding="utf-8") == _fingerprint()
    except OSError:
        return False


def _create(path: Path) -> None:
    """Install the environment beside its path and move it there when it is complete."""
    uv = _find_uv()
    logger.info("Transformers4Rec's environment is installed into %s, once.", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    created = partial / "environment"
    try:
        # outside of this project, as uv would apply the overrides of its pyproject.toml
        _run([*uv, "venv", "--relocatable", "--python", sys.executable, str(created)], partial)
        _run(
            [
                *(*uv, "pip", "install", "--python", str(created / "bin" / "python")),
                *("--exclude-newer", EXCLUDE_NEWER),
                "--compile-bytecode",
                "--no-deps",  # all are pinned; dask-cuda, which needs a newer pandas, is left out
                *("--requirement", str(FOLDER / "requirements.txt")),
            ],
            partial,
        )
        (created / _MARKER).write_text(_fingerprint(), encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        created.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _find_uv() -> list[str]:
    if executable := shutil.which("uv"):
        return [executable]
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    raise PipelineError(
        "uv is needed to install Transformers4Rec, and it is neither on PATH nor a module of this "
        "Python. Install it (`pip install uv`), or name a complete one by --environment."
    )


def _run(command: list[str], folder: Path) -> None:
    """Run uv in a folder, its output on stderr."""
    status = subprocess.run(command, stdout=sys.stderr, cwd=folder, check=False).returncode
    if status:
        raise PipelineError(
            f"`uv {' '.join(command[-2:])}` ended with status {status}, see above: "
            "Transformers4Rec could not be installed. Check the network, and try again."
        )
