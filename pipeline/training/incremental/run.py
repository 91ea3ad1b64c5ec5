"""`pipeline train --windows`: train on one span of time after another, each first a test.

The protocol of Moreira et al., "Transformers4Rec: Bridging the Gap between NLP and Sequential /
Session-Based Recommendation" (RecSys 2021): with the weights of windows 1 to t, evaluate on window
t+1, then train on it. What has not occurred up to window t is not there yet: values get their
indices in the order of the windows, so that a catalogue grows at its end, and until then a value
counts as unknown. A window is an ordinary training whose model begins from the one before.
"""

import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.allocator import keep_heap
from pipeline.core.artifact import new_artifact, write_json
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.data.fingerprint import run_fingerprint
from pipeline.data.index_mapping import TRAINED_ON
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.distributed.processes import announced_processes
from pipeline.training.incremental.window import Work
from pipeline.training.run import LOG_FILE, write_run

WINDOWS_FILE = "windows.json"


def train_windows(
    data: Data | Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    *,
    seconds: float,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train on the sessions of `data`, all parts of it, window by window; write the run to `out`.

    `seconds` is their width. Returns the manifest's facts; `windows.json` of the run has the
    figures of each window. `start` is an earlier run to begin from.
    """
    if announced_processes().count > 1:
        raise ConfigError("--windows trains in one process. Start it without torchrun.")
    from transformers import set_seed

    keep_heap()
    data = Data.open(data)
    work = Work.read(data, model_config, train_config, start)
    cut = work.cut(seconds)
    facts: dict[str, Any] = {}
    fingerprint = run_fingerprint(
        data.path, model_config, train_config, windows=seconds, start=start
    )
    with (
        new_artifact(out, "run", facts, fingerprint=fingerprint) as directory,
        tempfile.TemporaryDirectory(prefix="pipeline-windows-") as scratch,
    ):
        set_seed(train_config.seed)
        begin = time.monotonic()
        reports, steps, epochs, losses = [], 0, 0.0, []
        state = work.begin()
        for number, window in enumerate(cut):
            last = number == len(cut) - 1
            _say(f"Window {number + 1} of {len(cut)}: {_date(window.begin)}.")
            report: dict[str, Any] = {
                "window": number + 1,
                "from": _date(window.begin),
                "to": _date(window.end),
                "sessions": len(window.sessions),
                "evaluation": None,
            }
            folder = Path(scratch) / str(number)
            folder.mkdir()
            started = time.monotonic()
            if state.model is not None:
                report["evaluation"] = work.evaluate(state, cut[:number], window, folder)
            evaluated = time.monotonic()
            state, told = work.learn(state, cut[: number + 1], folder, everything=last)
            _append_log(directory, folder, number + 1, steps, epochs)
            shutil.rmtree(folder)
            device = told.pop("device")
            steps, epochs = steps + told["steps"], epochs + told["epochs"]
            losses.append(told["train_loss"])
            reports.append(
                report
                | told
                | {
                    "evaluation_seconds": round(evaluated - started, 1),
                    "training_seconds": round(time.monotonic() - evaluated, 1),
                }
            )
        result = {"width_seconds": seconds, "windows": reports, "mean": mean_of_windows(reports)}
        write_json(directory / WINDOWS_FILE, result)
        model = work.final(state)
        facts.update(
            seconds=round(time.monotonic() - begin, 1),
            device=device,
            processes=1,
            steps=steps,
            epochs=epochs,
            train_loss=losses[-1],
            parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            model=model_config.model_dump(mode="json"),
            train=train_config.model_dump(mode="json"),
            **{TRAINED_ON: data.training_fingerprint},
            windows=result,
        )
        write_run(directory, data, model, model_config)
    Checkpoints(out, fingerprint).remove()  # of another training that was interrupted here
    return facts


def mean_of_windows(reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Means over the windows that were evaluated, each of the same weight; None if none was.

    A margin is that of the mean of independent means.
    """
    found = [report["evaluation"] for report in reports if report["evaluation"] is not None]
    if not found:
        return None
    results: dict[str, dict[str, float]] = {}
    margins: dict[str, dict[str, float | None]] = {}
    for model, metrics in found[0]["results"].items():
        results[model], margins[model] = {}, {}
        for name in metrics:
            each = [evaluation["margins"][model][name] for evaluation in found]
            sure = [value for value in each if value is not None]
            mean = sum(evaluation["results"][model][name] for evaluation in found) / len(found)
            results[model][name] = mean
            margins[model][name] = (
                math.sqrt(sum(value**2 for value in sure)) / len(found)
                if len(sure) == len(each)
                else None
            )
    return {"windows": len(found), "results": results, "margins": margins}


def _append_log(directory: Path, scratch: Path, window: int, steps: int, epochs: float) -> None:
    """A window's log into that of the run, steps and epochs counted on, TensorBoard's beside."""
    with (directory / LOG_FILE).open("a", encoding="utf-8") as stream:
        for line in (scratch / LOG_FILE).read_text(encoding="utf-8").splitlines():
            logged = json.loads(line)
            logged["step"] += steps
            if "epoch" in logged:
                logged["epoch"] += epochs
            stream.write(json.dumps({"window": window, **logged}) + "\n")
    if (scratch / "tensorboard").is_dir():
        shutil.move(scratch / "tensorboard", directory / "tensorboard" / f"window-{window:04d}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201  (stdout is for results)


def _date(microseconds: int) -> str:
    return f"{np.datetime64(int(microseconds), 'us').astype('datetime64[s]')}Z"
