"""`pipeline compare`: several runs and the baselines, on the same targets of one part.

Differences between rows are paired by target, so that the difficulty of a target cancels out. The
session is the unit of intervals and tests, see `evaluation.metrics`. The p-values of a metric are
corrected for the number of rows compared with the best (Holm, "A simple sequentially rejective
multiple test procedure", 1979). Runs that differ only in the seed share a row: the gain of a target
is their mean, and their standard deviation is printed beside the metric.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.manifest import MANIFEST
from pipeline.data.directory import Data
from pipeline.data.fingerprint import ORIGIN
from pipeline.data.index_mapping import TRAINED_ON
from pipeline.data.sessions import count_sessions, read_interactions
from pipeline.evaluation.baselines import BASELINES
from pipeline.evaluation.breakdowns import describe_targets
from pipeline.evaluation.comparison.paired_tests import baseline_tests, best_tests, row_of_runs
from pipeline.evaluation.comparison.result import ComparedRow, ComparedTask, Comparison
from pipeline.evaluation.list_metrics import check_metrics
from pipeline.evaluation.metrics import DEFAULT_CUTOFFS, Ranked, list_metrics, margin
from pipeline.evaluation.result import TRAINING_MEAN
from pipeline.evaluation.run import (
    Gains,
    Protocol,
    check_targets,
    gains_of,
    list_context,
    predict_run_targets,
    rank_run,
    ranked_baselines,
    training_means,
)
from pipeline.evaluation.target_metrics import TargetPredictions, target_metrics, target_values
from pipeline.evaluation.targets import Positions
from pipeline.model.run import PROGRAM, Run


# Long: half of it is the docstring of a public function.
def compare(
    runs: Sequence[Run | Path],
    data: Data | Path,
    *,
    part: str = "test",
    positions: Positions | None = None,
    cutoffs: tuple[int, ...] = DEFAULT_CUTOFFS,
    baselines: bool = True,
    filter_seen: bool | None = None,
    metrics: tuple[str, ...] = (),
) -> Comparison:
    """Rank the targets of one part of `data` by several runs and by the baselines.

    A folder of runs, as of `train --seeds`, stands for all its runs, also for those in folders of
    seeds below it. Models built in Python share a row as `seed-N` of one folder. Arguments and
    errors are those of `evaluate`. Baselines use the catalogue of `data`; a run may have an older
    one if `data` extends its data. The comparison includes the metrics of target tasks; a run that
    does not rank items has only these. ConfigError without a run; ArtifactError if targets of one
    name differ between runs.
    """
    data = Data.open(data)
    opened = list(dict.fromkeys(run for each in runs for run in _runs_of(each)))
    if not opened:
        raise ConfigError("There is no run to compare. Name one or several run directories.")
    protocol = Protocol(
        part,
        positions or data.recipe.target_positions,
        cutoffs,
        data.recipe.filter_seen if filter_seen is None else filter_seen,
        baselines and part != "train",
        check_metrics(metrics, data.fitted),
    )
    groups = _groups(opened)
    for run in opened:
        _check_part(run, data, part)
    table = _Table()
    ranked = _compare_ranks(groups, data, protocol, table)
    tasks = _compare_targets(groups, data, protocol, table)
    rows, gains_by_row = table.rows()
    return Comparison(
        part=part,
        positions=protocol.positions,
        filter_seen=protocol.filter_seen,
        sessions=count_sessions(data.path, part) if ranked is None else len(np.unique(ranked)),
        targets=0 if ranked is None else len(ranked),
        catalogue_items=data.fitted.item.num_rows - FIRST_ITEM,
        cutoffs=[] if ranked is None else list(cutoffs),
        rows=rows,
        tests=best_tests(gains_by_row, table.sessions),
        against_baseline=baseline_tests(
            gains_by_row, [name for name in rows if not rows[name].runs], table.sessions
        ),
        tasks=tasks,
    )


Measured = tuple[Gains, dict[str, float | None]]
"""(N,) values by metric, whose means are the metrics, and metrics without such values."""


@dataclass
class _Table:
    """Rows so far, with the names and measurements of their runs."""

    names: dict[str, list[str]] = field(default_factory=dict)
    measured: dict[str, list[Measured]] = field(default_factory=dict)
    sessions: dict[str, NDArray[Any]] = field(default_factory=dict)
    """(N,) session of each target, by metric."""

    def add(
        self, name: str, runs: list[str], members: list[Measured], sessions: NDArray[Any]
    ) -> None:
        """Add metrics to a new or existing row; a baseline has no runs."""
        if self.names.setdefault(name, runs) != runs:
            name = f"{name} (baseline)"
            self.names[name] = runs
        self.sessions |= dict.fromkeys(members[0][0], sessions)
        before: list[Measured] = self.measured.get(name) or [({}, {}) for _ in members]
        self.measured[name] = [
            ({**gains, **own}, {**others, **own_others})
            for (gains, others), (own, own_others) in zip(before, members, strict=True)
        ]

    def rows(self) -> tuple[dict[str, ComparedRow], dict[str, Gains]]:
        """Rows of runs, then of baselines; and their (N,) values by metric."""
        order = sorted(self.names, key=lambda name: not self.names[name])
        pairs = {name: row_of_runs(self.measured[name], self.names[name]) for name in order}
        for gains, row in pairs.values():
            row.margins.update(
                {metric: margin(each, self.sessions[metric]) for metric, each in gains.items()}
            )
        return {name: row for name, (_, row) in pairs.items()}, {
            name: gains for name, (gains, _) in pairs.items()
        }


def _compare_ranks(
    groups: Mapping[str, Sequence[Run]], data: Data, protocol: Protocol, table: _Table
) -> NDArray[Any] | None:
    """Rank the targets by the runs that rank items, and by the baselines.

    Return the (N,) session of each target, None if no run ranks items.
    """
    ranking = {name: group for name, group in groups.items() if group[0].model.ranks_items}
    if not ranking:
        return None
    interactions = read_interactions(data.path, protocol.part)
    history = read_interactions(data.path, "train", by_time=True)
    targets = describe_targets(interactions, protocol.positions)
    check_targets(targets, data, protocol.part)
    num_rows = data.fitted.item.num_rows
    popularity = np.bincount(history.values, minlength=num_rows)[FIRST_ITEM:]
    context = list_context(history, interactions, targets, num_rows, data, protocol)

    def measure(ranked: Ranked) -> Measured:
        # an older run has only the first items of the catalogue
        missing = len(popularity) - ranked.exposure.shape[1]
        exposure = np.pad(ranked.exposure, ((0, 0), (0, missing)))
        of_lists = list_metrics(exposure, protocol.cutoffs, targets.items, popularity)
        return gains_of(ranked, protocol.cutoffs, context), of_lists

    for name, group in ranking.items():
        ranked = [rank_run(run, data, protocol, run.index_mapping(data))[0] for run in group]
        names = [run.name for run in group]
        table.add(name, names, [measure(each) for each in ranked], targets.sessions)
    if protocol.baselines:
        longest = data.recipe.max_sequence_length
        for name, each, _ in ranked_baselines(history, interactions, num_rows, longest, protocol):
            table.add(name, [], [measure(each)], targets.sessions)
    return targets.sessions


def _compare_targets(
    groups: Mapping[str, Sequence[Run]], data: Data, protocol: Protocol, table: _Table
) -> dict[str, ComparedTask]:
    """Predict the targets of target tasks by the runs that have them; return their descriptions."""
    first: dict[str, tuple[Run, TargetPredictions]] = {}
    for name, group in groups.items():
        names = [run.name for run in group]
        of_group = [predict_run_targets(run, data, protocol) for run in group]
        for task in of_group[0]:
            each = [predictions[task] for predictions in of_group]
            if not len(each[0].targets):
                continue
            run, reference = first.setdefault(task, (group[0], each[0]))
            _check_same_targets(task, each[0], reference, group[0], run)
            table.add(name, names, [_measure_task(task, own) for own in each], _sessions(each[0]))
    if protocol.baselines:
        for task, (run, reference) in first.items():
            mean = training_means(run, data)[task]
            constant = _measure_task(task, reference.constant(mean))
            table.add(TRAINING_MEAN, [], [constant], _sessions(reference))
    return {
        task: ComparedTask(values.kind, len(values.targets), float(np.mean(values.targets)))
        for task, (_, values) in first.items()
    }


def _sessions(values: TargetPredictions) -> NDArray[Any]:
    assert values.sessions is not None  # noqa: S101
    return values.sessions


def _measure_task(task: str, values: TargetPredictions) -> Measured:
    """Values and metrics of a task by `task.metric`; metrics without a value per target are
    separate."""
    of_targets = {f"{task}.{metric}": each for metric, each in target_values(values).items()}
    every = {f"{task}.{metric}": each for metric, each in target_metrics(values).items()}
    return of_targets, {
        metric: None if np.isnan(value) else value
        for metric, value in every.items()
        if metric not in of_targets
    }


def _check_same_targets(
    task: str, own: TargetPredictions, reference: TargetPredictions, run: Run, other: Run
) -> None:
    """ArtifactError if the targets of one name differ between two runs."""
    same = own.kind == reference.kind and np.array_equal(_sessions(own), _sessions(reference))
    if not (same and np.allclose(own.targets, reference.targets, rtol=1e-4)):
        raise ArtifactError(
            f"The target {task!r} of {run.path} is not that of {other.path}: it has other values. "
            "Compare them apart, or train with another `name` of the target."
        )


def _runs_of(source: Run | Path) -> Iterator[Run]:
    """The run itself, or the runs in a folder and in its folders of seeds."""
    if isinstance(source, Path) and source.is_dir() and not (source / MANIFEST).exists():
        patterns = f"[!.]*/{MANIFEST}", f"[!.]*/seed-*/{MANIFEST}"
        inside = sorted(file.parent for each in patterns for file in source.glob(each))
        if inside:
            yield from map(Run.open, inside)
            return
    yield Run.open(source)


def _check_part(run: Run, data: Data, part: str) -> None:
    """ArtifactError for the train part if this run was trained on other sessions."""
    if part == "train" and not run.was_trained_on(data):
        raise ArtifactError(
            f"{run.path} was trained on other sessions than those of {data.path}, whose train part "
            "would favour the other runs. Compare on another part."
        )


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the name of their row; runs that differ only in the seed share one."""
    by_settings: dict[str, dict[int | None, Run]] = {}
    for run in runs:
        key, seed = _settings_key(run), (run.facts.get("train") or {}).get("seed")
        if seed in by_settings.get(key, {}):  # a repeated training with the same seed
            key = str(run.path)
        by_settings.setdefault(key, {})[seed] = run
    groups: dict[str, list[Run]] = {}
    for group in (list(by_seed.values()) for by_seed in by_settings.values()):
        name = _group_name(group)
        if name in groups:
            name = str(group[0].path)
        groups[name] = group
    return groups


