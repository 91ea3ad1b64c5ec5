"""The report of a run as HTML."""

from typing import Any

import yaml

from pipeline.evaluation.result import RANK_UNITS, decimals, on_request, request_legend, verdict
from pipeline.reports.charts import IntervalChart, LineChart, interval_chart, line_chart
from pipeline.reports.rendering import render_page

_SHOWN = ("recall", "ndcg", "mrr")
_FACT_NAMES = {
    "seconds": "time, seconds",
    "train_loss": "mean training loss",
    "trained_on": "fingerprint of the data",
}
_LISTS = {"coverage": "coverage", "popularity": "popularity", "popularity_bias": "popularity bias"}


def render(report: dict[str, Any]) -> str:
    """HTML page of the content of report.json; ids and names are escaped."""
    evaluation = report["evaluation"]
    values = {
        "report": report,
        "evaluation": evaluation,
        "fact_names": _FACT_NAMES,
        "curves": _curves(report["training"]["log"]),
        "config": [(name, _yaml(values)) for name, values in report["config"].items()],
        **({} if evaluation is None else _of_evaluation(evaluation)),
    }
    return render_page("pipeline.training.report", values)


def _of_evaluation(evaluation: dict[str, Any]) -> dict[str, Any]:
    results, margins = evaluation["results"], evaluation["margins"]
    if not results:  # the run does not predict the next item
        return {}
    run = next(iter(results))
    cutoffs = sorted({int(name.split("@")[1]) for name in results[run]})
    shown = [f"{metric}@{cutoffs[-1]}" for metric in _SHOWN]
    differences = evaluation["differences"]
    words = {name: _word(differences[name]) for name in shown if name in differences}
    return {
        "run": run,
        "shown": shown,
        "tables": [
            {
                "ranks": [f"{metric}@{cutoff}" for metric in _SHOWN],
                "requested": on_request(results[run], cutoff),
                "lists": {f"{name}@{cutoff}": f"{head}@{cutoff}" for name, head in _LISTS.items()},
            }
            for cutoff in reversed(cutoffs)
        ],
        "decimals": decimals,
        "requested_legend": request_legend(on_request(results[run], cutoffs[-1])),
        "words": words,
        "verdict": verdict("The run", words),
        "worse_groups": _worse_groups(evaluation, shown[0]),
        "intervals": [_intervals(metric, results, margins) for metric in shown],
        "highest": {
            by: max(group["results"][name][shown[0]] for group in groups for name in results)
            for by, groups in evaluation["breakdowns"].items()
        },
    }


def _word(difference: dict[str, Any]) -> str:
    value, margin = difference["difference"], difference["margin"] or 0.0
    if abs(value) <= margin:
        return "no different from"
    return "better than" if value > 0 else "worse than"


def _worse_groups(evaluation: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """Groups of targets in which a baseline is significantly better than the run."""
    return [
        {"by": by, "group": group["group"], **group["differences"][metric]}
        for by, groups in evaluation["breakdowns"].items()
        for group in groups
        if group["differences"] and _word(group["differences"][metric]) == "worse than"
    ]


def _intervals(metric: str, results: dict[str, Any], margins: dict[str, Any]) -> IntervalChart:
    values = {name: (each[metric], margins[name][metric]) for name, each in results.items()}
    return interval_chart(metric, f"{RANK_UNITS[metric.split('@')[0]]}, with 95 % interval", values)


def _curves(log: list[dict[str, Any]]) -> list[LineChart]:
    """Charts of the fields of a training log; lines may lack fields."""
    x = "epoch" if all("epoch" in line for line in log) else "step"

    def points(field: str) -> list[tuple[float, float]]:
        return [
            (float(line[x]), float(line[field]))
            for line in log
            if _is_number(line.get(field)) and _is_number(line.get(x))
        ]

    validation = {name for line in log for name in line if name.startswith("eval_")}
    names = [name.removeprefix("eval_").split("@") for name in validation]
    cutoffs = sorted({int(cutoff[0]) for metric, *cutoff in names if metric in _SHOWN})
    series = {"training": points("loss"), "validation": points("eval_loss")}
    charts = [line_chart("Loss", x, "mean loss of a target", series)]
    for cutoff in reversed(cutoffs):
        metrics = [f"{metric}@{cutoff}" for metric in _SHOWN]
        lines = {metric: points(f"eval_{metric}") for metric in metrics}
        title = f"Validation, first {cutoff} of the list"
        charts.append(line_chart(title, x, "share or mean, 0 to 1", lines))
    of_targets = sorted(name for name in validation if name.endswith((".auc", ".rmse")))
    for name in of_targets:
        metric = name.removeprefix("eval_")
        unit = "area, 0.5 by chance" if name.endswith(".auc") else "units of the log"
        charts.append(line_chart(f"Validation, {metric}", x, unit, {metric: points(name)}))
    charts += [
        line_chart(title, x, unit, {title: points(field)}, from_zero=True)
        for field, title, unit in (
            ("learning_rate", "Learning rate", "factor of an update"),
            ("grad_norm", "Norm of the gradient", "L2 norm, before clipping"),
            ("sessions_per_second", "Speed of training", "sessions per second"),
            ("peak_memory_mb", "Peak memory", "MiB"),
        )
    ]
    return [chart for chart in charts if chart is not None]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _yaml(values: Any) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return text
