"""The report of a run as HTML."""

from typing import Any

import yaml

from pipeline.reports.charts import IntervalChart, LineChart, interval_chart, line_chart
from pipeline.reports.rendering import render_page

_SHOWN = ("recall", "ndcg", "mrr")
_LISTS = {"coverage": "coverage", "popularity": "popularity", "popularity_bias": "popularity bias"}


def render(report: dict[str, Any]) -> str:
    """HTML page of a report, which is the content of report.json; ids and names are escaped."""
    evaluation = report["evaluation"]
    values = {
        "report": report,
        "evaluation": evaluation,
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
    return {
        "run": run,
        "shown": shown,
        "tables": [
            {
                "ranks": [f"{metric}@{cutoff}" for metric in _SHOWN],
                "lists": {f"{name}@{cutoff}": f"{head}@{cutoff}" for name, head in _LISTS.items()},
            }
            for cutoff in reversed(cutoffs)
        ],
        "verdict": _verdict({name: evaluation["differences"].get(name) for name in shown}),
        "intervals": [_intervals(metric, results, margins) for metric in shown],
        "highest": {
            by: max(group["results"][name][shown[0]] for group in groups for name in results)
            for by, groups in evaluation["breakdowns"].items()
        },
    }


def _verdict(differences: dict[str, dict[str, Any] | None]) -> str:
    """In which metrics the run is better or worse than the best baseline, beyond the interval."""
    metrics: dict[str, list[str]] = {}
    for metric, difference in differences.items():
        if difference is not None:
            value, margin = difference["difference"], difference["margin"] or 0.0
            word = "no different from" if abs(value) <= margin else "better than"
            word = "worse than" if value < -margin else word
            metrics.setdefault(word, []).append(metric)
    parts = [f"{word} the best baseline in {', '.join(names)}" for word, names in metrics.items()]
    return f"The run is {'; '.join(parts)}." if parts else ""


def _intervals(metric: str, results: dict[str, Any], margins: dict[str, Any]) -> IntervalChart:
    values = {name: (each[metric], margins[name][metric]) for name, each in results.items()}
    return interval_chart(metric, values)


def _curves(log: list[dict[str, Any]]) -> list[LineChart]:
    """Charts of the fields of a training log, whose lines need not have all of them."""
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
    charts = [
        line_chart("loss", x, {"training": points("loss"), "validation": points("eval_loss")})
    ]
    for cutoff in reversed(cutoffs):
        metrics = [f"{metric}@{cutoff}" for metric in _SHOWN]
        lines = {metric: points(f"eval_{metric}") for metric in metrics}
        charts.append(line_chart(f"validation, first {cutoff}", x, lines))
    of_targets = sorted(name for name in validation if name.endswith((".auc", ".rmse")))
    for name in of_targets:
        metric = name.removeprefix("eval_")
        charts.append(line_chart(f"validation, {metric}", x, {metric: points(name)}))
    charts += [
        line_chart(title, x, {title: points(field)}, from_zero=True)
        for field, title in (
            ("learning_rate", "learning rate"),
            ("grad_norm", "norm of the gradient"),
            ("sessions_per_second", "sessions per second"),
            ("peak_memory_mb", "peak memory, MiB"),
        )
    ]
    return [chart for chart in charts if chart is not None]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _yaml(values: Any) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return text
