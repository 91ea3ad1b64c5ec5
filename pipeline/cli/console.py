"""Console output of the command line: results, log lines, warnings, errors and exit codes."""

import errno
import json
import logging
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from pipeline.core.artifact import current_facts, read_manifest
from pipeline.core.errors import InputWarning, PipelineError
from pipeline.core.text import shown, shown_lines


def print_result(facts: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the result of a command on stdout: text, or one JSON object.

    Of several processes that torchrun started, only the first one prints.
    """
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps(facts, allow_nan=False) if as_json else shown_lines(text))


def note(text: str) -> None:
    """Print a line on stderr; control characters in it are escaped."""
    typer.echo(shown_lines(text), err=True)


def is_current(path: Path, kind: str, fingerprint: str, as_json: bool) -> bool:
    """Return whether the artifact at `path` is up to date; if it is, print so."""
    facts = current_facts(path, kind, fingerprint)
    if facts is not None:
        print_current(path, facts, as_json)
    return facts is not None


def print_current(path: Path, facts: dict[str, Any], as_json: bool) -> None:
    """Print that `path` is up to date."""
    print_result(facts, as_json, f"{path} is up to date.")


def check_input(path: Path, kind: str) -> None:
    """Check that `path` holds an artifact of this kind, without reading its files.

    The stage checks the files; this error comes before its imports.
    """
    read_manifest(path, kind, check_files=False)


_EXTRAS = {
    "tritonclient": "serve",
    "pytriton": "serve",
    "grpc": "serve",
    "optuna": "tune",
    "matplotlib": "figures",
    "cryptography": "signing",
}
"""Extra of pyproject.toml by module."""


class _Terminated(BaseException):
    """Raised on SIGTERM: no `except Exception` stops it, and partial artifacts are removed."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _show_warning(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    if issubclass(category, InputWarning):
        note(f"Warning: {message}")
    else:
        _python_showwarning(message, category, *where, **more)


_python_showwarning = warnings.showwarning


class _ShownFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown_lines(super().format(record))


def set_up_logging(verbose: bool) -> None:
    """Print log lines of the package on stderr: INFO and above, all of them with `verbose`."""
    handler = logging.StreamHandler()
    handler.setFormatter(_ShownFormatter("%(message)s"))
    logger = logging.getLogger("pipeline")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def run_app(app: typer.Typer, name: str = "pipeline") -> None:
    """Run the command of `sys.argv` and exit; `name` is the program in its help.

    Exit codes: 0; 1 for a closed stdout; 2 with one line on stderr for an error of the user; 3
    where `pipeline update` keeps the served model; 130 after Ctrl-C; 143 after SIGTERM.
    """
    # torch's threads would wait for each other in a busy loop, which slows a loaded machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = _show_warning
    # the first process of a container ignores signals that have no handler
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_exit_code(app, name))


def _exit_code(app: typer.Typer, name: str) -> int:
    try:
        code = app(prog_name=name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        note("Stopped.")
        return 130
    except _Terminated:
        note("Stopped.")
        return 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _ONE_LINE as error:
        if not _is_user_error(error):
            raise
        logging.getLogger("pipeline").debug("", exc_info=True)
        note(_error_line(error))
        return 2
    return code if isinstance(code, int) else 0


_ONE_LINE = (
    *(typer.TyperException, PipelineError, OSError, UnicodeError, ImportError),
    *(MemoryError, RuntimeError),
)
"""Types of errors that the user or the machine may have caused, see `_is_user_error`."""
_DETAIL_CHARACTERS = 200
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|can't start new thread",
    re.IGNORECASE,
)


def _is_user_error(error: Exception) -> bool:
    """Whether an error is reported in one line; any other is a bug and keeps its traceback."""
    if isinstance(error, ImportError):
        return _missing_extra(error) is not None
    return not isinstance(error, RuntimeError) or _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, OSError | RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def _missing_extra(error: ImportError) -> str | None:
    """Return the extra that installs the missing module, None for any other module."""
    return _EXTRAS.get((error.name or "").partition(".")[0])


def _error_line(error: Exception) -> str:
    if isinstance(error, ImportError):
        extra = _missing_extra(error)
        return (
            f"Error: {error.name} is not installed, which comes with the extra `{extra}`. "
            f"Install it by `pip install 'pipeline[{extra}]'`."
        )
    if isinstance(error, typer.TyperException):
        message = getattr(error, "format_message", error.__str__)()
        command = getattr(getattr(error, "ctx", None), "command_path", "pipeline")
        if type(error).__name__ == "NoArgsIsHelpError":
            return str(message)
        line = " ".join(message.split()).replace("Value error, ", "")
        return f"Error: {line}{'' if line[-1] in '.?' else '.'} See `{command} --help`."
    cause = _machine_cause(error)
    if cause is None and isinstance(error, PipelineError):
        return shown(f"Error: {error}")
    if isinstance(error, UnicodeError):
        return f"Error: an argument is not text in UTF-8: {error}."
    return shown(f"Error: {_machine_reason(cause or error)}")


_NO_HANDLES = (errno.EMFILE, errno.ENFILE)


def _machine_cause(error: BaseException | None) -> Exception | None:
    """Return the out-of-memory or too-many-open-files error behind an error, None without one.

    Readers of files report either as a damaged file.
    """
    while isinstance(error, Exception):
        no_handles = isinstance(error, OSError) and error.errno in _NO_HANDLES
        if _is_out_of_memory(error) or no_handles:
            return error
        if isinstance(error, PipelineError) and isinstance(error.__cause__, OSError):
            return None  # its message names the file and the reason
        error = error.__cause__ or error.__context__
    return None


def _machine_reason(error: Exception) -> str:
    """Return the reason of an error of the machine: memory, or a file that it cannot access."""
    if _is_out_of_memory(error):
        detail = " ".join(str(error).split())[:_DETAIL_CHARACTERS] or "the system has none left"
        return f"out of memory: {detail}. `pipeline size` estimates the memory of a model."
    if not isinstance(error, OSError):
        return str(error)
    # a full disk, a name that is too long
    reason = " ".join(str(error.strerror or error).split()).removesuffix(".")
    if error.filename:
        return f"{error.filename}: {reason}."
    is_stdout = reason == os.strerror(error.errno or 0)
    return f"Standard output: {reason}." if is_stdout else f"{reason}."
