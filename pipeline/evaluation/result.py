"""The result of an evaluation: metrics of each model with margins, differences and groups."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline.core.text import shown
from pipeline.evaluation.target_metrics import TargetKind
from pipeline.evaluation.targets import Positions
from pipeline.recipe.choices import METRICS_ON_REQUEST, PLUGIN_METRICS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_WITH_MARGIN = ("recall", "ndcg", "mrr")
"""Metrics that the table shows with their margin."""
_OF_LISTS = {"coverage": "coverage", "popularity": "popularity", "popularity_bias": "bias"}
"""Metrics of the lists, with their headings."""
_LEGEND = """\
±: half the 95 % interval, over sessions. coverage: share of the items that some list holds;
popularity: mean number of training interactions of the recommended items; bias: this value
divided by that of the true next items. With one target each, recall is the hit rate, dcg is ndcg
and map is mrr."""
REQUEST_LEGEND = {
    "novelty": "novelty: mean -log2(share of training sessions with it) of the items of a list",
    "serendipity": "serendipity: gain of a hit by how much earlier it stands than by popularity",
    "diversity": "diversity: mean distance of a list's items, 1 - cosine over training sessions, "
    "or by a column",
    "miscalibration": "miscalibration: popularity in a list against the items before the target, 0 "
    "where equal",
    "debiased": "debiased: with fewer targets of popular items, none above Q3 + 1.5 IQR",
}
"""Definitions of the metrics on request, see `pipeline.evaluation.list_metrics`."""
_SHORT_NAMES = {
    "popularity": "popular",
    "recent-popularity": "recent",
    "co-visitation": "co-visit",
    "sequential-rules": "rules",
    "session-knn": "knn",
}
"""Short headings of the baselines."""

TRAINING_MEAN = "training-mean"
"""Baseline of target tasks."""

RANK_UNITS = {
    "recall": "share of the targets",
    "ndcg": "mean gain of a target, 0 to 1",
    "mrr": "mean of 1 / rank, 0 to 1",
}
"""Axis labels of the metrics."""

Metrics = Mapping[str, float]
"""Value by `metric@K`."""
Margins = Mapping[str, float | None]
"""Half the 95 % interval by `metric@K`; None where `metrics.margin` is None."""


@dataclass(frozen=True)
class Difference:
    """A metric of the run minus that of the best baseline, on the same targets."""

    baseline: str
    difference: float
    margin: float | None


@dataclass(frozen=True)
class GroupResult:
    """Metrics over the targets of one group, by model."""

    group: str
    targets: int
    sessions: int
    results: dict[str, Metrics]
    margins: dict[str, Margins]
    differences: dict[str, Difference]
    """By metric, over the targets of the group; empty without baselines."""


@dataclass(frozen=True)
class TargetResult:
    """Metrics of a target task."""

    kind: TargetKind
    targets: int
    mean: float | None
    """Share of positives, or mean number in the units of the log; None without a target."""
    results: dict[str, Mapping[str, float | None]]
    """By model, the run first, see `pipeline.evaluation.target_metrics`; TRAINING_MEAN always
    predicts the mean target of the train part."""
    fill_value: float | None = None
    """Number that replaces a missing one; None for a binary target, which is left out if
    missing."""
    filled: int = 0
    """Number of targets equal to `fill_value`."""
    margins: dict[str, Margins] = field(default_factory=dict)
    """Half the 95 % interval by model and metric; without calibration and calibration_error."""


@dataclass(frozen=True)
class Cost:
    """Time and memory of an evaluation."""

    seconds: dict[str, float]
    """Seconds of fitting and ranking, by model."""
    sessions_per_second: float
    targets_per_second: float
    peak_memory_mb: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a run and of the baselines on the targets of one part of the data."""

    part: str
    positions: Positions
    filter_seen: bool
    sessions: int
    """Sessions with a target."""
    targets: int
    unknown_targets: int
    """Targets outside the catalogue of the run."""
    other_data: bool
    """Whether the run was trained on other sessions than the train part of the data."""
    new_items: int
    """Items of the data outside the catalogue of the run."""
    catalogue_items: int
    results: dict[str, Mapping[str, float | None]]
    """By model, the run first: metrics of ranks and of top-K lists by `metric@K`. None for an
    undefined metric, such as the popularity bias if no target occurs in training. Empty for a run
    that does not rank items."""
    margins: dict[str, Margins]
    """By model, for the metrics of ranks."""
    differences: dict[str, Difference]
    """By metric; empty without baselines."""
    breakdowns: dict[str, list[GroupResult]]
    """Groups of targets by criterion; those of `by` come first."""
    tasks: dict[str, TargetResult]
    """Results of the target tasks, by name."""
    cost: Cost
    by: tuple[str, ...] = ()
    """Names of the groups by columns of the data."""
    ranks: "pa.Table | None" = field(default=None, repr=False, compare=False)
    """One row per target, in the order of sessions and positions: `session_id` (its number if the
    data have no ids), `position` in the session from 0, `item_id`, and the 1-based rank by each
    model, after the catalogue for an unknown item. None if the run does not rank items."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, without `ranks`."""
        return asdict(replace(self, ranks=None), dict_factory=_without_ranks)

    def to_frame(self) -> "pd.DataFrame":
        """Return the metrics with models as rows and `metric@K` as columns."""
        import pandas as pd

        frame = pd.DataFrame.from_dict(self.results, orient="index")
        return frame.rename_axis(index="model", columns="metric")

    def to_text(self, *, breakdown: bool = False) -> str:
        """Return the table of models and metrics, and the tables of groups by columns.

        With `breakdown`, the tables of the default groups follow.
        """
        lines = _ranking_text(self, breakdown=breakdown) if self.results else []
        for name, task in self.tasks.items():
            lines += ["", *_task_table(name, task)]
        return "\n".join(map(shown, lines)).lstrip("\n")

    __str__ = to_text


