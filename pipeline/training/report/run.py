"""`pipeline report`: a run and data to a page, with the same numbers as JSON."""

import json
from pathlib import Path
from typing import Any

from pipeline.core.files import write_text
from pipeline.core.manifest import WRITTEN_BY
from pipeline.core.outputs import check_report
from pipeline.data.directory import Data
from pipeline.model.run import Run
from pipeline.recipe.preprocess import Preprocess
from pipeline.reports import JSON_FILE, PAGE_FILE
from pipeline.reports.rendering import finite
from pipeline.training.report.page import render

_LOG_FILE = "metrics.jsonl"
_CONFIG = ("model", "train")


def write_report(
    run: Run | Path,
    data: Data | Path,
    out: Path,
    *,
    part: str = "test",
    **options: Any,
) -> dict[str, Any]:
    """Evaluate `run`, write the page to `out` and its numbers to the same name with .json.

    `part` and `options` are those of `evaluation.run.evaluate`. Each directory is opened once.
    Return {"page", "json", "evaluation"}. ConfigError if `out` is not the name of a page, or is
    inside an artifact, whose manifest lists all of its files.
    """
    numbers = check_report(out)
    run, data = Run.open(run), Data.open(data)
    from pipeline.evaluation.run import evaluate
    from pipeline.training.report.examples import example_sessions

    evaluation = evaluate(run, data, part=part, **options).to_dict()
    report = _training_report(run.path, run.facts, run.name, run.fitted.recipe)
    report["evaluation"] = evaluation
    if evaluation["results"]:
        filter_seen = evaluation["filter_seen"]
        report["examples"] = example_sessions(run, data, part, filter_seen=filter_seen)
    report = finite(report)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(numbers, _json(report))
    write_text(out, render(report))
    return {"page": str(out), "json": str(numbers), "evaluation": evaluation}


def write_training_report(
    directory: Path, facts: dict[str, Any], name: str, recipe: Preprocess
) -> None:
    """Write report.html and report.json, without test data, into the directory of a new run.

    The directory must hold the log. `facts` are those of the future manifest, `name` is the run's
    name and `recipe` the preprocessing of its data.
    """
    report = finite(_training_report(directory, facts, name, recipe))
    (directory / JSON_FILE).write_text(_json(report), encoding="utf-8")
    (directory / PAGE_FILE).write_text(render(report), encoding="utf-8")


def _training_report(
    directory: Path, facts: dict[str, Any], name: str, recipe: Preprocess
) -> dict[str, Any]:
    log = directory / _LOG_FILE
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return {
        "written_by": WRITTEN_BY,
        "run": name,
        "training": {
            "facts": {key: value for key, value in facts.items() if key not in _CONFIG},
            "log": [json.loads(line) for line in lines if line],
        },
        "config": {
            "preprocess": recipe.model_dump(mode="json"),
            **{key: facts[key] for key in _CONFIG},
        },
        "evaluation": None,
        "examples": [],
    }


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
