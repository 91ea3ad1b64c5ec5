"""Log of Triton: where it goes, and the reason that it gives for a failed start."""

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline.core.errors import ServingError

LogFormat = Literal["default", "ISO8601"]
"""Values of Triton's own option `--log-format`."""
STDERR = "-"
"""Log path that stands for standard error of this process."""

_HARMLESS = ("CudaDriverHelper", "unable to create stream", "NVML")
"""Errors that Triton prints on every machine without a GPU."""
_CAUSES = ("failed to load", "Poll failed", "failed to start", "creating server: Invalid")


class TritonLog:
    """A file that is appended to, standard error, or a temporary file.

    The temporary file, used without a path, is kept only where an error names it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.temporary: Path | None = None
        """File to remove when the server ends."""
        self._start: int | None = 0
        """Size at the start in bytes, None for a stream, which cannot be read again."""

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
        """Return the line that explains a failed start and where to read more.

        The temporary file is kept from here on, because the message names it.
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
    errors = list(_error_messages(log))
    causes = [line for line in errors if any(words in line for words in _CAUSES)]
    cause = (causes or errors or ["the log holds no error"])[0]
    # libprotobuf writes on a line of its own what is wrong with a config.pbtxt
    if "failed to read text proto" in cause and (
        reason := re.search(r"Error parsing text-format \S+ (.*)", log)
    ):
        cause = f"{cause}: {reason[1]}"
    return cause


def _error_messages(log: str) -> Iterator[str]:
    for line in log.splitlines():
        # E1122 01:16:53.194137 6005 model_lifecycle.cc:642] "failed to load ..."
        # 2026-11-22T01:16:53Z E 6005 model_lifecycle.cc:642] "failed to load ..."
        match = re.match(r"(?:E\d{4} \S+|\S+Z E) +\d+ [^]]+\] *(.*)|error: (.*)", line)
        if match and not any(words in line for words in _HARMLESS):
            message = (match[1] or match[2] or "").strip().strip('"')
            # Triton escapes the line ends of a Python traceback, which it puts last
            yield message.split(r"\n\nAt:")[0].replace(r"\n", " ").strip()