def _without_ranks(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name != "ranks"}


def _ranking_text(evaluation: Evaluation, *, breakdown: bool) -> list[str]:
    results = evaluation.results
    cutoffs = sorted({int(name.split("@")[1]) for name in next(iter(results.values()))})
    lines = [
        f"{evaluation.targets:,} targets ({evaluation.positions} positions of the "
        f"{evaluation.part} sessions), {evaluation.catalogue_items:,} items ranked"
        f"{', seen ones left out' if evaluation.filter_seen else ''}, "
        f"{evaluation.unknown_targets:,} targets unknown"
    ]
    if evaluation.other_data:
        lines += _other_data_text(evaluation)
    for cutoff in cutoffs:
        lines += ["", *_metrics_table(evaluation, cutoff), *_request_table(evaluation, cutoff)]
    lines += _differences_text(evaluation.differences, cutoffs[-1])
    shown = [by for by in evaluation.breakdowns if breakdown or by in evaluation.by]
    lines += _breakdown_text(evaluation, shown, f"recall@{cutoffs[-1]}")
    return [
        *lines,
        "",
        *_LEGEND.splitlines(),
        *request_legend(on_request(next(iter(results.values())), cutoffs[-1])),
    ]


def on_request(results: Iterable[str], cutoff: int) -> list[str]:
    """Names of the metrics on request at a cutoff among `results`."""
    names = [name for name in results if name.endswith(f"@{cutoff}")]
    return [name for name in names if re.split("[@:_]", name)[0] in METRICS_ON_REQUEST]


def request_legend(names: Iterable[str]) -> list[str]:
    """Definitions of these metrics, one line each."""
    kinds = dict.fromkeys(re.split("[@:_]", name)[0] for name in names)
    return [f"{REQUEST_LEGEND[kind]}." for kind in kinds]


def _request_table(evaluation: Evaluation, cutoff: int) -> list[str]:
    """Return one row per model with the metrics on request; empty without any."""
    names = on_request(next(iter(evaluation.results.values())), cutoff)
    if not names:
        return []
    width = max(map(len, evaluation.results))
    widths = [max(5 + 2 * decimals(name), len(name)) for name in names]
    heads = [f"{name:<{each}}" for name, each in zip(names, widths, strict=True)]
    lines = ["  ".join([" " * width, *heads]).rstrip()]
    for model, values in evaluation.results.items():
        margins = evaluation.margins[model]
        cells = [
            f"{with_margin(values[name], margins[name], decimals(name)):<{each}}"
            for name, each in zip(names, widths, strict=True)
        ]
        lines.append("  ".join([f"{model:<{width}}", *cells]).rstrip())
    return ["", *lines]


