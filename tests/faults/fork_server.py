"""Process that has imported every stage, and runs each command with a fault in a fork of itself.

It is started with `shim.c` preloaded. A line of JSON on its input is a request, a line on its
output the outcome.
"""

import atexit
import ctypes
import json
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_SHARED_BYTES = 4096


def preload() -> None:
    """Import what the commands import, so that a fork of this process starts at once."""
    import pipeline.cli.main
    import pipeline.evaluation.comparison.files
    import pipeline.evaluation.comparison.run
    import pipeline.evaluation.predict
    import pipeline.evaluation.run
    import pipeline.exporting.onnx_directory
    import pipeline.exporting.run
    import pipeline.in_process
    import pipeline.monitoring.page
    import pipeline.monitoring.run
    import pipeline.preprocessing.run
    import pipeline.preprocessing.synthetic
    import pipeline.preprocessing.workflow
    import pipeline.training.report.run
    import pipeline.training.run
    import pipeline.training.trainer
    import pipeline.training.tune
    import pipeline.updating.run  # noqa: F401


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run a command in a fork; return its exit status, output and the calls that were counted."""
    shared = mmap.mmap(-1, _SHARED_BYTES)
    process = os.fork()
    if process == 0:
        _run_child(request, shared)
    deadline = time.monotonic() + request["timeout_seconds"]
    while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            ended = os.waitpid(process, 0)
            break
        time.sleep(0.005)
    return {
        "status": os.waitstatus_to_exitcode(ended[1]),
        "calls": int.from_bytes(shared[:8], "little"),
        "first_hit": shared[8:520].split(b"\0")[0].decode(),
    }


def _run_child(request: dict[str, Any], shared: mmap.mmap) -> None:
    status = 70
    try:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, stream)
            os.close(file)
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        sys.argv = ["pipeline", *request["command"]]
        _install(request, shared)
        from pipeline.cli.main import main

        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _install(request: dict[str, Any], shared: mmap.mmap) -> None:
    """Install the fault of the request in this process."""
    if "files" in request:
        opened = len(list(Path("/proc/self/fd").iterdir()))
        limit = opened + request["files"]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if "memory_mb" in request:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + request["memory_mb"] * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    library = ctypes.CDLL(None)
    if "clock_seconds" in request:
        library.fault_shift_clock(ctypes.c_long(request["clock_seconds"]))
    if "below" in request:
        library.fault_arm(
            os.fsencode(request["below"]),
            request["kinds"],
            ctypes.c_long(request["first"]),
            ctypes.c_long(request["last"]),
            request["action"],
            ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(shared))),
        )


def main() -> None:
    """Answer requests until the input ends."""
    preload()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
