"""Where Triton's log goes, through whom, and what it says of a start that failed."""

import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pipeline.core.errors import ServingError

LogFormat = Literal["text", "json"]
STDERR = "-"
"""As a log's path, this process' standard error."""

# One line, because `-c` keeps the modules beside this file from shadowing the standard library's.
RELAY = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pipeline.serve.triton.log_relay import relay; sys.exit(relay(*sys.argv[2:]))"
)
RELAY_SECONDS = 5  # how long the last records may take to reach the log

# Triton prints these at level E on every machine without a GPU.
HARMLESS = ("CudaDriverHelper", "unable to create stream", "NVML")
TELLING = ("failed to load", "Poll failed", "failed to start", "creating server: Invalid")


class TritonLog:
    """A file, standard error, or a file of its own that stays only if a start fails."""

    def __init__(self, path: Path | None, log_format: LogFormat, server: str) -> None:
        """Nothing is opened before `open`; `server` is the id of the one that writes."""
        self.path = path
        self._format = log_format
        self._server = server
        self._temporary: Path | None = None
        self._start_copy: Path | None = None
        self._read = Path(os.devnull)
        self._start = 0
        self._relay: subprocess.Popen[bytes] | None = None

    @property
    def temporary(self) -> Path | None:
        """What is to go when the server does; None where the log is to stay."""
        return self._temporary

    @property
    def own_file(self) -> Path | None:
        """The file that was made for this server, the log itself or a copy of its beginning."""
        return self._temporary or self._start_copy

    def open(self) -> int:
        """The file descriptor that Triton and its models write to."""
        if self.path is None:
            log, self._temporary = _temporary_file()
            self._read, self._start = self._temporary, 0
            return log
        to_stderr = str(self.path) == STDERR
        try:
            if to_stderr:
                log = os.dup(2)
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                log = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise ServingError(f"the log {self.path} cannot be written: {error.strerror}") from None
        if self._format == "text" and stat.S_ISREG(os.fstat(log).st_mode) and not to_stderr:
            self._read, self._start = self.path, os.fstat(log).st_size
            return log
        # what cannot be read again, or not as Triton's own lines, passes through a process
        copy, self._start_copy = _temporary_file()
        os.close(copy)
        self._read, self._start = self._start_copy, 0
        return self._through_relay(log)

    def keep(self) -> None:
        """Leave the file where it is: a message names it."""
        self._temporary = None

    def close(self) -> None:
        """When the server has ended: all is in the log then, and no process and no copy is left."""
        if self._start_copy is not None:
            self._start_copy.unlink(missing_ok=True)
        self._temporary = self._start_copy = None
        self._end_relay()
        self._relay = None

    def summary(self, *, ended: bool) -> str:
        """The line that says best why a start failed, and where to read more.

        `ended`: the server has, so that no more is to come.
        """
        where = self.path or self._read
        if ended:
            self._end_relay()
        text = ""
        with suppress(FileNotFoundError), self._read.open("rb") as log:
            log.seek(self._start)
            text = log.read().decode(errors="replace")
        return f"{telling_line(text)} (log: {'above' if str(where) == STDERR else where})"

    def _through_relay(self, log: int) -> int:
        reader, writer = os.pipe()
        try:
            self._relay = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-c", RELAY, str(Path(__file__).parents[3])),
                    *(self._format, str(self._read), self._server),
                ],
                stdin=reader,
                stdout=log,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
            os.close(log)
        return writer

    def _end_relay(self) -> None:
        """Wait until all is in the log; only processes that outlived Triton hold it up."""
        if self._relay is None:
            return
        try:
            self._relay.wait(RELAY_SECONDS)
        except subprocess.TimeoutExpired:
            self._relay.kill()
            self._relay.wait()


def _temporary_file() -> tuple[int, Path]:
    handle, name = tempfile.mkstemp(prefix="triton-", suffix=".log")
    return handle, Path(name)


def telling_line(log: str) -> str:
    """The line of a Triton log that says best why a start failed, without prefix and traceback."""
    errors = list(_error_lines(log))
    telling = [line for line in errors if any(words in line for words in TELLING)]
    chosen = (telling or errors or ["the log holds no error"])[0]
    # libprotobuf says on a line of its own what is wrong with a config.pbtxt.
    if "failed to read text proto" in chosen and (
        reason := re.search(r"Error parsing text-format \S+ (.*)", log)
    ):
        chosen = f"{chosen}: {reason[1]}"
    return chosen


def _error_lines(log: str) -> Iterator[str]:
    for line in log.splitlines():
        # E1122 01:16:53.194137 6005 model_lifecycle.cc:642] "failed to load ..."
        match = re.match(r"E\d{4} \S+ +\d+ [^]]+\] *(.*)|error: (.*)", line)
        if match and not any(words in line for words in HARMLESS):
            message = (match[1] or match[2] or "").strip().strip('"')
            # Triton escapes the line ends of a Python traceback, which it puts last.
            yield message.split(r"\n\nAt:")[0].replace(r"\n", " ").strip()
