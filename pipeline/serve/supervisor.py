"""The process between the caller and Triton: ends Triton when the caller is gone, and cleans up.

The kernel's own signal for this (PR_SET_PDEATHSIG) is not enough: it fires when the *thread* that
started the process ends.
"""

import os
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the one place of POSIX shared memory on Linux
STACK_BYTES = 1 << 30
"""Of each thread of Triton, address space that is taken up as it is used. Triton before 26.05 reads
JSON recursively, 80 bytes a level: 100,000 brackets end it on the usual 8 MiB. Here ten million
get their error."""
ORPHAN_STOP_SECONDS = 15  # how long Triton may take to stop when the caller is gone


def supervise(
    parent_pid: str, report: str, region_prefix: str, scratch: str, log: str, *command: str
) -> int:
    """Run Triton until it ends, is told to, or the parent is gone; clean up; give its exit code.

    Body of the supervisor process. It has one thread, so preexec_fn is safe here and the
    parent-death signal, which covers its own sudden end, tied to all of it.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    signals = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

    def prepare_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        _, most = resource.getrlimit(resource.RLIMIT_STACK)
        size = STACK_BYTES if most == resource.RLIM_INFINITY else min(STACK_BYTES, most)
        resource.setrlimit(resource.RLIMIT_STACK, (size, most))
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)

    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    began = time.time()
    # Its own group: what is left of it can then be killed without this process.
    server = subprocess.Popen(command, process_group=0, preexec_fn=prepare_child)
    with os.fdopen(int(report), "wb") as pipe:
        pipe.write(b"%d\n" % server.pid)
    stopping = False
    deadline = float("inf")
    # WNOWAIT leaves the process to be reaped below: until then its number stays its own.
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, server.pid, look) is None:
        received = signal.sigtimedwait(signals, 0.5)
        is_orphan = os.getppid() != int(parent_pid)
        told = received is not None and received.si_signo != signal.SIGCHLD
        if (told or is_orphan) and not stopping:
            stopping = True
            server.send_signal(signal.SIGTERM)
        if is_orphan and deadline == float("inf"):
            deadline = time.monotonic() + ORPHAN_STOP_SECONDS
        if time.monotonic() > deadline:
            server.kill()
    os.killpg(server.pid, signal.SIGKILL)  # instances that outlived it
    code = server.wait()
    _remove_environments(began)
    is_orphan = os.getppid() != int(parent_pid)
    remove_traces(region_prefix, Path(scratch), Path(log) if log and is_orphan else None)
    if code < 0:
        return 128 - code
    return 0 if stopping else code  # told to stop, it did: what it thinks of that is in the log


def remove_traces(region_prefix: str, scratch: Path | None, log: Path | None) -> None:
    for region in SHARED_MEMORY.glob(f"{region_prefix}_*"):
        region.unlink(missing_ok=True)
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    if log is not None:
        log.unlink(missing_ok=True)


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
