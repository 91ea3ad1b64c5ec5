"""Measured processes: one core, one allocator setting, one active at a time.

A process that waits for its turn is stopped (SIGSTOP), so that its threads, which may poll a queue,
take no CPU time from the others.
"""

import json
import logging
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pipeline.core.errors import ConfigError, PipelineError

Allocator = Literal["default", "kept"]
ALLOCATORS: tuple[Allocator, ...] = ("default", "kept")

_KEPT_HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
"""Settings of glibc: large tensors come from the heap, and the heap is kept."""
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Program:
    """Program of a side."""

    command: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    """Environment variables besides those of `environment`."""
    gpu: bool = False
    """Whether it may use a GPU."""


class Worker:
    """Process with a task."""

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
        """Start the process; `log` receives its stderr, `core` is the only core it runs on."""
        self.name = name
        self.log = log
        with log.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                program.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment(allocator, gpu=program.gpu) | dict(program.variables),
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children
                encoding="utf-8",
            )
        self._send(task | {"parent": os.getpid(), "core": core})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Kill the process if it runs."""
        if self._process.poll() is None:
            self._process.kill()  # works on a stopped process too
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # it left a message unread
                    pipe.close()

    def wait_until_ready(self) -> None:
        """Wait for the end of the warm-up, then stop the process until its first turn."""
        self.receive()
        self._stop()

    def turn(self, steps: int) -> dict[str, Any]:
        """Run a number of steps and return their cost."""
        self._send({"steps": steps})
        self._signal(signal.SIGCONT)
        cost = self.receive()
        self._stop()
        return cost

    def end(self) -> dict[str, Any]:
        """Let the process end and return its last message."""
        self._send({})
        self._signal(signal.SIGCONT)
        facts = self.receive()
        self._process.wait()
        return facts

    def receive(self) -> dict[str, Any]:
        """Return the next message of the process. PipelineError if it ended without one."""
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            log_tail(self.log)
            raise PipelineError(
                f"{self.name} ended with status {self._process.returncode}: {last_line(self.log)}"
            )
        message: dict[str, Any] = json.loads(line)
        return message

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.receive()

    def _stop(self) -> None:
        """Stop the process and wait until it is stopped."""
        self._signal(signal.SIGSTOP)
        # WNOWAIT leaves the exit status for `receive`
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


def run_task(
    name: str,
    program: Program,
    task: dict[str, Any],
    *,
    log: Path,
    allocator: Allocator = "default",
    core: int | None = None,
) -> dict[str, Any]:
    """Run a task with one answer and return the answer."""
    with Worker(name, program, task, allocator=allocator, core=core, log=log) as worker:
        return worker.receive()


def environment(allocator: Allocator, *, gpu: bool = False) -> dict[str, str]:
    """Return the variables of a measured process: one thread, this allocator setting.

    It sees the first GPU with `gpu`, none without.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "_RJEM_MALLOC_"))
        and name not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    kept |= _ONE_THREAD
    kept |= {
        "CUDA_VISIBLE_DEVICES": _first_gpu() if gpu else "",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return kept | (_KEPT_HEAP if allocator == "kept" else {})


def _first_gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def python_path() -> str:
    """Return PYTHONPATH with which another process imports this package."""
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


def choose_core(core: int | None) -> int | None:
    """Return `core` or the last usable core, None if the system has no affinity.

    ConfigError for a core that this process may not use.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = os.sched_getaffinity(0)
    if core is not None and core not in cores:
        usable = ", ".join(map(str, sorted(cores)))
        raise ConfigError(f"--core is {core}, but this process may use {usable}.")
    return max(cores) if core is None else core


def log_tail(log: Path) -> None:
    """Log the end of the stderr of a failed process."""
    logger.error("%s", log.read_text(encoding="utf-8", errors="replace")[-8_000:])


def last_line(log: Path) -> str:
    """Return the last line of a log for an error message."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "its log is empty."
