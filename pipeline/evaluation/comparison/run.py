"""`pipeline compare`: several runs and the baselines, ranked on the same targets of one part.

Every difference is that of two rows on the same targets, so that what is easy or hard for all of
them cancels out. Its interval and its test have the session as the unit, as all intervals here
(`evaluation.metrics`). The p-values of one metric are corrected for the number of rows that are
compared with the best (Holm, "A simple sequentially rejective multiple test procedure", 1979).
Runs that differ in nothing but the seed are one row: the gain of a target is their mean, and their
standard deviation is printed beside the metric.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.artifact import MANIFEST
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.directory import Data
from pipeline.data.fingerprint import ORIGIN
from pipeline.data.index_mapping import TRAINED_ON
from pipeline.data.sessions import Interactions, read_interactions
from pipeline.evaluation.baselines import BASELINES
from pipeline.evaluation.breakdowns import describe_targets
from pipeline.evaluation.comparison.result import ComparedRow, Comparison, PairedTest
from pipeline.evaluation.list_metrics import check_metrics
from pipeline.evaluation.metrics import (
    DEFAULT_CUTOFFS,
    Ranked,
    best_row,
    list_metrics,
    margin,
    mean_or_none,
    p_value,
)
from pipeline.evaluation.run import (
    Gains,
    Protocol,
    check_targets,
    gains_of,
    list_context,
    rank_run,
    ranked_baselines,
)
from pipeline.evaluation.targets import Positions
from pipeline.model.run import Run


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

    A folder of runs, as `train --seeds` writes it, is all of them. Arguments are those of
    `evaluate`. The baselines know the catalogue of `data`; a run may have an older one, if `data`
    went on from its data.
    ConfigError without a run; ArtifactError for a run that does not rank items, and as `evaluate`.
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
    interactions = read_interactions(data.path, part)
    history = read_interactions(data.path, "train", by_time=True)
    targets = describe_targets(interactions, protocol.positions)
    check_targets(targets, data, part)
    num_rows = data.fitted.item.num_rows
    popularity = np.bincount(history.values, minlength=num_rows)[FIRST_ITEM:]
    context = list_context(history, interactions, targets, num_rows, data, protocol)

    def gains_and_lists(ranked: Ranked) -> tuple[Gains, dict[str, float | None]]:
        # an older run has fewer items, the first ones
        missing = len(popularity) - ranked.exposure.shape[1]
        exposure = np.pad(ranked.exposure, ((0, 0), (0, missing)))
        of_lists = list_metrics(exposure, cutoffs, targets.items, popularity)
        return gains_of(ranked, cutoffs, context), of_lists

    rows: dict[str, ComparedRow] = {}
    gains_by_row: dict[str, Gains] = {}
    for name, names, members in _ranked_rows(opened, data, protocol, history, interactions):
        row_name = f"{name} (baseline)" if name in rows else name
        gains_by_row[row_name], rows[row_name] = _row(map(gains_and_lists, members), names)
    for name, row in rows.items():
        row.margins.update(
            {metric: margin(each, targets.sessions) for metric, each in gains_by_row[name].items()}
        )
    return Comparison(
        part=part,
        positions=protocol.positions,
        filter_seen=protocol.filter_seen,
        sessions=len(np.unique(targets.sessions)),
        targets=len(targets.items),
        catalogue_items=num_rows - FIRST_ITEM,
        cutoffs=list(cutoffs),
        rows=rows,
        tests=_tests(gains_by_row, targets.sessions),
        against_baseline=_against_baseline(
            gains_by_row, [name for name in rows if not rows[name].runs], targets.sessions
        ),
    )


def _ranked_rows(
    runs: Sequence[Run],
    data: Data,
    protocol: Protocol,
    history: Interactions,
    interactions: Interactions,
) -> Iterator[tuple[str, list[str], list[Ranked]]]:
    """Yield name, names of the runs and their ranks for each row: runs, then baselines."""
    for name, group in _groups(runs).items():
        yield name, [run.name for run in group], [_rank(run, data, protocol) for run in group]
    if protocol.baselines:
        longest, num_rows = data.recipe.max_sequence_length, data.fitted.item.num_rows
        for name, ranked, _ in ranked_baselines(history, interactions, num_rows, longest, protocol):
            yield name, [], [ranked]


def _runs_of(source: Run | Path) -> Iterator[Run]:
    """The run itself, or the runs in a folder."""
    if isinstance(source, Path) and source.is_dir() and not (source / MANIFEST).exists():
        inside = sorted(folder.parent for folder in source.glob(f"*/{MANIFEST}"))
        if inside:
            yield from map(Run.open, inside)
            return
    yield Run.open(source)


def _rank(run: Run, data: Data, protocol: Protocol) -> Ranked:
    if not run.model.ranks_items:
        raise ArtifactError(
            f"{run.path} does not predict the next item: there are no lists to compare."
        )
    mapping = run.index_mapping(data)
    if protocol.part == "train" and not run.was_trained_on(data):
        raise ArtifactError(
            f"{run.path} was trained on other sessions than those of {data.path}, whose train part "
            "would favour the other runs. Compare on another part."
        )
    ranked, _ = rank_run(run, data, protocol, mapping)
    return ranked


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the name of their row; those that differ in the seed alone share one."""
    by_settings: dict[str, dict[int | None, Run]] = {}
    for run in runs:
        key, seed = _settings_key(run), (run.facts.get("train") or {}).get("seed")
        if seed in by_settings.get(key, {}):  # the same training again, no other seed
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
    """Text of what a run was made of but its seed."""
    facts = run.facts
    train = {key: value for key, value in (facts.get("train") or {}).items() if key != "seed"}
    if not train:  # put together in Python: nothing says what it is
        return str(run.path)
    settings = {name: facts.get(name) for name in ("model", TRAINED_ON, ORIGIN)}
    width = (facts.get("windows") or {}).get("width_seconds")
    return json.dumps([settings, train, width], sort_keys=True, default=str)


