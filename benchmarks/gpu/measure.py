"""Processes of the parts of `python -m benchmarks gpu`, and the table of their figures.

A part runs in a separate process with a time limit; its error, and the rows measured before it, are
part of the result.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import COMPILED, Plan
from benchmarks.machine import machine, machine_lines
from benchmarks.processes import last_line, python_path
from pipeline.core.errors import ConfigError

_FEWEST_SECONDS = 5.0
"""Smallest remaining time in which a part is started."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A part and its time limit."""

    name: str
    limit_seconds: float
    hides_gpu: bool = False
    """Whether its process sees no GPU."""


@dataclass(frozen=True)
class PartResult:
    """Rows of a part."""

    name: str
    seconds: float
    """Wall-clock time of the process, preparations included."""
    rows: dict[str, dict[str, Any]]
    """Figures by row; those of a row that failed are its `error`."""
    error: str | None

    @property
    def failed(self) -> bool:
        """Whether the part, or one of its rows, has an error."""
        return self.error is not None or any("error" in row for row in self.rows.values())


def phases(plan: Plan) -> list[list[Part]]:
    """Return the parts in order; parts of a phase run concurrently, as none of these are timed."""
    training = [Part(f"train {each.title}", 60) for each in plan.training]
    others = [
        Part("preprocess ours", 60),
        Part("preprocess cuDF by hand", 40),
        Part("preprocess ours on the CPU", 60, hides_gpu=True),
        Part("preprocess sessions of both", 40),
        Part("preprocess stock NVTabular", 60),
        Part("evaluate", 60),
        Part("export", 60),
        Part("serve", 90),
    ]
    first = [Part("stack", 60), Part("log", 60), Part("tests marked gpu", 120)]
    important = 3  # of the settings; the others come last
    compiled = [Part(f"train compiled {each.title}", 150) for each in plan.training[:COMPILED]]
    ordered = [*training[:important], *others, *training[important:], *compiled]
    return [first, *([part] for part in ordered)]


def measure_gpu(plan: Plan, names: Sequence[str] = ()) -> dict[str, Any]:
    """Run the parts whose names begin with one of `names`, or all; return JSON facts.

    ConfigError if no part has such a name.
    """
    chosen = [
        [part for part in phase if not names or part.name.startswith(tuple(names))]
        for phase in phases(plan)
    ]
    if not any(chosen):
        every = [part.name.split()[0] for phase in phases(plan) for part in phase]
        expected = ", ".join(dict.fromkeys(every))
        raise ConfigError(f"--parts is {','.join(names)!r}, expected some of {expected}.")
    deadline = time.monotonic() + plan.seconds
    facts = {"machine": machine(), "device": plan.device, "seconds": plan.seconds}
    results: list[PartResult] = []
    for phase in chosen:
        with ThreadPoolExecutor(max(1, len(phase))) as pool:
            results += pool.map(lambda part: run_part(plan, part, deadline), phase)
    return facts | {"parts": [asdict(part) | {"failed": part.failed} for part in results]}


def run_part(plan: Plan, part: Part, deadline: float) -> PartResult:
    """Run a part in a process until its limit or the deadline, a time of `time.monotonic`."""
    begin = time.monotonic()
    left = deadline - begin
    if left < _FEWEST_SECONDS:
        return PartResult(part.name, 0.0, {}, f"not run: {max(0.0, left):.0f} s were left")
    limit = min(part.limit_seconds, left)
    logger.info("%s", part.name)
    stem = "".join(c if c.isalnum() else "-" for c in part.name)
    out, log = plan.scratch / f"{stem}.json", plan.scratch / f"{stem}.log"
    words = [part.name, plan.to_json(), str(out), str(os.getpid())]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.worker", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=_environment(plan, part),
            start_new_session=True,  # so that its own processes end with it
        )
    error = None
    try:
        if process.wait(limit):
            error = f"status {process.returncode}: {last_line(log)}"
    except subprocess.TimeoutExpired:
        error = f"took more than {limit:.0f} s"
    finally:
        _kill_group(process)
    if error is not None:
        logger.error("%s: %s\n%s", part.name, error, log.read_text(errors="replace")[-4_000:])
    rows = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    return PartResult(part.name, time.monotonic() - begin, rows, error)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the remaining processes of a part."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(plan: Plan, part: Part) -> dict[str, str]:
    hidden = part.hides_gpu or plan.device == "cpu"
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return os.environ | {
        "CUDA_VISIBLE_DEVICES": "" if hidden else first,
        "PYTHONPATH": python_path(),
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }


_COLUMNS = (
    ("sessions_per_second", "sessions/s", "{:,.0f}"),
    ("milliseconds", "ms", "{:,.2f}"),
    ("kernels", "kernels", "{:,.0f}"),
    ("host_syncs", "syncs", "{:,.1f}"),
    ("gpu_milliseconds", "GPU ms", "{:,.2f}"),
    ("gpu_busy", "busy", "{:.0%}"),
    ("peak_bytes", "peak GB", "{:,.2f}"),
    ("work_seconds", "seconds", "{:,.2f}"),
)
"""Figure, head of its column, and format."""


def gpu_text(result: dict[str, Any]) -> str:
    """Return a table with one line per row, with errors instead of figures."""
    lines = [*machine_lines(result, result["machine"]["cores"]), f"device: {result['device']}", ""]
    names = [name for part in result["parts"] for name in (part["name"], *part["rows"])]
    width = max(map(len, names)) + 4
    lines.append(" " * width + "".join(f"{head:>11}" for _, head, _ in _COLUMNS))
    for part in result["parts"]:
        error = f"FAILED: {part['error']}" if part["error"] else ""
        lines.append(f"{part['name']:<{width}}{error}".rstrip())
        for name, figures in part["rows"].items():
            cells = f"FAILED: {figures['error']}" if "error" in figures else _cells(figures)
            lines.append(f"  {name:<{width - 2}}{cells}".rstrip())
    lines.append(
        "\nms: of a step, a call or a request. kernels, syncs, GPU ms: of a step, by torch's "
        "profiler;\nbusy: GPU ms over the time of a step that is not observed. seconds: without "
        "imports."
    )
    return "\n".join(lines)


def _cells(figures: dict[str, Any]) -> str:
    cells = []
    for name, _, form in _COLUMNS:
        value = figures.get(name)
        if name == "peak_bytes" and value is not None:
            value /= 1e9
        cells.append(f"{'' if value is None else form.format(value):>11}")
    return "".join(cells) + (f"  {figures['note']}" if "note" in figures else "")


def check_device(device: str) -> None:
    """ConfigError for cuda if torch finds no CUDA device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"This machine has no CUDA device (torch {torch.__version__}), expected an NVIDIA GPU. "
            "Run `uv sync --extra gpu` on a machine with one, or choose --device cpu."
        )


def scratch_plan(folder: Path, device: str, seconds: float, *, tiny: bool) -> Plan:
    """Return the plan of the command line."""
    plan = Plan(scratch=folder, device="cuda" if device == "cuda" else "cpu", seconds=seconds)
    return plan.tiny() if tiny else plan