def _task_table(name: str, task: TargetResult) -> list[str]:
    """Return the metrics of a target task, one row per model."""
    if task.mean is None:
        return [f"{name}: no session has one"]
    mean = f"{task.mean:.1%} positive" if task.kind == "binary" else f"mean {task.mean:.4g}"
    width = max(map(len, task.results))
    heads = next(iter(task.results.values()))
    lines = [f"{name}: {task.targets:,} targets, {mean}"]
    if task.filled:
        lines[0] += f"; {task.filled:,} are {task.fill_value:.4g}, as missing numbers are"
    lines.append("  ".join([" " * width, *(f"{head:>9}" for head in heads)]))
    for model, values in task.results.items():
        cells = [f"{_number(values[head]):>{max(9, len(head))}}" for head in heads]
        lines.append("  ".join([f"{model:<{width}}", *cells]))
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def _metrics_table(evaluation: Evaluation, cutoff: int) -> list[str]:
    """Return one row per model."""
    width = max(map(len, evaluation.results))
    of_run = next(iter(evaluation.results.values()))
    own = [name for name in PLUGIN_METRICS if f"{name}@{cutoff}" in of_run]
    metrics = [f"{name}@{cutoff}" for name in (*_WITH_MARGIN, *own)]
    of_lists = {f"{name}@{cutoff}": f"{head}@{cutoff}" for name, head in _OF_LISTS.items()}
    heads = [f"{name:<13}" for name in metrics]
    lines = ["  ".join([" " * width, *heads, *of_lists.values()])]
    for model, values in evaluation.results.items():
        margins = evaluation.margins[model]
        cells = [f"{with_margin(values[name], margins[name]):<13}" for name in metrics]
        cells += [f"{_cell(name, values[name]):>{len(head)}}" for name, head in of_lists.items()]
        lines.append("  ".join([f"{model:<{width}}", *cells]))
    return lines


def _other_data_text(evaluation: Evaluation) -> list[str]:
    count = evaluation.new_items
    new = f", and does not know {count:,} of their items" if count else ""
    lines = [f"The run was trained on other sessions than the data have{new}."]
    if evaluation.part == "train":
        lines.append("Baselines could learn from these same sessions alone, so they are left out.")
    elif len(evaluation.results) > 1:
        lines.append("The baselines have learned from the train part of the data, the run has not.")
    return lines


def _differences_text(differences: dict[str, Difference], cutoff: int) -> list[str]:
    """Return the differences between the run and the best baseline, on the same targets."""
    lines = []
    for name in (f"{metric}@{cutoff}" for metric in _WITH_MARGIN):
        if name in differences:
            entry = differences[name]
            value = f"{entry.difference:+.4f} {_margin(entry.margin)}"
            lines.append(f"{name} minus that of {entry.baseline}, the best baseline: {value}")
    return ["", *lines] if lines else []


def _breakdown_text(evaluation: Evaluation, shown: list[str], metric: str) -> list[str]:
    """Return a table of groups by models for each of these criteria."""
    run, *baselines = evaluation.results
    heads = [_SHORT_NAMES.get(name, name) for name in baselines]
    lines = []
    for by, groups in ((by, evaluation.breakdowns[by]) for by in shown):
        width = max(len(by), *(len(group.group) for group in groups))
        first = f"{by:<{width}}  {'targets':>9}  {run[:13]:<13}"
        lines += ["", f"{metric} by {by}", "  ".join([first, *heads]).rstrip()]
        for group in groups:
            own = with_margin(group.results[run][metric], group.margins[run][metric])
            cells = [
                f"{group.results[name][metric]:>{len(head)}.3f}"
                for name, head in zip(baselines, heads, strict=True)
            ]
            first = f"{group.group:<{width}}  {group.targets:>9,}  {own:<13}"
            lines.append("  ".join([first, *cells]).rstrip())
    return lines


def verdict(subject: str, words: Mapping[str, str]) -> str:
    """Sentence that compares a model with the best baseline; `words` by metric, such as "worse
    than"."""
    metrics: dict[str, list[str]] = {}
    for metric, word in words.items():
        metrics.setdefault(word, []).append(metric)
    parts = [f"{word} the best baseline in {', '.join(names)}" for word, names in metrics.items()]
    return f"{subject} is {'; '.join(parts)}." if parts else ""


def decimals(metric: str) -> int:
    """Decimals of a metric; serendipity is divided by the catalogue size."""
    return 6 if metric.startswith("serendipity@") else 4


def with_margin(value: float | None, margin: float | None, digits: int = 4) -> str:
    """Return a metric with half its 95 % interval, as in 0.4736 ±.0161."""
    return "-" if value is None else f"{value:.{digits}f} {_margin(margin, digits)}".rstrip()


def _margin(margin: float | None, digits: int = 4) -> str:
    return "" if margin is None else f"±{margin:.{digits}f}".replace("±0", "±")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if name.startswith("popularity@") else f"{value:.4f}"
