"""`python -m benchmarks sizing`: the coefficients of `pipeline size`, measured on one core.

Training steps run in one process per shape, requests in one Triton per shape; both are measured in
processor time, which other programs on the machine affect less than wall-clock time. Coefficients
come from non-negative least squares with each point weighted by its own size, so that errors are
ratios. Shapes that are held out of the fit measure the error of an estimate.
"""

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.processes import environment, python_path
from pipeline.core.errors import PipelineError
from pipeline.sizing.estimate import QUANTITIES, Shape, predict

ARCHITECTURES = {
    "sasrec": {"architecture": "sasrec", "masking": "clm"},
    "gru": {"architecture": "gru", "masking": "clm"},
    "gpt2": {"architecture": "gpt2", "masking": "clm"},
    "xlnet": {"architecture": "xlnet", "masking": "mlm"},
}
_TRAINING = (
    (1_000, 32, 1, 64, 10), (1_000, 32, 1, 512, 10), (1_000, 128, 2, 128, 20),
    (1_000, 64, 4, 128, 20), (1_000, 64, 2, 32, 50), (20_000, 64, 2, 128, 10),
    (20_000, 128, 1, 32, 20), (100_000, 32, 2, 64, 10), (100_000, 128, 1, 64, 10),
    (200_000, 64, 1, 128, 5), (400_000, 64, 1, 128, 5),
)  # fmt: skip
"""V, D, layers, B and L of the shapes of the fit; other architectures than sasrec have the first
`_FEWER`, as their scores and optimizer cost the same."""
_TRAINING_HELD_OUT = (
    (50_000, 96, 2, 128, 10), (5_000, 48, 3, 64, 20), (150_000, 128, 2, 32, 10),
    (500_000, 64, 1, 64, 5), (1_000_000, 128, 2, 128, 5),
)  # fmt: skip
_FEWER, _FEWER_HELD_OUT = 6, 2
_SERVING = ((1_000, 32), (1_000, 128), (20_000, 64), (100_000, 64), (100_000, 128), (300_000, 64))
"""V and D of sasrec; the other architectures have `_SERVING_OTHERS`."""
_SERVING_OTHERS = ((1_000, 64), (20_000, 128))
_SERVING_HELD_OUT = ((50_000, 96), (200_000, 128), (1_000_000, 128))
_STEP_SECONDS, _FEWEST_STEPS, _MOST_STEPS = 3.0, 3, 40
_REQUEST_SECONDS = 3.0

logger = logging.getLogger(__name__)

Point = dict[str, Any]
"""A shape with its measurements, and whether it is held out of the fit."""


def measure_sizing() -> dict[str, Any]:
    """Measure all shapes and fit the coefficients; return the table that `pipeline size` reads."""
    before = machine()
    return coefficient_table(before, [*_training_points(), *_serving_points()])


def coefficient_table(before: dict[str, Any], points: list[Point]) -> dict[str, Any]:
    """Return the table of coefficients of points that were measured on a machine."""
    tables, errors = {}, {}
    for quantity in QUANTITIES:
        tables[quantity] = fit(quantity, points)
        errors[quantity] = worst_ratios(quantity, points, tables[quantity])
    return {
        "machine": {name: before[name] for name in ("processor", "cores", "python")},
        "commit": _commit(),
        "architectures": list(ARCHITECTURES),
        "coefficients": tables,
        "worst_ratios": errors,
        "points": points,
    }


def fit(quantity: str, points: list[Point]) -> dict[str, float]:
    """Fit the coefficients of the terms of a quantity to the points that are not held out."""
    from scipy.optimize import nnls

    chosen = [p for p in points if quantity in p and not p["held_out"]]
    rows = [QUANTITIES[quantity](Shape(**point["shape"])) for point in chosen]
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    values = np.array([point[quantity] for point in chosen])
    relative = matrix / values[:, np.newaxis]
    # terms differ by many orders of magnitude
    scale = relative.max(axis=0)
    solution, _ = nnls(relative / scale, np.ones(len(values)))
    return {
        name: float(f"{value:.4g}") for name, value in zip(names, solution / scale, strict=True)
    }


