"""What a measured process does: says that it is ready, works when it is its turn, tells its cost.

The other side of `processes.py`. The standard library alone: the original's program, in an
environment of its own, reads this file too. A message is a line of JSON. The parent sends the task
first; then each turn is one message to and one from the process, `None` standing for the end.
"""

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO


class Channel:
    """Messages to and from the parent; what libraries print goes to stderr."""

    def __init__(self, reader: TextIO, writer: TextIO) -> None:
        self._reader = reader
        self._writer = writer

    def receive(self) -> dict[str, Any] | None:
        """The next message, None where there will be no more."""
        line = self._reader.readline()
        message = json.loads(line) if line else None
        return message if isinstance(message, dict) else None

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        self._writer.write(json.dumps(message) + "\n")
        self._writer.flush()


def open_channel() -> tuple[Channel, dict[str, Any]]:
    """The channel and the task; from here on this process ends with its parent.

    Call it before anything else is imported: threads that others start have this process's core.
    """
    writer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    channel = Channel(sys.stdin, writer)
    task = channel.receive()
    if task is None:
        sys.exit(1)
    end_with(task["parent"])
    if task.get("core") is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {task["core"]})
    return channel, task


def end_with(parent: int) -> None:
    """Be killed when the parent ends, however it does (Linux, prctl(2))."""
    set_death_signal = 1
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


class Memory:
    """Highest resident memory from now on, beyond what is resident now."""

    def __init__(self) -> None:
        self.begin_bytes = _status("VmRSS")
        """Resident memory at the start: what was imported."""
        # where it is not Linux, or not allowed, imports may have needed more for a moment
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read(self) -> dict[str, int]:
        """Bytes: resident at the start, and the peak beyond it."""
        return {
            "start_bytes": self.begin_bytes,
            "peak_bytes": max(0, _status("VmHWM") - self.begin_bytes),
        }


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; the peak that the system knows where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")]
    return found[0] if found else 0


class Turns:
    """Counts steps, and stops between turns until the parent gives the next one.

    A callback of a training loop calls `step_ended` after each step. The time of a turn begins
    when it is given and ends with its last step, so reading batches is part of it.
    """

    def __init__(self, channel: Channel, memory: Memory, warm_up: int) -> None:
        self._channel = channel
        self._memory = memory
        self._left = warm_up
        self._ready = False
        self._clear()

    def _clear(self) -> None:
        self._steps = self._sessions = self._interactions = 0
        self._seconds, self._cpu_seconds = time.perf_counter(), time.process_time()

    def count(self, sessions: int, interactions: int) -> None:
        """Take note of the work of a step."""
        self._sessions += sessions
        self._interactions += interactions

    def step_ended(self) -> bool:
        """Whether there is another step to do; waits for the next turn where one is over."""
        self._steps += 1
        self._left -= 1
        if self._left > 0:
            return True
        cost = {
            "seconds": time.perf_counter() - self._seconds,
            "cpu_seconds": time.process_time() - self._cpu_seconds,
            "steps": self._steps,
            "sessions": self._sessions,
            "interactions": self._interactions,
        }
        self._channel.send(cost if self._ready else {"ready": True})
        self._ready = True
        message = self._channel.receive()
        if message is None or "steps" not in message:
            return False
        self._left = message["steps"]
        self._clear()
        return True

    def end(self, facts: dict[str, Any]) -> None:
        """Say what is known when all turns are over."""
        self._channel.send(facts | self._memory.read())
