"""Python files of the user, named on the command line and executed."""

import runpy
import traceback
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError


def check_python_file(option: str, file: Path) -> None:
    """ConfigError unless the file of a command-line option exists and ends in `.py`."""
    if not file.is_file():
        raise ConfigError(f"{option} {file} does not exist. Expected a Python file.")
    if file.suffix != ".py":
        raise ConfigError(f"{option} {file} is not a Python file: its name does not end in .py.")


def run_file(file: Path) -> dict[str, Any]:
    """Global names that a Python file defines. ConfigError if it fails."""
    try:
        # runs the source, never bytecode of an earlier version
        return runpy.run_path(str(file), run_name="pipeline_operators")
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{file} failed{describe_error(file, error)}") from error


def describe_error(file: Path | None, error: BaseException) -> str:
    """The error and, if it was raised in the file, its line."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    cause = error.__cause__
    if not lines and cause is not None:
        return describe_error(file, cause)
    line = f" in line {lines[-1]}" if lines else ""
    return f"{line}: {type(error).__name__}: {' '.join(str(error).split())}"
