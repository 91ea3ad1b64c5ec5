"""Protocol of a measured process: it reports that it is ready, works in its turns, sends the cost.

The counterpart of `processes.py`. It imports only the standard library, as the original's program
loads this file in its own environment. A message is a line of JSON. The parent sends the task
first; then each turn is one message to the process and one from it.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO


class Channel:
    """Messages to and from the parent; the output of libraries goes to stderr."""

    def __init__(self, reader: TextIO, writer: TextIO) -> None:
        self._reader = reader
        self._writer = writer

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, None at the end."""
        line = self._reader.readline()
        message = json.loads(line) if line else None
        return message if isinstance(message, dict) else None

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        self._writer.write(json.dumps(message) + "\n")
        self._writer.flush()


def open_channel() -> tuple[Channel, dict[str, Any]]:
    """Return the channel and the task, pin the core, and end this process with its parent.

    Call it before other imports, whose threads inherit the core.
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
    """Have the system kill this process when its parent ends (Linux, prctl(2))."""
    set_death_signal = 1
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


class Memory:
    """Peak of resident memory beyond what is resident at construction."""

    def __init__(self) -> None:
        self.begin_bytes = _status("VmRSS")
        """Resident memory at the start, mostly imports."""
        # on other systems than Linux the peak of the imports counts
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read(self) -> dict[str, int]:
        """Return bytes: resident at the start, and the peak beyond it."""
        return {
            "start_bytes": self.begin_bytes,
            "peak_bytes": max(0, _status("VmHWM") - self.begin_bytes),
        }


def _status(name: str) -> int:
    """Return a value of /proc/self/status in bytes, on other systems the peak of getrusage."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")]
    return sizes[0] if sizes else 0


class Turns:
    """Counter of steps that waits between turns for the parent.

    A callback of a training loop calls `step_ended` after each step. The time of a turn begins
    with the message of the parent and ends with its last step, so reading batches is part of it.
    """

    def __init__(
        self,
        channel: Channel,
        memory: Memory,
        warm_up: int,
        synchronize: Callable[[], None] = lambda: None,
    ) -> None:
        """`synchronize` waits until a device has finished its work, before the clock is read."""
        self._channel = channel
        self._memory = memory
        self._left = warm_up
        self._synchronize = synchronize
        self._ready = False
        self._clear()

    def _clear(self) -> None:
        self._steps = self._sessions = self._interactions = 0
        self._seconds, self._cpu_seconds = time.perf_counter(), time.process_time()

    def count(self, sessions: int, interactions: Any) -> None:
        """Add the work of a step; `interactions` may be a tensor on the device."""
        self._sessions += sessions
        self._interactions += interactions

    def step_ended(self) -> bool:
        """Return whether another step follows; at the end of a turn wait for the next one."""
        self._steps += 1
        self._left -= 1
        if self._left > 0:
            return True
        self._synchronize()
        cost = {
            "seconds": time.perf_counter() - self._seconds,
            "cpu_seconds": time.process_time() - self._cpu_seconds,
            "steps": self._steps,
            "sessions": self._sessions,
            "interactions": int(self._interactions),
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
        """Send the last message: facts and memory."""
        self._channel.send(facts | self._memory.read())
