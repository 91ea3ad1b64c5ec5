"""Preprocessing of one log: ours on cuDF and on the CPU, cuDF by hand, and stock NVTabular.

Each side runs in a separate process, first on a small log, so that imports and compiled kernels are
ready when the clock starts. On a CPU pandas replaces cuDF.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks.gpu.plan import Plan
from benchmarks.gpu.profile import Figures
from benchmarks.gpu.stack import array_module, frame_module
from benchmarks.logs import write_log
from benchmarks.outputs import CATEGORICAL, COLUMNS, compare_outputs
from benchmarks.runner import NEWEST, RECIPE, SMALL_ROWS, output_of
from pipeline.core.artifact import read_manifest
from pipeline.core.columns import FIRST_ITEM, SESSIONS_DIRECTORY
from pipeline.core.errors import PipelineError

_ITEMS = 200_000
_SHORTEST = 2
_LOG, _SMALL, _RECIPE = "log.parquet", "small.parquet", "recipe.yaml"
OURS, OURS_CPU = "ours", "ours-cpu"


def write_logs(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Write the log that all sides read, a small one, and the recipe."""
    write_log(plan.scratch / _SMALL, SMALL_ROWS, items=_ITEMS)
    (plan.scratch / _RECIPE).write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    partial = plan.scratch / "partial.parquet"
    write_log(partial, plan.rows, items=_ITEMS)
    partial.rename(plan.scratch / _LOG)
    yield "log", {"note": f"{plan.rows:,} interactions"}


def measure_ours(plan: Plan, out_name: str) -> Iterator[tuple[str, Figures]]:
    """Preprocess with this project."""
    from pipeline import preprocess

    expected = "pandas" if out_name == OURS_CPU or plan.device == "cpu" else "cudf"

    def run(log: Path, out: Path) -> str:
        preprocess(plan.scratch / _RECIPE, log, out=out)
        engine = read_manifest(out, "data")["engine"]
        if (engine == "pandas") != (expected == "pandas"):
            raise PipelineError(f"It ran on {engine}, expected {expected}.")
        return str(engine)

    yield out_name, _timed(plan, run, out_name)


def compare_ours(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Compare the sessions of both engines, byte for byte and value for value."""
    gpu, cpu = plan.scratch / OURS, plan.scratch / OURS_CPU
    for path in (gpu, cpu):
        if not path.is_dir():
            raise PipelineError(f"{path.name} wrote no sessions.")
    files = sorted(p.relative_to(cpu) for p in (cpu / SESSIONS_DIRECTORY).rglob("*.parquet"))
    same_bytes = sum(
        (gpu / file).is_file() and (gpu / file).read_bytes() == (cpu / file).read_bytes()
        for file in files
    )
    comparison = compare_outputs(output_of("ours", gpu), output_of("ours", cpu))
    if not comparison["same"]:
        raise PipelineError(f"They differ: {comparison['difference']}")
    yield (
        "same",
        {
            "note": f"{comparison['sessions']:,} sessions have the same values, {same_bytes} of "
            f"{len(files)} files the same bytes"
        },
    )


def measure_by_hand(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Write the same sessions with hand-written cuDF."""
    frames, arrays = frame_module(plan), array_module(plan)

    def run(log: Path, out: Path) -> str:
        out.mkdir()
        sessions = sessions_by_hand(arrays, frames.read_parquet(log))
        sessions.to_parquet(out / "sessions.parquet")
        return f"{len(sessions):,} sessions by {frames.__name__}"

    yield "by-hand", _timed(plan, run, "by-hand")


def sessions_by_hand(arrays: Any, log: Any) -> Any:
    """Data frame of a log -> sessions as rows of lists; cuDF and CuPy, or pandas and NumPy."""
    sizes = log.groupby("session_id").size()
    log = log[log["session_id"].isin(sizes[sizes >= _SHORTEST].index)].reset_index(drop=True)
    missing = log["price"].isna().values
    logarithms = arrays.log1p(log["price"].fillna(0).values)
    priced = logarithms[~missing]
    standard = (logarithms - priced.mean()) / priced.std()
    log["price"] = arrays.where(missing, 0, standard).astype("float32")
    for name in CATEGORICAL:
        counts = log.groupby(name).size().reset_index(name="count")
        counts = counts.sort_values(["count", name], ascending=[False, True])
        counts["index"] = arrays.arange(FIRST_ITEM, FIRST_ITEM + len(counts))
        log = log.merge(counts[[name, "index"]], on=name, how="left").drop(columns=[name])
        log = log.rename(columns={"index": name})
    log = log.sort_values(["session_id", "timestamp"]).groupby("session_id").tail(NEWEST)
    return log.groupby("session_id", sort=True).agg(dict.fromkeys(COLUMNS, list))


def measure_nvtabular(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Preprocess with NVTabular's own operators."""
    from benchmarks import preprocess_nvtabular

    def run(log: Path, out: Path) -> str:
        preprocess_nvtabular.preprocess(str(log), out, frame_module(plan))
        written = sum(pq.read_metadata(file).num_rows for file in out.glob("part_*.parquet"))
        return f"{written:,} sessions"

    yield "nvtabular", _timed(plan, run, "nvtabular")


def _timed(plan: Plan, run: Callable[[Path, Path], str], name: str) -> Figures:
    """Return seconds and rate of `run`, after a small log."""
    log = plan.scratch / _LOG
    if not log.is_file():
        raise PipelineError("There is no log to preprocess.")
    small = plan.scratch / f"{name}-small"
    run(plan.scratch / _SMALL, small)
    shutil.rmtree(small)
    begin = time.perf_counter()
    note = run(log, plan.scratch / name)
    seconds = time.perf_counter() - begin
    return {"work_seconds": seconds, "rows_per_second": plan.rows / seconds, "note": note}
