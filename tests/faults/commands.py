"""Commands of the stages, run in forks of a warm process with a fault installed."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.conftest import ROOT

SHIM = Path(__file__).with_name("shim.c")
KINDS = {
    "open": 1,
    "write": 2,
    "rename": 4,
    "sync": 8,
    "unlink": 16,
    "mkdir": 32,
    "lock": 64,
    "read": 128,
}
"""Kinds of calls by their bit in `shim.c`; open is for writing, read is an open for reading."""
CHANGES = ("open", "write", "rename", "sync", "unlink", "mkdir")
KILL = 0
"""Action that ends the process by SIGKILL, in place of an error number."""
FOREVER = 2**40


@dataclass(frozen=True)
class Fault:
    """What happens to calls on files below a directory."""

    below: Path
    action: int = KILL
    """Error number of the calls that are hit, or `KILL`."""
    kinds: tuple[str, ...] = CHANGES
    first: int = 1
    """Number of the first call that is hit, from 1."""
    last: int = FOREVER

    @classmethod
    def full_disk(cls, below: Path, first: int) -> Self:
        """Disk that is full from a call on; files can be removed and renamed."""
        return cls(below, errno.ENOSPC, ("open", "write", "mkdir"), first)

    @classmethod
    def none(cls, below: Path, kinds: tuple[str, ...] = CHANGES) -> Self:
        """Nothing is hit, and the calls are counted."""
        return cls(below, kinds=kinds, first=FOREVER)

    def request(self) -> dict[str, Any]:
        """Return the fault as `fork_server` takes it."""
        return {
            "below": str(self.below),
            "kinds": sum(KINDS[kind] for kind in self.kinds),
            "first": self.first,
            "last": self.last,
            "action": self.action,
        }


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    """Exit status, negative for the number of a signal."""
    calls: int
    """Number of calls of the kinds of the fault."""
    first_hit: str
    """First call that was hit."""
    stdout: str
    stderr: str

    @property
    def error_line(self) -> str:
        """The last line on stderr. AssertionError for a traceback or an exit status of success."""
        assert "Traceback" not in self.stderr, f"{self.first_hit}\n{self.stderr}"
        assert self.status == 2, (self.status, self.first_hit, self.stderr)
        lines = [line for line in self.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, (self.first_hit, self.stderr)
        return lines[0]


class ForkServer:
    """The warm process; see `fork_server.py`."""

    def __init__(self, scratch: Path) -> None:
        """Compile the shim into `scratch` and start the process."""
        self.scratch = scratch
        library = scratch / "shim.so"
        compiler = shutil.which("cc")
        assert compiler is not None
        options = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SHIM)]
        subprocess.run([compiler, *options, "-ldl", "-lpthread"], check=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(scratch),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "{}\n"

    def run(
        self,
        command: list[str],
        folder: Path,
        fault: Fault | None = None,
        *,
        timeout_seconds: float = 120,
        **limits: int,
    ) -> Outcome:
        """Run a command in `folder`. `limits` are files, memory_mb and clock_seconds."""
        request = {
            "command": command,
            "folder": str(folder),
            "environment": {},
            "stdout": str(self.scratch / "stdout"),
            "stderr": str(self.scratch / "stderr"),
            "timeout_seconds": timeout_seconds,
            **limits,
            **({} if fault is None else fault.request()),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        outcome = json.loads(self.process.stdout.readline())
        texts = {
            name: (self.scratch / name).read_text(errors="replace") for name in ("stdout", "stderr")
        }
        return Outcome(**outcome, **texts)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
