"""`pipeline train --windows`: train on consecutive time windows, evaluating each before training.

The protocol of Moreira et al., "Transformers4Rec: Bridging the Gap between NLP and Sequential /
Session-Based Recommendation" (RecSys 2021): with the weights of windows 1 to t, evaluate on window
t+1, then train on it. Values get rows in the order of the windows, so the catalogue grows at its
end, and a value is unknown before training on its first window. Training on a window is an ordinary
training that starts from the weights of the previous window.
"""

import json
import logging
import math
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.allocator import keep_heap
from pipeline.core.artifact import new_artifact, write_json
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.data.fingerprint import origin_facts, run_fingerprint
from pipeline.data.index_mapping import TRAINED_ON
from pipeline.model.run import Run
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.distributed.processes import announced_processes
from pipeline.training.incremental.incremental_trainer import IncrementalTrainer
from pipeline.training.incremental.windows import Window
from pipeline.training.run import num_parameters
from pipeline.training.run_files import LOG_FILE, write_run

logger = logging.getLogger(__name__)

WINDOWS_FILE = "windows.json"


def train_windows(
    data: Data | Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    *,
    seconds: float,
    start: Path | None = None,
    plugins: Path | None = None,
) -> dict[str, Any]:
    """Train on the sessions of all parts of `data`, window by window, and write the run to `out`.

    `seconds` is the width of a window, `start` a run with the initial weights, `plugins` the file
    of `pipeline.plugins`. Return the facts of the manifest; `windows.json` in the run has the
    figures of each window.
    """
    if announced_processes().count > 1:
        raise ConfigError("--windows trains in one process. Start it without torchrun.")
    from transformers import set_seed

    keep_heap()
    data = Data.open(data)
    run = None if start is None else Run.open(start)
    trainer = IncrementalTrainer(data, model_config, train_config, run)
    windows = trainer.windows(seconds)
    fingerprint = run_fingerprint(
        data.path, model_config, train_config, windows=seconds, start=start, plugins=plugins
    )
    facts: dict[str, Any] = {}
    with new_artifact(out, "run", facts, fingerprint=fingerprint) as directory:
        set_seed(train_config.seed)
        begin = time.monotonic()
        results = _train_windows(trainer, windows, directory)
        report = {
            "width_seconds": seconds,
            "windows": results,
            "mean": mean_evaluation([result["evaluation"] for result in results]),
            "mean_of_targets": mean_evaluation(
                [result["evaluation"] for result in results], by_targets=True
            ),
        }
        write_json(directory / WINDOWS_FILE, report)
        model = trainer.final_model()
        facts.update(
            seconds=round(time.monotonic() - begin, 1),
            device=trainer.device,
            processes=1,
            steps=sum(result["steps"] for result in results),
            epochs=sum(result["epochs"] for result in results),
            train_loss=results[-1]["train_loss"],
            parameters=num_parameters(model),
            model=model_config.model_dump(mode="json"),
            train=train_config.model_dump(mode="json"),
            **{TRAINED_ON: data.training_fingerprint},
            **origin_facts(start, plugins),
            windows=report,
        )
        write_run(directory, data, model, model_config)
    Checkpoints(out, fingerprint).remove()  # of an interrupted training without windows
    return facts


def _train_windows(
    trainer: IncrementalTrainer, windows: list[Window], directory: Path
) -> list[dict[str, Any]]:
    """Train on all windows; return the entries of `windows.json`, write logs to `directory`."""
    results: list[dict[str, Any]] = []
    for number, window in enumerate(windows, 1):
        begin, end = (_date(time) for time in (window.begin, window.end))
        logger.info("Window %d of %d: %s.", number, len(windows), begin)
        with tempfile.TemporaryDirectory(prefix="pipeline-window-") as folder:
            scratch = Path(folder)
            started = time.monotonic()
            evaluation = None if trainer.model is None else trainer.evaluate(window, scratch)
            evaluated = time.monotonic()
            training = trainer.train(window, scratch, is_last=number == len(windows))
            _append_log(directory, scratch, number, results)
            trained = time.monotonic()
        results.append(
            {
                "window": number,
                "from": begin,
                "to": end,
                "sessions": len(window.sessions),
                "evaluation": None if evaluation is None else asdict(evaluation),
                **asdict(training),
                "evaluation_seconds": round(evaluated - started, 1),
                "training_seconds": round(trained - evaluated, 1),
            }
        )
    return results


def mean_evaluation(
    evaluations: list[dict[str, Any] | None], *, by_targets: bool = False
) -> dict[str, Any] | None:
    """Means over the evaluated windows; None without any.

    Windows have equal weights, or with `by_targets` their numbers of targets. The margin is that of
    a mean of independent means.
    """
    evaluated = [evaluation for evaluation in evaluations if evaluation is not None]
    if not evaluated:
        return None
    counts = [evaluation["targets"] if by_targets else 1 for evaluation in evaluated]
    weights = [count / sum(counts) for count in counts]
    means: dict[str, Any] = {"windows": len(evaluated), "results": {}, "margins": {}}
    for model, metrics in evaluated[0]["results"].items():
        values = {name: [e["results"][model][name] for e in evaluated] for name in metrics}
        margins = {name: [e["margins"][model][name] for e in evaluated] for name in metrics}
        means["results"][model] = {
            name: sum(w * v for w, v in zip(weights, each, strict=True))
            for name, each in values.items()
        }
        means["margins"][model] = {
            name: None
            if None in each
            else math.sqrt(sum((w * m) ** 2 for w, m in zip(weights, each, strict=True)))
            for name, each in margins.items()
        }
    return means


def _append_log(directory: Path, scratch: Path, window: int, earlier: list[dict[str, Any]]) -> None:
    """Append the log of a window to that of the run, with steps and epochs since the start."""
    steps = sum(result["steps"] for result in earlier)
    epochs = sum(result["epochs"] for result in earlier)
    with (directory / LOG_FILE).open("a", encoding="utf-8") as stream:
        for text in (scratch / LOG_FILE).read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            line["step"] += steps
            if "epoch" in line:
                line["epoch"] += epochs
            stream.write(json.dumps({"window": window, **line}) + "\n")
    if (scratch / "tensorboard").is_dir():
        shutil.move(scratch / "tensorboard", directory / "tensorboard" / f"window-{window:04d}")


def _date(microseconds: int) -> str:
    return f"{np.datetime64(int(microseconds), 'us').astype('datetime64[s]')}Z"
