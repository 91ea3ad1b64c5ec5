"""Processes that are measured: one core, one allocator setting, one at work at a time.

A process that waits for its turn is stopped by the system (SIGSTOP), so that what its threads do
while it waits, such as polling a queue, costs the others nothing.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pipeline.core.errors import ConfigError, PipelineError

Allocator = Literal["default", "kept"]
ALLOCATORS: tuple[Allocator, ...] = ("default", "kept")

_KEPT_HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
"""glibc: large tensors come from the heap, and the heap is not given back."""
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What runs a side: a command, and what the environment has beside that of this process."""

    command: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()


class Worker:
    """A process with a task."""

    def __init__(
        self,
        name: str,
        program: Program,
        task: dict[str, Any],
        *,
        allocator: Allocator,
        core: int | None,
        log: Path,
    ) -> None:
        """Start it; `log` takes its stderr. `core` is the only one it runs on."""
        self.name = name
        self.log = log
        with log.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                program.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment(allocator) | dict(program.variables),
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children
                encoding="utf-8",
            )
        self._send(task | {"parent": os.getpid(), "core": core})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def wait_until_ready(self) -> None:
        """Wait for the warm-up to end, then stop it until its first turn."""
        self.receive()
        self._stop()

    def turn(self, steps: int) -> dict[str, Any]:
        """Let it do so many steps and give what they cost."""
        self._send({"steps": steps})
        self._signal(signal.SIGCONT)
        cost = self.receive()
        self._stop()
        return cost

    def end(self) -> dict[str, Any]:
        """Let it end by itself and give its last word."""
        self._send({})
        self._signal(signal.SIGCONT)
        facts = self.receive()
        self._process.wait()
        return facts

    def receive(self) -> dict[str, Any]:
        """Its next message. PipelineError if it ended without one."""
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            sys.stderr.write(self.log.read_text(encoding="utf-8", errors="replace")[-8_000:])
            raise PipelineError(
                f"{self.name} ended with status {self._process.returncode}: {last_line(self.log)}"
            )
        message: dict[str, Any] = json.loads(line)
        return message

    def kill(self) -> None:
        """End it now, where it has not ended."""
        if self._process.poll() is None:
            self._process.kill()  # works on a stopped process too
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # it ended with a message unread
                    pipe.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.receive()

    def _stop(self) -> None:
        """Stop it, and wait until it is: on a busy machine that takes a moment."""
        self._signal(signal.SIGSTOP)
        # without taking note of an end, which is for the next message to tell
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


@contextmanager
def workers(started: list[Worker]) -> Iterator[list[Worker]]:
    """A list to put processes into; none of them outlives the block."""
    try:
        yield started
    finally:
        for worker in started:
            worker.kill()


def run_task(
    name: str,
    program: Program,
    task: dict[str, Any],
    *,
    log: Path,
    allocator: Allocator = "default",
    core: int | None = None,
) -> dict[str, Any]:
    """Run a task that has one answer, and give it."""
    with Worker(name, program, task, allocator=allocator, core=core, log=log) as worker:
        return worker.receive()


def environment(allocator: Allocator) -> dict[str, str]:
    """Variables of a measured process: one thread, no GPU, and just this allocator setting."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "_RJEM_MALLOC_"))
        and name not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    kept |= _ONE_THREAD
    kept |= {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return kept | (_KEPT_HEAP if allocator == "kept" else {})


def choose_core(core: int | None) -> int | None:
    """That core, or the last that this process may use; None where cores cannot be chosen.

    ConfigError for a core that is not there.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = os.sched_getaffinity(0)
    if core is not None and core not in cores:
        known = ", ".join(map(str, sorted(cores)))
        raise ConfigError(f"--core is {core}, but this process may use {known}.")
    return max(cores) if core is None else core


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing."
