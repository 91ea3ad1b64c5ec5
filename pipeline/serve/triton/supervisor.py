"""Supervisor: process between the launcher and Triton.

It stops Triton when the launcher has ended, restarts a Triton that crashed or lost the process of a
model, and removes the files and shared memory that Triton leaves. The kernel's signal for the end
of a parent (PR_SET_PDEATHSIG) does not suffice: it fires when the *thread* that started the process
ends.

The launcher controls it by signals: SIGTERM stops Triton, SIGUSR1 reports that Triton is ready. It
reports lines on a pipe: first Triton's process id, then `+` with the reason of each restart, and
`-` with the reason why it does not restart.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the one place of POSIX shared memory on Linux
STACK_BYTES = 1 << 30
"""Stack of each thread of Triton, address space that takes memory only as it is used. Triton before
26.05 parses JSON recursively, 80 bytes per level: with the usual 8 MiB, 100,000 brackets crash it;
with this size, ten million cause an error response."""
STOP_SECONDS = 15
"""Time after which a stopping Triton is killed."""
RESTART_WINDOW_SECONDS = 600
"""Period in which the number of restarts is bounded."""
FIRST_PAUSE_SECONDS = 0.25
"""Pause before the first restart of a period, doubled for each further one."""
MAX_PAUSE_SECONDS = 30.0
POLL_SECONDS = 0.25
"""Interval between polls of Triton and the processes of its models."""
DEAD_POLLS = 4
"""Number of consecutive polls with a dead process of a model before Triton restarts: a process that
Triton ends when it unloads a model is dead for a moment too."""
READY = signal.SIGUSR1
_LIBC = ctypes.CDLL(None)
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, READY}


class Job(NamedTuple):
    """Arguments of the supervisor process."""

    parent_pid: int
    report: int
    """File descriptor of the pipe to the launcher."""
    server_id: str
    """Prefix of the server's shared memory."""
    scratch: str
    """Temporary directory of the server."""
    log: str
    """Temporary log, "" for none. The launcher removes it, or the supervisor after its end."""
    restarts: int
    """Maximum number of restarts within `RESTART_WINDOW_SECONDS`."""
    command: list[str]


def main(job: str) -> int:
    """Run Triton by the JSON of a `Job` and return its exit code."""
    return Supervisor(Job(*json.loads(job))).run()