def _settings_key(run: Run) -> str:
    """Key of the inputs and settings of a run, without the seed."""
    facts = run.facts
    train = {key: value for key, value in (facts.get("train") or {}).items() if key != "seed"}
    if not train:  # it was trained by the caller's own loop
        return str(run.path)
    settings = {name: facts.get(name) for name in ("model", TRAINED_ON, ORIGIN)}
    width = (facts.get("windows") or {}).get("width_seconds")
    folder = None
    if (facts.get("model") or {}).get("architecture") == PROGRAM:
        # built in Python: its widths and its loss are not in the settings
        path = run.path.resolve()
        folder = path.parent if run.name.startswith("seed-") else path
    return json.dumps([settings, train, width, folder], sort_keys=True, default=str)


def _group_name(group: Sequence[Run]) -> str:
    """Name of the run, or for several seeds of their folder, or the common part of their names."""
    if len(group) == 1:
        name = group[0].name
        is_seed = name.startswith("seed-")
        name = f"{group[0].path.resolve().parent.name}/{name}" if is_seed else name
        return f"{name} (run)" if name in (*BASELINES, TRAINING_MEAN) else name
    folders = {run.path.resolve().parent for run in group}
    names = [run.name for run in group]
    equal = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in equal).rstrip("-_.0123456789")
    if len(folders) == 1 and shared in ("", "seed"):
        return folders.pop().name
    return shared.removesuffix("seed").rstrip("-_.") or names[0]
