"""Runs one command and says what it cost: PARENT CORES STDOUT COMMAND...

A process of its own because Linux counts the memory of whoever starts a program as the program's:
its peak begins at that of the starter, and this one has little. The standard library alone.
"""

import json
import os
import sys
import time

from benchmarks.turns import end_with


def main() -> None:
    """Print a line of JSON: seconds, cpu_seconds, peak_bytes and status, negative for a signal.

    What the command prints goes into the file STDOUT; stderr is this process's own. It is killed
    when this process ends before it.
    """
    end_with(int(sys.argv[1]))
    cores = [int(core) for core in sys.argv[2].split(",") if core]
    stdout, command = sys.argv[3], sys.argv[4:]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    own = os.getpid()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            end_with(own)
            os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.execvp(command[0], command)  # noqa: S606
        finally:
            os._exit(127)
    _, status, used = os.wait4(child, 0)
    said = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "status": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(said), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
