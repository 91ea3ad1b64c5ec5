"""Rows of a comparison: means over seeds, and paired tests of their differences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.comparison.result import ComparedRow, PairedTest
from pipeline.evaluation.metrics import best_row, margin, mean_or_none, p_value
from pipeline.evaluation.run import Gains


def row_of_runs(
    measured: Iterable[tuple[Gains, dict[str, float | None]]], names: list[str]
) -> tuple[Gains, ComparedRow]:
    """Mean gains per target, and metrics, over runs that differ in the seed."""
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


def best_tests(
    gains_by_row: Mapping[str, Gains], sessions: Mapping[str, NDArray[Any]]
) -> dict[str, dict[str, PairedTest]]:
    """By metric and row, the row minus the row with the best mean.

    `sessions` are the (N,) sessions of the targets of each metric, ascending.
    """
    tests = {}
    for metric, sessions_of_targets in sessions.items():
        values = _defined_rows(gains_by_row, metric)
        if values:
            best = best_row(values, metric)
            tests[metric] = _differences(values, best, sessions_of_targets)
    return tests


def baseline_tests(
    gains_by_row: Mapping[str, Gains],
    baselines: Sequence[str],
    sessions: Mapping[str, NDArray[Any]],
) -> dict[str, dict[str, PairedTest]]:
    """By metric and row of runs, the row minus the best of the `baselines`.

    Metrics without a baseline are left out.
    """
    tests = {}
    for metric, sessions_of_targets in sessions.items():
        values = _defined_rows(gains_by_row, metric)
        of_baselines = {name: values[name] for name in baselines if name in values}
        if of_baselines:
            best = best_row(of_baselines, metric)
            compared = {name: values[name] for name in values if name not in of_baselines}
            compared[best] = values[best]
            tests[metric] = _differences(compared, best, sessions_of_targets)
    return tests


def _defined_rows(gains_by_row: Mapping[str, Gains], metric: str) -> Gains:
    """(N,) values of a metric by row, for the rows that define it."""
    return {
        name: each[metric]
        for name, each in gains_by_row.items()
        if metric in each and not np.isnan(each[metric]).any()
    }


def _differences(values: Gains, best: str, sessions: NDArray[Any]) -> dict[str, PairedTest]:
    """All rows minus `best` in a metric."""
    others = {name: each - values[best] for name, each in values.items() if name != best}
    corrected = holm({name: p_value(each, sessions) for name, each in others.items()})
    return {
        name: PairedTest(best, float(each.mean()), margin(each, sessions), corrected[name])
        for name, each in others.items()
    }


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """P-values with Holm's correction, by name; None stays None and is not counted."""
    tested = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    highest = 0.0
    for position, (p, name) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - position)))
        corrected[name] = highest
    return corrected
