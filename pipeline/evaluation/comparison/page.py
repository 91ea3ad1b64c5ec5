"""A comparison as an HTML page."""

from pipeline import __version__
from pipeline.evaluation.comparison.result import (
    RANKS,
    Comparison,
    MetricTable,
    headline,
    p_text,
    row_label,
    rows_with,
    shown_metrics,
    tables,
    verdicts,
)
from pipeline.evaluation.result import RANK_UNITS, decimals, with_margin
from pipeline.reports.charts import LineChart, interval_chart, line_chart
from pipeline.reports.rendering import render_page

_MOST_LINES = 3
"""Maximum rows of a line chart, as many as there are colours; the best rows are shown."""


def page(comparison: Comparison) -> str:
    """HTML page of a comparison; names are escaped."""
    labels = {name: row_label(comparison, name) for name in comparison.rows}
    shown = shown_metrics(comparison)
    page_tables = [
        {
            "heads": [head.replace("_", " ") for head in table.heads],
            "rows": [
                {
                    "label": labels[name],
                    "is_baseline": not comparison.rows[name].runs,
                    "cells": [_cell(comparison, name, head) for head in table.heads],
                }
                for name in table.rows
            ],
        }
        for table in sorted(tables(comparison), key=_longest_first)
    ]
    return render_page(
        __package__,
        {
            "written_by": f"pipeline {__version__}",
            "title": " and ".join(n for n in comparison.rows if comparison.rows[n].runs),
            "headline": headline(comparison),
            "verdicts": verdicts(comparison),
            "sessions": comparison.sessions,
            "intervals": [
                interval_chart(
                    metric,
                    f"{unit}, with 95 % interval",
                    {
                        labels[name]: _value(comparison, name, metric)
                        for name in rows_with(comparison, metric)
                    },
                )
                for metric, unit in shown.items()
            ],
            "curves": _curves(comparison, labels),
            "tables": page_tables,
            "differences": [
                {"metric": metric, "best": labels[best], "rows": rows}
                for metric, best, rows in _differences(comparison, labels)
            ],
        },
    )


def _value(comparison: Comparison, name: str, metric: str) -> tuple[float, float | None]:
    row = comparison.rows[name]
    return row.results[metric] or 0.0, row.margins.get(metric)


def _cell(comparison: Comparison, name: str, metric: str) -> dict[str, str | bool]:
    row = comparison.rows[name]
    value = row.results.get(metric)
    deviation = row.deviations.get(metric)
    return {
        "text": "-"
        if value is None
        else with_margin(value, row.margins.get(metric), decimals(metric)),
        "deviation": "" if deviation is None else f"sd {deviation:.4f}",
        "best": comparison.is_best(metric, name),
    }


def _longest_first(table: MetricTable) -> int:
    """Sort key: descending cutoff, then target tasks."""
    return -int(table.heads[0].partition("@")[2] or 0)


def _curves(comparison: Comparison, labels: dict[str, str]) -> list[LineChart]:
    """Line charts of metrics by cutoff, for the best rows."""
    if len(comparison.cutoffs) < 2:
        return []
    names = rows_with(comparison, f"ndcg@{comparison.cutoffs[-1]}")[:_MOST_LINES]
    charts = [
        line_chart(
            f"{metric} by length of the list",
            "items of the list",
            RANK_UNITS[metric],
            {
                labels[name]: [
                    (float(cutoff), comparison.rows[name].results[f"{metric}@{cutoff}"] or 0.0)
                    for cutoff in comparison.cutoffs
                ]
                for name in names
            },
            from_zero=True,
            x_labels={float(cutoff): str(cutoff) for cutoff in comparison.cutoffs},
        )
        for metric in RANKS
    ]
    return [chart for chart in charts if chart is not None]


def _differences(
    comparison: Comparison, labels: dict[str, str]
) -> list[tuple[str, str, list[dict[str, str]]]]:
    sections = []
    for metric in shown_metrics(comparison):
        tests = comparison.tests.get(metric)
        if not tests:
            continue
        rows = [
            {
                "label": labels[name],
                "difference": f"{tests[name].difference:+.4f}",
                "margin": "" if tests[name].margin is None else f"±{tests[name].margin:.4f}",
                "p": p_text(tests[name]),
            }
            for name in rows_with(comparison, metric)
            if name in tests
        ]
        sections.append((metric, next(iter(tests.values())).best, rows))
    return sections
