"""`python -m benchmarks preprocess`: the same log through ours, Polars and stock NVTabular.

Each works in a process of its own, one after the other; what they wrote is compared afterwards.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.logs import write_log
from benchmarks.outputs import CATEGORICAL, Output, compare_outputs
from benchmarks.processes import environment, last_line
from pipeline.core.columns import SESSIONS_DIRECTORY
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.data.fitted import category_path

SIDES = ("ours", "polars", "nvtabular")
NEWEST = 20
"""Interactions of a session that are kept."""
SMALL_ROWS = 1_000
"""Of the log that costs nothing but the start of a program."""
POLARS = "polars==2.1.0"

_RECIPE = {
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
_THREAD_LIMITS = ("_NUM_THREADS", "_MAX_THREADS", "_THREAD_LIMIT")
"""How names of variables end that would keep a program from cores that it may use."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    rows: int = 5_000_000
    items: int = 200_000
    seed: int = 0
    turns: int = 1
    sides: tuple[str, ...] = SIDES
    cores: int | None = None
    """None for all that this process may use."""
    polars_python: Path = Path(sys.executable)

    def check(self) -> None:
        """ConfigError for a side or cores that are not there, and for Polars if it is asked for."""
        for side in self.sides:
            if side not in SIDES:
                raise ConfigError(
                    f"There is no side {side!r}, expected some of {', '.join(SIDES)}."
                )
        if not self.sides or len(set(self.sides)) < len(self.sides):
            raise ConfigError(
                f"--sides is {','.join(self.sides)!r}, expected each once of {', '.join(SIDES)}."
            )
        known = _cores()
        if self.cores is not None and known and self.cores > len(known):
            raise ConfigError(f"--cores is {self.cores}, but this process may use {len(known)}.")
        if "polars" in self.sides:
            self._check_polars()

    def _check_polars(self) -> None:
        try:
            command = [str(self.polars_python), "-E", "-c", "import polars"]
            found = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError as error:
            raise ConfigError(
                f"--polars-python {self.polars_python} cannot be run: {error.strerror}. Give a "
                "Python that has Polars."
            ) from None
        if not found:
            raise ConfigError(
                f"{self.polars_python} cannot import polars. Install it there (`uv pip install "
                f"{POLARS}`), name a Python that has it by --polars-python, or leave that side out "
                "by --sides."
            )


def measure_preprocessing(plan: Plan, scratch: Path) -> dict[str, Any]:
    """Seconds, memory and ratios of each side, and whether they wrote the same.

    `scratch` is an empty folder for the log and what is written from it. ConfigError where `plan`
    cannot be, PipelineError where a side fails.
    """
    plan.check()
    used = _cores()[-(plan.cores or 0) :]
    log, small = scratch / "log.parquet", scratch / "small.parquet"
    say(f"writing a log of {plan.rows:,} interactions")
    write_log(log, plan.rows, items=plan.items, seed=plan.seed)
    write_log(small, SMALL_ROWS, items=plan.items, seed=plan.seed)
    # what is still to be written to disk would be written while the first one is timed
    os.sync()
    recipe = scratch / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_RECIPE), encoding="utf-8")
    runner = Runner(plan, scratch, recipe, used)
    for side in plan.sides:
        runner.run(side, small)  # programs and libraries are read from disk once, for all
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in plan.sides}
    versions: dict[str, dict[str, str]] = {}
    for turn in range(plan.turns):
        for side in plan.sides if turn % 2 == 0 else reversed(plan.sides):
            say(f"turn {turn + 1} of {plan.turns}: {side}")
            cost = runner.turn(side, log, small)
            versions[side] = cost.pop("versions", {})
            found[side].append(cost)
    say("comparing what was written")
    first, *others = plan.sides
    outputs = {side: _output(side, scratch / side) for side in plan.sides}
    comparisons = {
        side: {"with": first, **compare_outputs(outputs[first], outputs[side])} for side in others
    }
    costs = {side: _median(turns) | {"turns": turns} for side, turns in found.items()}
    return {
        "rows": plan.rows,
        "items": plan.items,
        "seed": plan.seed,
        "newest": NEWEST,
        "small_rows": SMALL_ROWS,
        "cores": len(used) or os.cpu_count(),
        "log_bytes": log.stat().st_size,
        "versions": {side: found for side, found in versions.items() if found},
        "sides": costs,
        "ratios": {
            side: _ratios(costs["ours"], costs[side])
            for side in plan.sides
            if "ours" in costs and side != "ours"
        },
        "comparisons": comparisons,
        "same": all(found["same"] for found in comparisons.values()) if comparisons else None,
    }


