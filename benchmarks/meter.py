"""Program that runs one command and prints its cost: PARENT CORES STDOUT COMMAND...

It is a separate, small process with only the standard library, because on Linux the peak memory of
a program starts at that of its parent process.
"""

import json
import os
import sys
import time

from benchmarks.turns import end_with


def main() -> None:
    """Print a line of JSON: seconds, cpu_seconds, peak_bytes and status, negative for a signal.

    The command's stdout goes to the file STDOUT, its stderr to that of this process. It is killed
    if this process ends first.
    """
    end_with(int(sys.argv[1]))
    cores = [int(core) for core in sys.argv[2].split(",") if core]
    stdout, command = sys.argv[3], sys.argv[4:]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    own = os.getpid()
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            end_with(own)
            os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.execvp(command[0], command)  # noqa: S606
        finally:
            os._exit(127)
    _, status, used = os.wait4(child, 0)
    cost = {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "status": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(cost), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
