"""The process between the caller and Triton: ends Triton when the caller is gone, and cleans up.

Where it is asked to, it brings a Triton back that a signal ended, or that lost the process of a
model. The kernel's own signal for a parent that is gone (PR_SET_PDEATHSIG) is not enough: it fires
when the *thread* that started the process ends.

What it is told, it is told by signals, all of which one loop takes up, so that none can come
between: SIGTERM and the like to stop, SIGQUIT to stop at once, SIGUSR1 that Triton became ready.
What it tells stands in a pipe, a line each: the first is Triton's process id; `+` before a reason
is that Triton comes back, `-` that it does not.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the one place of POSIX shared memory on Linux
STACK_BYTES = 1 << 30
"""Of each thread of Triton, address space that is taken up as it is used. Triton before 26.05 reads
JSON recursively, 80 bytes a level: 100,000 brackets end it on the usual 8 MiB. Here ten million
get their error."""
ORPHAN_STOP_SECONDS = 15  # how long Triton may take to stop when the caller is gone
RESTART_WINDOW_SECONDS = 600
"""In which Triton is brought back a bounded number of times."""
FIRST_PAUSE_SECONDS = 0.25
"""Before Triton is started again, twice as long each time within the window."""
LONGEST_PAUSE_SECONDS = 30.0
LOOK_SECONDS = 0.25
"""Between two looks at Triton and the processes of its models."""
LOST_LOOKS = 4
"""In so many looks a model's process is found dead before Triton is started anew: one that Triton
itself ends, as it unloads a model, is dead for a moment too."""
PID_FILE = "pid"
"""In the scratch directory: Triton's process id, 0 while there is none."""
READY, AT_ONCE = signal.SIGUSR1, signal.SIGQUIT
_SIGNALS = {
    *(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, READY, AT_ONCE),
}


class Orders:
    """What the supervisor has been told so far."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self.stop = self.at_once = self.is_orphan = self.was_ready = False

    def listen(self, seconds: float) -> None:
        """Wait for a signal, that long at most, and take up all that are there."""
        received = signal.sigtimedwait(_SIGNALS, max(0.0, seconds))
        while received is not None:
            match received.si_signo:
                case signal.SIGCHLD:
                    pass
                case signal.SIGUSR1:
                    self.was_ready = True
                case number:
                    self.stop = True
                    self.at_once |= number == AT_ONCE
            received = signal.sigtimedwait(_SIGNALS, 0)
        if os.getppid() != self._parent:
            self.is_orphan = self.stop = True


def supervise(
    parent_pid: str,
    report: str,
    region_prefix: str,
    scratch: str,
    log: str,
    restarts: str,
    *command: str,
) -> int:
    """Run Triton until it ends, is told to, or the parent is gone; clean up; give its exit code.

    Body of the supervisor process. It has one thread, so preexec_fn is safe here and the
    parent-death signal, which covers its own sudden end, tied to all of it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    orders = Orders(int(parent_pid))
    pid_file = Path(scratch) / PID_FILE
    with os.fdopen(int(report), "wb", buffering=0) as pipe:
        first = True

        def started(pid: int) -> None:
            nonlocal first
            with suppress(OSError):
                pid_file.write_text(str(pid))
            if first:
                pipe.write(b"%d\n" % pid)
                os.set_blocking(pipe.fileno(), False)  # the caller may never read what follows
            first = False

        def tell(kind: str, text: str) -> None:
            now = datetime.now(UTC).strftime("%m%d %H:%M:%S.%f")
            with suppress(OSError):
                sys.stderr.write(f"W{now} {os.getpid()} supervisor.py:1] {text}\n")
                sys.stderr.flush()
            with suppress(OSError):
                pipe.write(f"{kind}{text}\n".encode())

        began = time.time()
        watched = int(restarts) > 0
        code, lost = _run(command, orders, pid_file, started, watched)
        recent: deque[float] = deque()
        # one that was started anew may end by itself where a new export came in between
        while (code < 0 or recent) and orders.was_ready and not orders.stop and int(restarts):
            remove_traces(region_prefix, None, None)
            while recent and recent[0] < time.monotonic() - RESTART_WINDOW_SECONDS:
                recent.popleft()
            if len(recent) >= int(restarts):
                break
            pause = min(FIRST_PAUSE_SECONDS * 2 ** len(recent), LONGEST_PAUSE_SECONDS)
            recent.append(time.monotonic())
            tell(
                "+",
                f"{_reason(code, lost)}. It starts again in {pause:g} s, time"
                f" {len(recent)} of at most {restarts} in {RESTART_WINDOW_SECONDS // 60} minutes.",
            )
            until = time.monotonic() + pause
            while not orders.stop and time.monotonic() < until:
                orders.listen(until - time.monotonic())
            if orders.stop:
                code = 0
                break
            code, lost = _run(command, orders, pid_file, started, watched)
        if not orders.stop:
            again = f" after {len(recent)} restarts in the last minutes" if recent else ""
            tell("-", f"{_reason(code, lost)}{again}")
        _remove_environments(began)
    orders.listen(0)  # for the last time, whether the caller is there
    remove_traces(region_prefix, Path(scratch), Path(log) if log and orders.is_orphan else None)
    if orders.stop and (code >= 0 or code == -signal.SIGTERM):
        return 0  # told to stop, it did: what it thinks of that is in the log
    return 128 - code if code < 0 else code