def _group_name(group: Sequence[Run]) -> str:
    """Name of the run, or of the folder of runs of several seeds, or what their names share."""
    if len(group) == 1:
        name = group[0].name
        is_seed = name.startswith("seed-")
        name = f"{group[0].path.resolve().parent.name}/{name}" if is_seed else name
        return f"{name} (run)" if name in BASELINES else name
    folders = {run.path.resolve().parent for run in group}
    names = [run.name for run in group]
    equal = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in equal).rstrip("-_.0123456789")
    if len(folders) == 1 and shared in ("", "seed"):
        return folders.pop().name
    return shared.removesuffix("seed").rstrip("-_.") or names[0]


def _row(
    measured: Iterable[tuple[Gains, dict[str, float | None]]], names: list[str]
) -> tuple[Gains, ComparedRow]:
    """Mean gains of each target, and metrics, over runs that differ in the seed."""
    members = list(measured)
    gains_of_each = [each for each, _ in members]
    mean_gains = {
        metric: np.mean([each[metric] for each in gains_of_each], axis=0)
        for metric in gains_of_each[0]
    }
    values: list[dict[str, float | None]] = [
        {**{metric: mean_or_none(each) for metric, each in of_run.items()}, **of_lists}
        for of_run, of_lists in members
    ]
    results = {metric: _mean([each[metric] for each in values]) for metric in values[0]}
    deviations = (
        {}
        if len(values) == 1
        else {metric: _deviation([each[metric] for each in values]) for metric in values[0]}
    )
    return mean_gains, ComparedRow(names, results, {}, deviations)


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if len(numbers) == len(values) else None


def _deviation(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.std(numbers, ddof=1)) if len(numbers) == len(values) else None


def _tests(
    gains_by_row: Mapping[str, Gains], sessions: NDArray[Any]
) -> dict[str, dict[str, PairedTest]]:
    """By metric and row, the row minus the one with the best mean."""
    return {
        metric: _differences(gains_by_row, metric, _best(gains_by_row, metric), sessions)
        for metric in _defined_metrics(gains_by_row)
    }


def _against_baseline(
    gains_by_row: Mapping[str, Gains], baselines: Sequence[str], sessions: NDArray[Any]
) -> dict[str, dict[str, PairedTest]]:
    """By metric and row of runs, the row minus the best of the `baselines`; empty without one."""
    if not baselines:
        return {}
    runs = {name: each for name, each in gains_by_row.items() if name not in baselines}
    of_baselines = {name: gains_by_row[name] for name in baselines}
    tests = {}
    for metric in _defined_metrics(gains_by_row):
        best = _best(of_baselines, metric)
        tests[metric] = _differences({**runs, best: of_baselines[best]}, metric, best, sessions)
    return tests


def _defined_metrics(gains_by_row: Mapping[str, Gains]) -> list[str]:
    """Metrics without those of lists that are not defined, as without an item before a target."""
    return [
        metric
        for metric in next(iter(gains_by_row.values()))
        if not any(np.isnan(each[metric]).any() for each in gains_by_row.values())
    ]


def _best(gains_by_row: Mapping[str, Gains], metric: str) -> str:
    return best_row({name: each[metric] for name, each in gains_by_row.items()}, metric)


def _differences(
    gains_by_row: Mapping[str, Gains], metric: str, best: str, sessions: NDArray[Any]
) -> dict[str, PairedTest]:
    """All rows minus `best` in a metric."""
    values = {name: each[metric] for name, each in gains_by_row.items()}
    others = {name: each - values[best] for name, each in values.items() if name != best}
    corrected = holm({name: p_value(each, sessions) for name, each in others.items()})
    return {
        name: PairedTest(best, float(each.mean()), margin(each, sessions), corrected[name])
        for name, each in others.items()
    }


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """P-values corrected for their number, by name; None stays None and counts for nothing."""
    tested = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    highest = 0.0
    for position, (p, name) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - position)))
        corrected[name] = highest
    return corrected