def worst_ratios(quantity: str, points: list[Point], table: dict[str, float]) -> dict[str, float]:
    """Return the largest ratio of estimate and measurement of fitted and of held-out points."""
    worst = {"fitted": 1.0, "held_out": 1.0}
    for point in points:
        if quantity in point:
            ratio = predict(quantity, Shape(**point["shape"]), table) / point[quantity]
            kind = "held_out" if point["held_out"] else "fitted"
            worst[kind] = round(max(worst[kind], ratio, 1 / ratio), 2)
    return worst


def _training_points() -> list[Point]:
    points = []
    for name in ARCHITECTURES:
        fitted, held_out = _TRAINING, _TRAINING_HELD_OUT
        if name != "sasrec":
            fitted, held_out = _TRAINING[:_FEWER], _TRAINING_HELD_OUT[:_FEWER_HELD_OUT]
        for sizes in (*fitted, *held_out):
            shape = Shape(architecture=name, **dict(zip(_SHAPE_FIELDS, sizes, strict=True)))
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.sizing", json.dumps(asdict(shape))],
                env=environment("default") | {"PYTHONPATH": python_path()},
                capture_output=True,
                encoding="utf-8",
                check=False,
            )
            if done.returncode:
                raise PipelineError(f"{shape} ended with: {done.stderr[-2000:]}")
            measured = json.loads(done.stdout.splitlines()[-1])
            is_held_out = sizes in held_out
            points.append({"shape": asdict(shape), "held_out": is_held_out, **measured})
            logger.info("%s: %s", shape, measured)
    return points


_SHAPE_FIELDS = ("items", "d_model", "n_layer", "batch_size", "length")


def _serving_points() -> list[Point]:
    points = []
    for name in ARCHITECTURES:
        fitted = _SERVING if name == "sasrec" else _SERVING_OTHERS
        held_out = _SERVING_HELD_OUT if name == "sasrec" else ()
        for items, d_model in (*fitted, *held_out):
            shape = Shape(architecture=name, items=items, d_model=d_model)
            with tempfile.TemporaryDirectory(prefix="pipeline-sizing-") as scratch:
                measured = _serve(shape, Path(scratch))
            is_held_out = (items, d_model) in held_out
            points.append({"shape": asdict(shape), "held_out": is_held_out, **measured})
            logger.info("%s: %s", shape, measured)
    return points


def _serve(shape: Shape, scratch: Path) -> dict[str, float]:
    """Return processor time of a request of one session, and peak memory, with random weights."""
    from benchmarks.shop import write_repository
    from pipeline.serve.load_test import RequestShape, load_test
    from pipeline.serve.run import running_server
    from pipeline.serve.triton.ports import free_ports

    repository = write_repository(
        scratch, architecture=shape.architecture, items=shape.items, d_model=shape.d_model
    )
    with running_server(repository, ports=free_ports()) as server:
        url = f"grpc://{server.grpc_url}"

        def ask(seconds: float) -> int:
            result = load_test(
                url, repository, clients=4, seconds=seconds, shape=RequestShape(1, 5, 10)
            )
            return len(result.latencies_seconds)

        ask(1.0)  # caches and memory
        before = _processor_seconds(server.pid)
        requests = ask(_REQUEST_SECONDS)
        # each client sends one more request, which opens its connection, and load_test one more
        used = _processor_seconds(server.pid) - before
        return {
            "serving_seconds": used / (requests + 4),
            "serving_bytes": _peak_bytes(server.pid),
        }


def _family(pid: int) -> list[int]:
    """Return the process ids of a process and its descendants."""
    from pipeline.serve.triton.supervisor import children

    return [pid, *(p for child, _, _ in children(pid) for p in _family(child))]


