"""Programs that preprocess the same log: ours on pandas or cuDF, Polars, and stock NVTabular."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.logs import write_log
from benchmarks.outputs import CATEGORICAL, Output, compare_outputs
from benchmarks.processes import environment, last_line, log_tail, python_path
from pipeline.core.artifact import read_manifest
from pipeline.core.columns import SESSIONS_DIRECTORY
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.data.fitted import category_path

SIDES = {
    "ours": "pipeline",
    "polars": "Polars",
    "nvtabular": "NVTabular, stock",
    "cudf": "pipeline on cuDF",
}
"""Names of the sides in options and in output."""
NEWEST = 20
"""Number of newest interactions of a session that are kept."""
SMALL_ROWS = 1_000
"""Rows of the log that measures only the start of a program."""
POLARS = "polars==2.1.0"

RECIPE = {
    "preprocess": {
        "session": "session_id",
        "item": "item_id",
        "timestamp": {"column": "timestamp", "unit": "ms"},
        "features": [
            {"name": "category", "kind": "categorical", "of": "item"},
            {"name": "event", "kind": "categorical"},
            {"name": "price", "kind": "continuous", "of": "item", "log": True},
        ],
        "max_sequence_length": NEWEST - 1,  # a training row has the target as well
        "min_session_length": 2,
    }
}
"""Recipe of `pipeline preprocess` for the log."""
_THREAD_LIMITS = ("_NUM_THREADS", "_MAX_THREADS", "_THREAD_LIMIT")
"""Suffixes of variables that would keep a program from using its cores."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    rows: int = 5_000_000
    items: int = 200_000
    seed: int = 0
    turns: int = 1
    sides: tuple[str, ...] = ("ours", "polars", "nvtabular")
    num_cores: int | None = None
    """Number of cores, None for all that this process may use."""
    polars_python: Path = Path(sys.executable)

    def check(self) -> None:
        """ConfigError for unknown sides, for too many cores, and for a Python without Polars."""
        expected = ", ".join(SIDES)
        for side in self.sides:
            if side not in SIDES:
                raise ConfigError(f"There is no side {side!r}, expected some of {expected}.")
        if not self.sides or len(set(self.sides)) < len(self.sides):
            sides = ",".join(self.sides)
            raise ConfigError(f"--sides is {sides!r}, expected each once of {expected}.")
        cores = usable_cores()
        if self.num_cores is not None and cores and self.num_cores > len(cores):
            raise ConfigError(
                f"--cores is {self.num_cores}, but this process may use {len(cores)}."
            )
        if "polars" in self.sides:
            self._check_polars()

    def _check_polars(self) -> None:
        try:
            command = [str(self.polars_python), "-E", "-c", "import polars"]
            status = subprocess.run(command, capture_output=True, check=False).returncode
        except OSError as error:
            raise ConfigError(
                f"--polars-python {self.polars_python} cannot be run: {error.strerror}. Name a "
                "Python that has Polars."
            ) from None
        if status:
            raise ConfigError(
                f"{self.polars_python} cannot import polars. Install it there (`uv pip install "
                f"{POLARS}`), name a Python that has it by --polars-python, or leave that side out "
                "by --sides."
            )