class Supervisor:
    """Keeps one Triton running. Signals are blocked and read in one place, so none is lost."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stopped = self.orphaned = self.was_ready = False
        self.restarts: deque[float] = deque()
        """Times of the restarts within the current period."""

    def run(self) -> int:
        """Run until Triton ends, is stopped, or the launcher has ended; return the exit code.

        A Triton that was killed by a signal has the code 128 + signal, as in a shell.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        code, reason = self._run_triton()
        while self._may_restart(code):
            self._pause(reason)
            code, reason = (0, "") if self.stopped else self._run_triton()
        if not self.stopped:
            count = len(self.restarts)
            self._report(f"-{reason}" + (f" after {count} restarts" if count else ""))
        self._read_signals(0)  # checks whether the launcher has ended
        remove_traces(self.job.server_id, self.job.scratch, self.job.log if self.orphaned else "")
        if self.stopped and (code >= 0 or code == -signal.SIGTERM):
            return 0
        return 128 - code if code < 0 else code

    def _pause(self, reason: str) -> None:
        """Report a restart and wait for its pause, or until the server is stopped."""
        remove_regions(self.job.server_id)
        pause = min(FIRST_PAUSE_SECONDS * 2 ** len(self.restarts), MAX_PAUSE_SECONDS)
        self.restarts.append(time.monotonic())
        self._report(
            f"+{reason}. It starts again in {pause:g} s, time {len(self.restarts)} of at most "
            f"{self.job.restarts} in {RESTART_WINDOW_SECONDS // 60} minutes."
        )
        until = self.restarts[-1] + pause
        while not self.stopped and time.monotonic() < until:
            self._read_signals(until - time.monotonic())

    def _may_restart(self, code: int) -> bool:
        while self.restarts and self.restarts[0] < time.monotonic() - RESTART_WINDOW_SECONDS:
            self.restarts.popleft()
        # a restarted Triton may end with an exit code if a new export replaced its files
        crashed = code < 0 or bool(self.restarts)
        allowed = len(self.restarts) < self.job.restarts
        return crashed and self.was_ready and allowed and not self.stopped

    def _run_triton(self) -> tuple[int, str]:
        """Run one Triton until it ends; return its exit code, negative for a signal, and reason.

        With restarts, it is also killed if the process of a model died: Triton 2.51 then still
        reports itself ready and answers no request for that model.
        """
        # In its own process group, so that remaining processes can be killed. Without restored
        # signals, as SIGPIPE would end Triton when the reader of its log has ended.
        server = subprocess.Popen(
            self.job.command,
            process_group=0,
            preexec_fn=partial(_prepare_child, os.getpid()),
            restore_signals=False,
        )
        if not self.was_ready:  # the first one
            self._write_report(str(server.pid))
            os.set_blocking(self.job.report, False)  # the launcher may never read what follows
        dead_polls: Counter[int] = Counter()
        lost_instance = False
        deadline: float | None = None
        while server.poll() is None:
            self._read_signals(POLL_SECONDS)
            if self.stopped and deadline is None:
                server.terminate()
                deadline = time.monotonic() + STOP_SECONDS
            elif deadline is not None and time.monotonic() > deadline:
                server.kill()
            elif not self.stopped and self.was_ready and self.job.restarts:
                dead = dead_instances(server.pid)
                dead_polls = Counter({pid: dead_polls[pid] + 1 for pid in dead})
                if any(count >= DEAD_POLLS for count in dead_polls.values()):
                    lost_instance = True
                    server.kill()
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # remaining instances
        if lost_instance:
            return server.returncode, "A model's process was gone, and Triton with it"
        return server.returncode, f"Triton was ended by {_cause(server.returncode)}"

    def _read_signals(self, seconds: float) -> None:
        """Wait for a signal, at most `seconds`, and handle all pending ones."""
        received = signal.sigtimedwait(_SIGNALS, max(0.0, seconds))
        while received is not None:
            if received.si_signo == READY:
                self.was_ready = True
            elif received.si_signo != signal.SIGCHLD:
                self.stopped = True
            received = signal.sigtimedwait(_SIGNALS, 0)
        if os.getppid() != self.job.parent_pid:
            self.orphaned = self.stopped = True

    def _report(self, line: str) -> None:
        """Write to the launcher and to Triton's log."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with suppress(OSError):
            sys.stderr.write(f"{now} W {os.getpid()} supervisor.py:1] {line[1:]}\n")
            sys.stderr.flush()
        self._write_report(line)

    def _write_report(self, line: str) -> None:
        with suppress(OSError):
            os.write(self.job.report, f"{line}\n".encode())


def _prepare_child(supervisor: int) -> None:
    """Set up the process of Triton before it starts; safe in a supervisor with one thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _, limit = resource.getrlimit(resource.RLIMIT_STACK)
    size = STACK_BYTES if limit == resource.RLIM_INFINITY else min(STACK_BYTES, limit)
    resource.setrlimit(resource.RLIMIT_STACK, (size, limit))
    pr_set_pdeathsig = 1
    _LIBC.prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != supervisor:  # it ended before the signal was set up
        os._exit(1)


def _cause(code: int) -> str:
    if code >= 0:
        return f"itself, code {code}"
    with suppress(ValueError):  # real-time signals have no names
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"


def children(pid: int) -> Iterator[tuple[int, str, str]]:
    """Yield process id, name and state letter of each child process."""
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in listing.read_text().split():
                with suppress(OSError):
                    head, _, rest = Path(f"/proc/{child}/stat").read_text().rpartition(")")
                    yield int(child), head.partition("(")[2], rest.split()[0]


def dead_instances(pid: int) -> list[int]:
    """Return the ended processes of models of a running Triton with process id `pid`."""
    return [
        child
        for child, name, state in children(pid)
        if name.startswith("triton_python_b") and state == "Z"
    ]


def remove_regions(server_id: str) -> None:
    """Remove the shared memory of a server."""
    for region in SHARED_MEMORY.glob(f"{server_id}_*"):
        region.unlink(missing_ok=True)


def remove_traces(server_id: str, scratch: str | Path | None, log: str | Path | None) -> None:
    """Remove shared memory, temporary directory and temporary log of a server."""
    remove_regions(server_id)
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    if log:
        Path(log).unlink(missing_ok=True)
