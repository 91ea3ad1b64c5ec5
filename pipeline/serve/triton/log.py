"""Log of Triton: its file, and the reason of a failed start in it."""

import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Literal

from pipeline.core.errors import ServingError

LogFormat = Literal["default", "ISO8601"]
"""Values of Triton's own option `--log-format`."""
STDERR = "-"
"""Log path for standard error of this process."""

_CAUSE = re.compile(
    r"(?:failed to load|Poll failed|failed to start|creating server: Invalid|(?<=^error: )).*",
    re.MULTILINE,
)


class TritonLog:
    """A file that the log is appended to, standard error, or without a path a temporary file.

    The temporary file is kept only if an error names it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.temporary: Path | None = None
        """File to remove when the server ends."""
        self._start: int | None = 0
        """Size at the start in bytes, None for a stream, which cannot be read back."""

    def open(self) -> int:
        """Return the file descriptor for Triton and its models."""
        if self.path is None:
            log, name = tempfile.mkstemp(prefix="triton-", suffix=".log")
            self.temporary = Path(name)
            return log
        try:
            if str(self.path) == STDERR:
                self._start = None
                return os.dup(2)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            log = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise ServingError(f"the log {self.path} cannot be written: {error.strerror}") from None
        status = os.fstat(log)
        self._start = status.st_size if stat.S_ISREG(status.st_mode) else None
        return log

    def failure(self) -> str:
        """Return the reason of a failed start, and the path of the log.

        The temporary file is then kept, as the message names it.
        """
        path, self.temporary = self.path or self.temporary, None
        if self._start is None or path is None:
            return f"see its log {'above' if str(path) == STDERR else f'in {path}'}"
        with path.open("rb") as log:
            log.seek(self._start)
            text = log.read().decode(errors="replace")
        return f"{failure_line(text)} (log: {path})"


def failure_line(log: str) -> str:
    """Return the cause of a failed start in a Triton log, without prefix and traceback."""
    match = _CAUSE.search(log)
    if match is None:
        return "the log holds no error"
    # Triton escapes the line ends of a Python traceback, which it puts last
    cause = match[0].split(r"\n\nAt:")[0].replace(r"\n", " ").strip(' "')
    # libprotobuf writes the error of a config.pbtxt on a line of its own
    reason = re.search(r"Error parsing text-format \S+ (.*)", log)
    return f"{cause}: {reason[1]}" if reason and "failed to read text proto" in cause else cause