def _run(
    command: tuple[str, ...],
    orders: Orders,
    pid_file: Path,
    started: Callable[[int], None],
    watched: bool,
) -> tuple[int, bool]:
    """One Triton until it ends; its exit code, or a signal's number below 0.

    If `watched` it is also ended where a model's process has died, which the second value tells:
    Triton 2.51 calls itself ready and answers no request of that model any more, for good.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    supervisor = os.getpid()

    def prepare_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _, most = resource.getrlimit(resource.RLIMIT_STACK)
        size = STACK_BYTES if most == resource.RLIM_INFINITY else min(STACK_BYTES, most)
        resource.setrlimit(resource.RLIMIT_STACK, (size, most))
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != supervisor:  # it was gone before the signal was asked for
            os._exit(1)

    # Its own group: what is left of it can then be killed without this process.
    # Without restored signals: where what takes the log is gone, SIGPIPE would end Triton.
    server = subprocess.Popen(
        command, process_group=0, preexec_fn=prepare_child, restore_signals=False
    )
    started(server.pid)
    told = lost = False
    looks: Counter[int] = Counter()
    deadline = float("inf")
    # WNOWAIT leaves the process to be reaped below: until then its number stays its own.
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, server.pid, look) is None:
        orders.listen(LOOK_SECONDS)
        if watched and orders.was_ready and not orders.stop and not lost:
            looks = Counter({pid: looks[pid] + 1 for pid in dead_instances(server.pid)})
            if lost := any(count >= LOST_LOOKS for count in looks.values()):
                os.kill(server.pid, signal.SIGKILL)
        if orders.stop and not told:
            told = True
            os.kill(server.pid, signal.SIGTERM)  # Popen's own would reap one that just ended
        if orders.is_orphan and deadline == float("inf"):
            deadline = time.monotonic() + ORPHAN_STOP_SECONDS
        if orders.at_once or time.monotonic() > deadline:
            os.kill(server.pid, signal.SIGKILL)
    orders.listen(0)
    os.killpg(server.pid, signal.SIGKILL)  # instances that outlived it
    with suppress(OSError):
        pid_file.write_text("0")
    return server.wait(), lost


def dead_instances(pid: int) -> list[int]:
    """Processes of models that ended without Triton, which has the number `pid`, doing it."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in listed.read_text().split():
                with suppress(OSError):
                    name, _, rest = Path(f"/proc/{child}/stat").read_text().rpartition(")")
                    if "(triton_python_b" in name and rest.split()[0] == "Z":
                        found.append(int(child))
    return found


def _reason(code: int, lost: bool) -> str:
    if lost:
        return "A model's process was gone, and Triton with it"
    return f"Triton was ended by {_name(code)}"


def end_orphans(pid: int, name: str, seconds: float) -> None:
    """Wait for a Triton whose supervisor was killed, and which was told so; then kill the rest.

    `name` stands in the command lines of Triton and its instances, whoever may have the number by
    now. A Triton that was still starting ends at once and leaves instances behind.
    """
    deadline = time.monotonic() + seconds
    while _is_named(Path(f"/proc/{pid}"), name) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in Path("/proc").glob("[0-9]*"):
        if _is_named(process, name):
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)


def _is_named(process: Path, name: str) -> bool:
    try:
        return name.encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def remove_traces(region_prefix: str, scratch: Path | None, log: Path | None) -> None:
    for region in SHARED_MEMORY.glob(f"{region_prefix}_*"):
        region.unlink(missing_ok=True)
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    if log is not None:
        log.unlink(missing_ok=True)


def _name(code: int) -> str:
    if code >= 0:
        return f"itself, code {code}"
    with suppress(ValueError):  # signals of real time have no names
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"


def _remove_environments(began: float) -> None:
    """Remove the empty folders that a Triton leaves in /tmp when it ends before its time.

    Their names do not tell whose they are, so none is touched while another Triton runs.
    """
    for process in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if process.read_text().strip() == "tritonserver":
                return
    for folder in Path("/tmp").glob("python_env_*"):  # noqa: S108  Triton's fixed place
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid() and folder.stat().st_mtime >= began - 1:
                folder.rmdir()  # refuses one that is not empty
