"""`python -m benchmarks gpu`: tests and speed of the GPU stack of this machine.

The tests marked `gpu`, preprocessing on cuDF beside the CPU, and training. A part that fails is
reported with its error, and the others go on.
"""

import importlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from benchmarks.environment import our_program
from benchmarks.machine import machine, machine_lines
from benchmarks.runner import SIDES, Plan, Runner
from benchmarks.settings import EXACT, Setting, choose
from benchmarks.sides import take_turns
from benchmarks.training import training_task, write_training_data
from pipeline.core.errors import ConfigError, PipelineError

ROOT = Path(__file__).resolve().parents[1]
_TESTS_SECONDS = 1_800
_WARM_UP_STEPS = 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stack:
    """Versions of the GPU stack of this process."""

    torch: str
    cuda: str | None
    """CUDA version that torch is built for."""
    device: str | None
    """Name of the CUDA device."""
    cudf: str | None

    @classmethod
    def detect(cls) -> "Stack":
        """Import torch and cuDF and return their versions; None for what is missing."""
        import torch

        has_device = torch.cuda.is_available()
        return cls(
            torch=torch.__version__,
            cuda=torch.version.cuda,
            device=torch.cuda.get_device_name(0) if has_device else None,
            cudf=_cudf_version(),
        )

    def check(self) -> None:
        """ConfigError without a CUDA device."""
        if self.device is None:
            raise ConfigError(
                f"This machine has no CUDA device (torch {self.torch}) and {self._cudf_name}, "
                "expected an NVIDIA GPU with cuDF. Run `uv sync --extra gpu` on a machine with an "
                "NVIDIA GPU."
            )

    @property
    def _cudf_name(self) -> str:
        return f"cuDF {self.cudf}" if self.cudf else "no cuDF"

    def __str__(self) -> str:
        return f"{self.device}; torch {self.torch}, CUDA {self.cuda}; {self._cudf_name}"


def _cudf_version() -> str | None:
    try:
        return str(importlib.import_module("cudf").__version__)
    except Exception:  # without a driver cuDF raises errors of CUDA and of Numba
        return None


@dataclass(frozen=True)
class Part:
    """Result of one part."""

    name: str
    seconds: float
    """Wall-clock time of the part, preparations included."""
    figures: dict[str, Any] | None
    """None if the part failed."""
    error: str | None


@dataclass(frozen=True)
class Measurement:
    """Parts of the measurement, with their sizes."""

    scratch: Path
    """Empty folder for logs, data and outputs."""
    rows: int = 5_000_000
    """Interactions of the log to preprocess."""
    batch_size: int = 1_024
    """B: sessions of a batch on average."""
    steps: int = 200
    """Training steps that are timed."""

    @cached_property
    def runner(self) -> Runner:
        """Runner of the preprocessing, with its log."""
        return Runner.prepare(Plan(rows=self.rows), self.scratch)

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return the functions of all parts by name."""
        cpu, gpu = "ours", "cudf"
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "tests marked gpu": self.tests,
            f"preprocess {self.rows:,} rows, CPU": partial(self.preprocess, cpu),
            f"preprocess {self.rows:,} rows, cuDF": partial(self.preprocess, gpu),
            "sessions of cuDF and CPU": partial(self.compare, cpu, gpu),
        }
        for setting in choose(("gpt2-clm",), ()):
            parts[f"train {setting.title}"] = partial(self.train, setting)
        return parts

    def tests(self) -> dict[str, Any]:
        """Run the tests marked `gpu`; return the numbers of outcomes."""
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_TESTS_SECONDS,
            check=False,
        )
        *lines, summary = done.stdout.strip().splitlines() or [f"status {done.returncode}"]
        if done.returncode:
            logger.error("%s", done.stdout[-8_000:] + done.stderr[-2_000:])
            failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
            raise PipelineError(f"pytest: {summary.strip('= ')}: {', '.join(failed)}")
        return {outcome: int(n) for n, outcome in re.findall(r"(\d+) (passed|skipped)", summary)}

    def preprocess(self, side: str) -> dict[str, Any]:
        """Preprocess the log by a side of `Runner`; return seconds and peak memory."""
        return self.runner.turn(side)

    def compare(self, one: str, other: str) -> dict[str, Any]:
        """Compare the sessions of two sides; return their number."""
        for side in (one, other):
            if not (self.scratch / side).is_dir():
                raise PipelineError(f"{SIDES[side]} wrote no sessions.")
        comparison = self.runner.compare(one, other)
        if not comparison["same"]:
            raise PipelineError(f"They differ: {comparison['difference']}")
        return {"sessions": comparison["sessions"]}

    def train(self, setting: Setting) -> dict[str, Any]:
        """Train a setting on the GPU; return rate, milliseconds a step and peak GPU memory."""
        task = training_task(setting, EXACT, write_training_data(self.scratch, setting))
        task["train"]["batch_size"] = self.batch_size
        cost = take_turns(
            [(setting.name, our_program(gpu=True), task | {"warm_up": _WARM_UP_STEPS})],
            allocator="default",
            core=None,
            turns=1,
            steps=self.steps,
            logs=self.scratch,
            title=f"training {setting.title}",
        )[setting.name]
        if "peak_gpu_bytes" not in cost:
            raise PipelineError("It trained on the CPU: the process sees no CUDA device.")
        return {
            "sessions_per_second": cost["sessions_per_second"],
            "step_ms": 1_000 * cost["seconds"] / cost["steps"],
            "peak_gpu_bytes": cost["peak_gpu_bytes"],
        }


def run_parts(parts: dict[str, Callable[[], dict[str, Any]]]) -> list[Part]:
    """Run all parts in order; an exception of a part is its error."""
    results = []
    for name, measure in parts.items():
        logger.info("%s", name)
        figures, error = None, None
        begin = time.perf_counter()
        try:
            figures = measure()
        except Exception as exception:
            error = " ".join(str(exception).split()) or type(exception).__name__
            logger.debug("", exc_info=True)
        results.append(Part(name, time.perf_counter() - begin, figures, error))
    return results


def measure_gpu(measurement: Measurement, stack: Stack) -> dict[str, Any]:
    """Run all parts and return machine, stack and results as JSON facts."""
    facts = {"machine": machine(), "stack": asdict(stack), "batch_size": measurement.batch_size}
    return facts | {"parts": [asdict(part) for part in run_parts(measurement.parts())]}


def gpu_text(result: dict[str, Any]) -> str:
    """A table with one line a part."""
    width = max(len(part["name"]) for part in result["parts"]) + 2
    lines = [*machine_lines(result, result["machine"]["cores"]), str(Stack(**result["stack"]))]
    lines.append(f"training in batches of {result['batch_size']:,} sessions\n")
    for part in result["parts"]:
        cells = f"FAILED: {part['error']}" if part["error"] else _cells(part["figures"])
        lines.append(f"{part['name']:<{width}}{cells}")
    return "\n".join(lines)


def _cells(figures: dict[str, Any]) -> str:
    if "work_seconds" in figures:
        return (
            f"{figures['seconds']:.2f} s, {figures['work_seconds']:.2f} s without imports, "
            f"peak {figures['peak_bytes'] / 1e6:,.0f} MB"
        )
    if "step_ms" in figures:
        return (
            f"{figures['sessions_per_second']:,.0f} sessions/s, {figures['step_ms']:.1f} ms a "
            f"step, peak {figures['peak_gpu_bytes'] / 1e6:,.0f} MB of the GPU"
        )
    return ", ".join(f"{value:,} {name}" for name, value in figures.items())