@dataclass(frozen=True)
class Runner:
    """Starter of the programs, which all read the same logs."""

    plan: Plan
    scratch: Path
    """Folder of the outputs, one named for each side."""
    cores: list[int]
    """Cores of the programs, empty if the system has no affinity."""

    @classmethod
    def prepare(cls, plan: Plan, scratch: Path) -> "Runner":
        """Write logs and recipe to `scratch` and return the runner."""
        runner = cls(plan, scratch, usable_cores()[-(plan.num_cores or 0) :])
        logger.info("writing a log of %s interactions", f"{plan.rows:,}")
        write_log(runner.log, plan.rows, items=plan.items, seed=plan.seed)
        write_log(runner.small, SMALL_ROWS, items=plan.items, seed=plan.seed)
        os.sync()  # otherwise the system would write to disk while the first program is timed
        runner.recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
        return runner

    @property
    def log(self) -> Path:
        """Log that is measured."""
        return self.scratch / "log.parquet"

    @property
    def small(self) -> Path:
        """Log of `SMALL_ROWS` rows."""
        return self.scratch / "small.parquet"

    @property
    def recipe(self) -> Path:
        """Recipe of `pipeline preprocess`."""
        return self.scratch / "recipe.yaml"

    def turn(self, side: str) -> dict[str, Any]:
        """Return the cost of a side; `work_seconds` excludes imports.

        `pipeline` does not report them: the seconds of a small log, `start_seconds`, are
        subtracted. `start_peak_bytes` is the memory of that run.
        """
        if side not in ("ours", "cudf"):
            return self.run(side, self.log)
        start = self.run(side, self.small)
        cost = self.run(side, self.log)
        return cost | {
            "start_seconds": start["seconds"],
            "start_peak_bytes": start["peak_bytes"],
            "work_seconds": cost["seconds"] - start["seconds"],
        }

    def run(self, side: str, log: Path) -> dict[str, Any]:
        """Run a side once and return its cost. PipelineError if it fails."""
        out, stdout, errors = (self.scratch / f"{side}{end}" for end in ("", ".out", ".log"))
        shutil.rmtree(out, ignore_errors=True)
        kept = environment("default", gpu=side == "cudf") | {"PYTHONPATH": python_path()}
        command = [
            *(sys.executable, "-m", "benchmarks.meter", str(os.getpid())),
            *(",".join(map(str, self.cores)), str(stdout)),
            *self._command(side, log, out),
        ]
        with errors.open("w", encoding="utf-8") as stream:
            meter = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={k: value for k, value in kept.items() if not k.endswith(_THREAD_LIMITS)},
                encoding="utf-8",
                check=False,
            )
        cost: dict[str, Any] = json.loads(meter.stdout or f'{{"status": {meter.returncode}}}')
        if status := cost.pop("status"):
            log_tail(errors)
            raise PipelineError(f"{side} ended with status {status}: {last_line(errors)}")
        if side in ("polars", "nvtabular"):
            report = json.loads(stdout.read_text(encoding="utf-8").splitlines()[-1])
            cost |= {"work_seconds": report["seconds"], "versions": report["versions"]}
        if side == "cudf" and (engine := read_manifest(out, "data")["engine"]) != "cudf":
            raise PipelineError(
                f"cudf ran on {engine}, expected a CUDA device and cuDF. Run `uv sync --extra gpu` "
                "on a machine with an NVIDIA GPU."
            )
        return cost

    def compare(self, one: str, other: str) -> dict[str, Any]:
        """Return the comparison of the outputs of two sides."""
        return compare_outputs(*(output_of(side, self.scratch / side) for side in (one, other)))

    def _command(self, side: str, log: Path, out: Path) -> list[str]:
        if side == "nvtabular":
            program = "benchmarks.preprocess_nvtabular"
            return [sys.executable, "-m", program, str(log), str(out)]
        if side == "polars":
            program = str(Path(__file__).with_name("preprocess_polars.py"))
            # -E: another interpreter must not use this one's PYTHONPATH
            return [str(self.plan.polars_python), "-E", program, str(log), str(out)]
        words = ["preprocess", log, "--recipe", self.recipe, "--out", out]
        return [sys.executable, "-m", "pipeline", *map(str, words)]


def output_of(side: str, out: Path) -> Output:
    """Return the files that a side wrote to `out`."""
    if side == "polars":
        return Output(
            files=(out / "sessions.parquet",),
            vocabularies={name: out / f"{name}.parquet" for name in CATEGORICAL},
        )
    if side == "nvtabular":
        return Output(
            files=tuple(sorted(out.glob("part_*.parquet"))),
            vocabularies={n: out / "categories" / f"unique.{n}.parquet" for n in CATEGORICAL},
            suffix="-list",
            in_order=False,
        )
    return Output(
        files=tuple(sorted((out / SESSIONS_DIRECTORY / "train").glob("*.parquet"))),
        vocabularies={name: category_path(out, name) for name in CATEGORICAL},
        ticks_per_ms=1_000,
    )


def usable_cores() -> list[int]:
    """Return the cores that this process may use, empty if the system has no affinity."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
