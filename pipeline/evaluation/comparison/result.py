"""The result of a comparison."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pipeline.core.text import shown
from pipeline.evaluation.metrics import lower_is_better
from pipeline.evaluation.result import (
    RANK_UNITS,
    decimals,
    on_request,
    request_legend,
    verdict,
    with_margin,
)
from pipeline.evaluation.target_metrics import TargetKind
from pipeline.evaluation.targets import Positions

if TYPE_CHECKING:
    import pandas as pd

RANKS = ("recall", "ndcg", "mrr")
LISTS = ("coverage", "popularity_bias")
_LEGEND = """\
±: half the 95 % interval, over sessions; sd: standard deviation between seeds. *: the best row of
a column, and those that do not differ from it (paired test by sessions, p of 0.05 or more after
Holm's correction)."""

_TASK_UNITS = {
    "binary": ("auc", "area under the ROC curve, 0.5 by chance"),
    "regression": ("rmse", "units of the log, less is better"),
}
SIGNIFICANCE = 0.05
"""A row with a lower corrected p-value differs from the best row."""


@dataclass(frozen=True)
class ComparedRow:
    """Metrics of a run, of runs that differ in the seed, or of a baseline."""

    runs: list[str]
    """Names of the runs; empty for a baseline."""
    results: dict[str, float | None]
    """Means over the runs by `metric@K`, and by `task.metric` for target tasks. Metrics that the
    runs lack are left out."""
    margins: dict[str, float | None]
    """Half the 95 % interval over sessions."""
    deviations: dict[str, float | None]
    """Standard deviation between the runs; empty for a single run."""


@dataclass(frozen=True)
class PairedTest:
    """Difference of a row from the best row in a metric, on the same targets."""

    best: str
    difference: float
    margin: float | None
    """Half the 95 % interval of the difference."""
    p: float | None
    """P-value of no difference, corrected for the number of rows; None with fewer than 10
    sessions, or if all differences are equal."""


@dataclass(frozen=True)
class ComparedTask:
    """Targets of a target task."""

    kind: TargetKind
    targets: int
    mean: float
    """Share of positives, or mean number in the units of the log."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs and baselines on the targets of one part of the data."""

    part: str
    positions: Positions
    filter_seen: bool
    sessions: int
    """Sessions with a next item to rank; all sessions if no run ranks items."""
    targets: int
    """Number of ranked next items."""
    catalogue_items: int
    cutoffs: list[int]
    """Empty if no run ranks items."""
    rows: dict[str, ComparedRow]
    """Runs in their order, then baselines."""
    tests: dict[str, dict[str, PairedTest]]
    """By metric and row, for all rows with the metric except the best."""
    against_baseline: dict[str, dict[str, PairedTest]]
    """By metric and row of runs, the row minus the best baseline, named in `best`; empty without
    baselines. P-values are corrected for the number of runs."""
    tasks: dict[str, ComparedTask] = field(default_factory=dict)
    """Target tasks by name; their metrics are in the rows by `task.metric`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        rows = {name: ComparedRow(**row) for name, row in values["rows"].items()}
        tests = {
            key: {
                metric: {name: PairedTest(**test) for name, test in each.items()}
                for metric, each in values[key].items()
            }
            for key in ("tests", "against_baseline")
        }
        tasks = {name: ComparedTask(**task) for name, task in values.get("tasks", {}).items()}
        return cls(**{**values, "rows": rows, **tests, "tasks": tasks})

    def to_frame(self) -> "pd.DataFrame":
        """Return a frame with one row per row of the comparison and metric."""
        import pandas as pd

        lines = []
        for name, row in self.rows.items():
            for metric, value in row.results.items():
                test = self.tests.get(metric, {}).get(name)
                lines.append(
                    {
                        "model": name,
                        "runs": len(row.runs),
                        "metric": metric,
                        "value": value,
                        "margin": row.margins.get(metric),
                        "deviation": row.deviations.get(metric),
                        "best": self.is_best(metric, name),
                        "difference": None if test is None else test.difference,
                        "difference_margin": None if test is None else test.margin,
                        "p": None if test is None else test.p,
                    }
                )
        return pd.DataFrame(lines)

    def is_best(self, metric: str, name: str) -> bool:
        """Whether a row is the best in a tested metric, or does not differ from the best."""
        if metric not in self.tests or self.rows[name].results.get(metric) is None:
            return False
        test = self.tests[metric].get(name)
        return test is None or (
            test.difference == 0 or (test.p is not None and test.p >= SIGNIFICANCE)
        )

    def to_text(self) -> str:
        """Return the tables of models and metrics, and the differences from the best."""
        return _text(self)

    __str__ = to_text


@dataclass(frozen=True)
class MetricTable:
    """Rows and columns of a table."""

    heads: list[str]
    """Metrics, one per column."""
    rows: list[str]
    """Names of rows: all runs, and baselines with one of the metrics."""


def tables(comparison: Comparison) -> list[MetricTable]:
    """One table per cutoff, then one per target task."""
    heads = [metrics_at(comparison, cutoff) for cutoff in comparison.cutoffs]
    heads += [_task_metrics(comparison, task) for task in comparison.tasks]
    return [
        MetricTable(
            names,
            [
                name
                for name, row in comparison.rows.items()
                if row.runs or {*names} & {*row.results}
            ],
        )
        for names in heads
    ]


def metrics_at(comparison: Comparison, cutoff: int) -> list[str]:
    """Metrics of ranks and lists: the default ones, then those on request."""
    every = dict.fromkeys(name for row in comparison.rows.values() for name in row.results)
    requested = on_request(every, cutoff)
    return [*(f"{metric}@{cutoff}" for metric in (*RANKS, *LISTS)), *requested]


def _task_metrics(comparison: Comparison, task: str) -> list[str]:
    every = dict.fromkeys(name for row in comparison.rows.values() for name in row.results)
    return [name for name in every if name.rpartition(".")[0] == task]


def shown_metrics(comparison: Comparison) -> dict[str, str]:
    """Metrics of charts, differences and verdicts, with their units."""
    shown = {
        f"{metric}@{cutoff}": RANK_UNITS[metric]
        for cutoff in comparison.cutoffs[-1:]
        for metric in RANKS
    }
    for name, task in comparison.tasks.items():
        metric, unit = _TASK_UNITS[task.kind]
        shown[f"{name}.{metric}"] = unit
    return shown


def rows_with(comparison: Comparison, metric: str) -> list[str]:
    """Names of the rows for which a metric is defined, best first."""
    values = {name: row.results.get(metric) for name, row in comparison.rows.items()}
    numbers = {name: value for name, value in values.items() if value is not None}
    return sorted(numbers, key=numbers.__getitem__, reverse=not lower_is_better(metric))


def row_label(comparison: Comparison, name: str) -> str:
    """Name of a row, with the number of seeds."""
    count = len(comparison.rows[name].runs)
    return f"{name} ({count} seeds)" if count > 1 else name


def _text(comparison: Comparison) -> str:
    """Tables for a terminal."""
    lines = [headline(comparison), *verdicts(comparison)]
    for table in tables(comparison):
        heads = table.heads
        rows = [
            [row_label(comparison, name), *(_text_cell(comparison, name, head) for head in heads)]
            for name in table.rows
        ]
        lines += ["", *_columns([["", *heads], *rows])]
    for metric in shown_metrics(comparison):
        lines += ["", *_differences(comparison, metric)]
    every = dict.fromkeys(name for row in comparison.rows.values() for name in row.results)
    requested = [name for cutoff in comparison.cutoffs for name in on_request(every, cutoff)]
    lines += ["", *_LEGEND.splitlines(), *request_legend(requested)]
    return "\n".join(map(shown, lines))


def headline(comparison: Comparison) -> str:
    """One line on the ranked and predicted targets."""
    seen = ", seen ones left out" if comparison.filter_seen else ""
    ranked = (
        f"{comparison.targets:,} targets ({comparison.positions} positions of the "
        f"{comparison.part} sessions), {comparison.catalogue_items:,} items ranked{seen}"
    )
    tasks = [
        f"{name}: {task.targets:,} targets of the {comparison.part} sessions, "
        + (f"{task.mean:.1%} positive" if task.kind == "binary" else f"mean {task.mean:.4g}")
        for name, task in comparison.tasks.items()
    ]
    return "; ".join([*([ranked] if comparison.cutoffs else []), *tasks])


def verdicts(comparison: Comparison) -> list[str]:
    """One sentence per row of runs: the metrics in which it is better or worse than the best
    baseline."""
    lines = []
    for name, row in comparison.rows.items():
        words = {
            metric: _word(metric, comparison.against_baseline[metric][name])
            for metric in shown_metrics(comparison)
            if row.runs and name in comparison.against_baseline.get(metric, {})
        }
        lines += [verdict(name, words)] if words else []
    return lines


def _word(metric: str, test: PairedTest) -> str:
    if test.difference and test.p is None:
        return "not tested against"
    if test.p is None or test.p >= SIGNIFICANCE:
        return "no different from"
    is_better = (test.difference > 0) != lower_is_better(metric)
    return "better than" if is_better else "worse than"


def _text_cell(comparison: Comparison, name: str, metric: str) -> str:
    row = comparison.rows[name]
    value = row.results.get(metric)
    if value is None:
        return "-"
    star = "*" if comparison.is_best(metric, name) else ""
    cell = with_margin(value, row.margins.get(metric), decimals(metric)) + star
    deviation = row.deviations.get(metric)
    return cell if deviation is None else f"{cell} sd {deviation:.4f}".replace("sd 0", "sd ")


def _differences(comparison: Comparison, metric: str) -> list[str]:
    tests = comparison.tests.get(metric)
    if not tests:
        return []
    best = next(iter(tests.values())).best
    rows = []
    for name in (name for name in rows_with(comparison, metric) if name in tests):
        test = tests[name]
        margin = "" if test.margin is None else f"±{test.margin:.4f}".replace("±0", "±")
        rows.append([name, f"{test.difference:+.4f} {margin}".rstrip(), p_text(test)])
    return [f"{metric} minus that of {best}, the best", *_columns(rows)]


def p_text(test: PairedTest) -> str:
    """Format a p-value."""
    p = test.p
    if p is None:
        return "not tested" if test.difference else "no difference"
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