@dataclass(frozen=True)
class Runner:
    """Starts the programs."""

    plan: Plan
    scratch: Path
    recipe: Path
    cores: list[int]

    def turn(self, side: str, log: Path, small: Path) -> dict[str, Any]:
        """One side's cost of the log: `work_seconds` are those without imports.

        Ours does not tell them: the seconds of a small log, `start_seconds`, are taken off. What
        memory that took is `start_peak_bytes`.
        """
        if side != "ours":
            return self.run(side, log)
        start = self.run(side, small)
        cost = self.run(side, log)
        return cost | {
            "start_seconds": start["seconds"],
            "start_peak_bytes": start["peak_bytes"],
            "work_seconds": cost["seconds"] - start["seconds"],
        }

    def run(self, side: str, log: Path) -> dict[str, Any]:
        """One run of a side, into a folder of its name. PipelineError if it fails."""
        out, said, errors = (self.scratch / f"{side}{end}" for end in ("", ".out", ".log"))
        shutil.rmtree(out, ignore_errors=True)
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        command = [
            *(sys.executable, "-m", "benchmarks.meter", str(os.getpid())),
            *(",".join(map(str, self.cores)), str(said)),
            *self._command(side, log, out),
        ]
        with errors.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=_environment() | {"PYTHONPATH": path},
                start_new_session=True,  # so that all of it can be ended at once
                encoding="utf-8",
            )
            try:
                answer, _ = process.communicate()
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        cost: dict[str, Any] = json.loads(answer) if answer else {"status": process.returncode}
        if status := cost.pop("status"):
            sys.stderr.write(errors.read_text(encoding="utf-8", errors="replace")[-8_000:])
            raise PipelineError(f"{side} ended with status {status}: {last_line(errors)}")
        if side != "ours":
            told = json.loads(said.read_text(encoding="utf-8").splitlines()[-1])
            cost |= {"work_seconds": told["seconds"], "versions": told["versions"]}
        return cost

    def _command(self, side: str, log: Path, out: Path) -> list[str]:
        if side == "ours":
            words = ["preprocess", log, "--recipe", self.recipe, "--out", out]
            return [sys.executable, "-m", "pipeline", *map(str, words)]
        if side == "nvtabular":
            program = "benchmarks.preprocess_nvtabular"
            return [sys.executable, "-m", program, str(log), str(out)]
        program = str(Path(__file__).with_name("preprocess_polars.py"))
        # -E: another interpreter has nothing to do with this one's PYTHONPATH
        return [str(self.plan.polars_python), "-E", program, str(log), str(out)]


def _output(side: str, out: Path) -> Output:
    if side == "ours":
        return Output(
            files=tuple(sorted((out / SESSIONS_DIRECTORY / "train").glob("*.parquet"))),
            vocabularies={name: category_path(out, name) for name in CATEGORICAL},
            ticks_per_ms=1_000,
        )
    if side == "polars":
        return Output(
            files=(out / "sessions.parquet",),
            vocabularies={name: out / f"{name}.parquet" for name in CATEGORICAL},
        )
    return Output(
        files=tuple(sorted(out.glob("part_*.parquet"))),
        vocabularies={n: out / "categories" / f"unique.{n}.parquet" for n in CATEGORICAL},
        suffix="-list",
        in_order=False,  # nothing says that they are
    )


def _median(turns: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Ours over theirs: small is good."""
    return {
        name.removesuffix("_bytes"): ours[name] / theirs[name]
        for name in ("seconds", "work_seconds", "cpu_seconds", "peak_bytes")
    }


def _environment() -> dict[str, str]:
    """That of a measured process, on as many threads as it has cores."""
    kept = environment("default")
    return {name: value for name, value in kept.items() if not name.endswith(_THREAD_LIMITS)}


def _cores() -> list[int]:
    """Those that this process may use; empty where they cannot be chosen."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
