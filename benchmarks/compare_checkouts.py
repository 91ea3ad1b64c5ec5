"""Compare the outputs of two checkouts of this project for the same inputs, byte for byte.

    python -m benchmarks.compare_checkouts BEFORE AFTER --data DATA

Each part runs with both checkouts, one process each, one after the other. `--data` holds the real
logs in the folders rsc15-100k, rees46-sample, diginetica, beauty and ml-100k; missing ones are left
out. The top of `checkouts/differences.py` lists allowed differences, the top of
`checkouts/worker.py` has the code that depends on the version.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks.checkouts.cases import Case
from benchmarks.checkouts.differences import Ignored, answer_differences, compare_folders
from benchmarks.checkouts.recipes import random_cases
from benchmarks.checkouts.training import training_cases

_PARTS = ("preprocess", "train", "serve")
_MARK = "PIPELINE_COMPARE_CHECKOUTS"
"""Environment variable of all processes of a comparison, by which remaining ones are detected."""
_END_SECONDS = 10
_SHOWN_KINDS = 15
"""Largest number of file names for which a difference is shown."""
CRASH = "the process ended"
"""Error of cases that a worker did not finish."""


@dataclass(frozen=True)
class Difference:
    """One file or answer of a case that differs."""

    case: str
    what: str
    """Name of the file, "answer" or "outcome"."""
    detail: str
    """Position, and both values."""


@dataclass
class Result:
    """Result of one part."""

    name: str
    compared: int = 0
    """Number of files, answers and cases that both checkouts refuse."""
    refused: int = 0
    """Number of cases that both checkouts refuse, and requests that both servers refuse."""
    differences: list[Difference] = field(default_factory=list)
    seconds: str = ""

    def add(self, case: str, what: str, detail: str | None) -> None:
        """Count one comparison; `detail` is None if it is equal."""
        self.compared += 1
        if detail is not None:
            self.differences.append(Difference(case, what, detail))

    @property
    def text(self) -> str:
        """One line, and the first difference of each kind of file that differs."""
        lines = [
            f"{self.name}: {self.compared:,} compared, {len(self.differences):,} different, "
            f"{self.refused:,} refused by both ({self.seconds})"
        ]
        kinds: dict[str, list[Difference]] = {}
        for difference in self.differences:
            kinds.setdefault(difference.what, []).append(difference)
        for what, some in list(kinds.items())[:_SHOWN_KINDS]:
            lines.append(f"  {what}, {len(some):,} of them: {some[0].case}: {some[0].detail}")
        if len(kinds) > _SHOWN_KINDS:
            lines.append(f"  and other files, {len(kinds) - _SHOWN_KINDS:,} names of them")
        return "\n".join(lines)


@dataclass(frozen=True)
class Worker:
    """Output of the process of one checkout."""

    folder: Path
    errors: dict[str, str | None]
    """Errors by case; a missing case was not reached."""
    seconds: float

    def error(self, name: str) -> str | None:
        """Return the error of a case, None if it succeeded."""
        return self.errors.get(name, CRASH)


def main(
    before: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    after: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    recipes: Annotated[int, typer.Option(help="Random recipes to preprocess by.")] = 200,
    requests: Annotated[int, typer.Option(help="Random requests to each model.")] = 1000,
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of the real logs; without it synthetic ones alone.",
        ),
    ] = None,
    only: Annotated[str, typer.Option(help="Parts to compare.")] = ",".join(_PARTS),
    seed: Annotated[int, typer.Option(help="Same seed, same inputs.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Train rsc15 as its recipe says, not for 2 epochs.")
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Files of a case to leave out, such as data/report.html. Repeatable.",
        ),
    ] = None,
    ignore_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Key of JSON to leave out, at any depth. Repeatable."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write inputs, outputs and logs to this new folder and keep them."
        ),
    ] = None,
) -> None:
    """Compare preprocessing, training and serving of the checkouts BEFORE and AFTER."""
    parts = only.split(",")
    if unknown := set(parts) - set(_PARTS):
        raise typer.BadParameter(f"--only {min(unknown)!r}: expected {', '.join(_PARTS)}.")
    checkouts = before.resolve(), after.resolve()
    data = None if data is None else data.resolve()
    ignored = Ignored(tuple(ignore or ()), tuple(ignore_key or ()))
    results = []
    with _scratch(keep) as scratch:
        if "preprocess" in parts:
            cases = preprocessing_cases(scratch, data, recipes, seed)
            results += compare(scratch, ("preprocess",), checkouts, cases, ignored)
        if later := tuple(part for part in _PARTS[1:] if part in parts):
            folder = scratch / "training"
            folder.mkdir()
            cases = training_cases(folder, data, requests=requests, seed=seed, full=full)
            cases = [replace(case, parts=("train", *later)) for case in cases]
            results += compare(scratch, later, checkouts, cases, ignored)
    different = sum(len(result.differences) for result in results)
    compared = sum(result.compared for result in results)
    typer.echo(f"{compared} compared, {different} different")
    raise typer.Exit(int(different > 0))


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="compare-checkouts-") as folder:
        yield Path(folder).resolve()


def compare(
    scratch: Path,
    parts: tuple[str, ...],
    checkouts: tuple[Path, Path],
    cases: list[Case],
    ignored: Ignored,
) -> list[Result]:
    """Run the cases with both checkouts, compare what they wrote, and print each part."""
    before, after = (
        run_worker(scratch / f"{parts[0]}-{side}", checkout, cases, hash_seed)
        for hash_seed, (side, checkout) in enumerate(
            zip(("before", "after"), checkouts, strict=True)
        )
    )
    results = []
    for part in parts:
        result = Result(part, seconds=f"{before.seconds:.0f} s and {after.seconds:.0f} s")
        for case in cases:
            if part == "serve":
                compare_answers(result, case.name, before, after)
            else:
                compare_outputs(result, case, before, after, ignored)
        results.append(result)
        typer.echo(result.text)
    return results


def compare_outputs(
    result: Result, case: Case, before: Worker, after: Worker, ignored: Ignored
) -> None:
    """Compare the files of a case. If both fail, the messages need not be equal."""
    name = case.name
    error, error_after = before.error(name), after.error(name)
    if error is None and error_after is None:
        files = compare_folders(before.folder / name, after.folder / name, ignored)
        for file, detail in files.items():
            result.add(name, file, detail)
    elif error is not None and error_after is not None and case.may_fail:
        result.refused += 1
        is_crash = CRASH in (error, error_after)
        result.add(name, "outcome", f"BEFORE {error}, AFTER {error_after}" if is_crash else None)
    else:
        result.add(name, "outcome", f"BEFORE {error or 'works'}, AFTER {error_after or 'works'}")


def compare_answers(result: Result, name: str, before: Worker, after: Worker) -> None:
    """Compare the answers to all requests of a case."""
    files = [worker.folder / name / "answers.jsonl" for worker in (before, after)]
    errors = before.error(name), after.error(name)
    if errors != (None, None):
        result.add(name, "outcome", f"BEFORE {errors[0] or 'works'}, AFTER {errors[1] or 'works'}")
        return
    for detail in answer_differences(*files):
        result.add(name, "answer", detail)
    with files[0].open(encoding="utf-8") as lines:
        result.refused += sum(json.loads(line)["status"] != 200 for line in lines)


# --- the process of a checkout --------------------------------------------------------------------


def run_worker(folder: Path, checkout: Path, cases: list[Case], hash_seed: int) -> Worker:
    """Run all cases with one checkout; its output goes to worker.log in `folder`.

    Another `hash_seed` reveals outputs that depend on the order of sets.
    """
    folder.mkdir()
    jobs = {"checkout": str(checkout), "cases": [_job(case, checkout) for case in cases]}
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    mark = f"{os.getpid()}-{folder.name}-{random.randrange(2**32)}"  # noqa: S311
    # equal numbers of threads, on which sums of floats depend
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", _MARK: mark}
    environment |= {"PYTHONHASHSEED": str(hash_seed), "PYTHONDONTWRITEBYTECODE": "1"}
    worker = Path(__file__).with_name("checkouts") / "worker.py"
    begin = time.monotonic()
    with (folder / "worker.log").open("w") as log:
        command = [sys.executable, "-P", str(worker), "jobs.json"]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log)
    seconds = time.monotonic() - begin
    results = _read_results(folder / "results.jsonl")
    if not results:
        raise SystemExit(
            f"The worker of {checkout} did nothing: {(folder / 'worker.log').read_text()[-2000:]}"
        )
    if running := end_processes(mark):
        raise SystemExit(f"{checkout} left processes running: {', '.join(running)}.")
    return Worker(folder, results, seconds)


def _job(case: Case, checkout: Path) -> dict[str, Any]:
    """Return the case for one checkout; a recipe of the checkout itself is in its own format."""
    recipe = Path(case.recipe)
    job = {**case.job(), "recipe": str(checkout / recipe)}
    return {**job, "converted": recipe.is_absolute()}


def _read_results(path: Path) -> dict[str, str | None]:
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["name"]: line["error"] for line in lines}


def end_processes(mark: str) -> list[str]:
    """Kill processes of a worker that still run after a pause; return their command lines."""
    deadline = time.monotonic() + _END_SECONDS
    while (running := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in running:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return list(running.values())


def _marked(mark: str) -> dict[int, str]:
    processes = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and mark.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                processes[int(folder.name)] = command.decode(errors="replace")[:100]
    return processes


# --- cases of preprocessing -----------------------------------------------------------------------


def preprocessing_cases(scratch: Path, data: Path | None, recipes: int, seed: int) -> list[Case]:
    """Return cases of the recipes of configs/ whose logs are in `data`, and random ones."""
    folder = scratch / "recipes"
    folder.mkdir()
    cases = [] if data is None else real_cases(scratch, data)
    for number in range(recipes):
        cases += random_cases(seed, number, folder)
    return cases


def real_cases(scratch: Path, data: Path) -> list[Case]:
    """Return cases of the recipes of configs/ whose logs are in `data`."""
    logs = {
        "rsc15": (["rsc15-100k/train.tsv.gz"], ["rsc15-100k/test.tsv.gz"]),
        "rees46": (["rees46-sample/events.csv.gz"], []),
        "diginetica": (["diginetica/train_sessions.txt.gz"], ["diginetica/test_pairs.txt.gz"]),
        "beauty": (["beauty/sequences.txt.gz"], []),
        "sports": (["sports/sequences.txt.gz"], []),
    }
    cases = []
    for name, (inputs, tests) in logs.items():
        if all((data / path).is_file() for path in (*inputs, *tests)):
            logs_and_tests = [tuple(str(data / path) for path in some) for some in (inputs, tests)]
            cases.append(Case(name, f"configs/{name}.yaml", logs_and_tests[0], logs_and_tests[1]))
    if (data / "ml-100k").is_dir():
        cases.append(
            Case("ml-100k", "configs/ml-100k.yaml", (join_movielens(scratch, data / "ml-100k"),))
        )
    missing = sorted({*logs, "ml-100k"} - {case.name for case in cases})
    if missing:
        typer.echo(f"without logs, left out: {', '.join(missing)}")
    return cases


def join_movielens(scratch: Path, folder: Path) -> str:
    """Join ratings, movies and users to one log, as in docs/reference/public-data.md."""
    tables = [
        pd.read_csv(folder / f"ml-100k.{name}.tsv.gz", sep="\t", dtype=str)
        for name in ("inter", "item", "user")
    ]
    log, items, users = (table.rename(columns=lambda name: name.split(":")[0]) for table in tables)
    log = log.merge(items, on="item_id", how="left").merge(users, on="user_id", how="left")
    path = scratch / "ml-100k.csv"
    log.to_csv(path, index=False)
    return str(path)


if __name__ == "__main__":
    typer.run(main)