def _processor_seconds(pid: int) -> float:
    ticks = 0
    for member in _family(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_bytes(pid: int) -> float:
    """Return the peak memory of a process and its descendants, loading of the model included."""
    kibibytes = 0
    for member in _family(pid):
        text = Path(f"/proc/{member}/status").read_text()
        kibibytes += next(int(line.split()[1]) for line in text.splitlines() if "VmHWM" in line)
    return 1024.0 * kibibytes


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, encoding="utf-8", check=False)  # noqa: S607
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "pipeline")
    return git("rev-parse", "--short", "HEAD") + (", changed" if changed else "")


def sizing_markdown(table: dict[str, Any]) -> str:
    """Return a table for the documentation: the machine, the errors, estimates of some shapes."""
    from pipeline.sizing.estimate import Load, estimate

    machine = table["machine"]
    lines = [
        f"Measured on one core of {machine['processor']}, {machine['cores']} cores, Python "
        f"{machine['python']}, at commit {table['commit']}.",
        "",
        "| | worst ratio, fitted shapes | worst ratio, held-out shapes | held-out shapes |",
        "| --- | --- | --- | --- |",
    ]
    for quantity, ratios in table["worst_ratios"].items():
        count = sum(quantity in point and point["held_out"] for point in table["points"])
        name = quantity.replace("_", " ").replace("bytes", "memory").replace("seconds", "time")
        lines.append(f"| {name} | {ratios['fitted']:.2f} | {ratios['held_out']:.2f} | {count} |")
    lines += [
        "",
        "| items | D | training memory, GiB | step, s | a million sessions, hours | server memory, "
        "GiB | requests/s of a core |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    load = Load(rate=1, sessions=1_000_000, epochs=1, hours=24)
    for items, d_model in ((10_000, 64), (100_000, 64), (100_000, 128), (1_000_000, 128)):
        shape = Shape(architecture="sasrec", items=items, d_model=d_model)
        row = estimate(shape, load, table)
        lines.append(
            f"| {items:,} | {d_model} | {row.training_gib:.1f} | {row.step_seconds:.3g} | "
            f"{row.epoch_hours:.3g} | {row.serving_gib:.1f} | {row.requests_per_core:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def train_steps(shape: Shape) -> dict[str, float]:
    """Return processor time of a training step and peak memory of this process."""
    import torch
    from transformers import TrainerCallback

    from benchmarks.data import write_sessions
    from pipeline.core.allocator import keep_heap
    from pipeline.core.columns import ITEM, SCHEMA_FILE
    from pipeline.data.loader import SessionLoader
    from pipeline.data.schema import Schema
    from pipeline.model.build import build_model
    from pipeline.recipe.model import ModelConfig
    from pipeline.recipe.train import TrainConfig
    from pipeline.training.trainer import Trainer

    keep_heap()
    torch.set_num_threads(1)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
            ends.append(time.process_time())
            enough = len(ends) > _FEWEST_STEPS and ends[-1] - ends[0] > _STEP_SECONDS
            control.should_training_stop = enough or len(ends) > _MOST_STEPS

    longest = int(shape.length)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        parts = {"train": shape.batch_size * 16}
        write_sessions(data, items=shape.items, longest=longest, parts=parts, full=True)
        config = TrainConfig(epochs=1_000, batch_size=shape.batch_size)
        model = build_model(
            Schema.from_json(data / SCHEMA_FILE),
            ModelConfig(
                **ARCHITECTURES[shape.architecture], d_model=shape.d_model, n_head=4,
                n_layer=shape.n_layer, item_vectors="random",
            ),
            longest,
            config,
        )  # fmt: skip
        loader = SessionLoader(
            data, "train", item=ITEM, features=model.training_columns,
            batch_size=parts["train"], shuffle=True,
        )  # fmt: skip
        trainer = Trainer(
            model, config, train_loader=loader, valid_loader=None,
            log_path=data / "log.jsonl", callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return {"training_seconds": float(np.median(np.diff(ends))), "training_bytes": peak}


if __name__ == "__main__":
    print(json.dumps(train_steps(Shape(**json.loads(sys.argv[1])))))  # noqa: T201
