"""A comparison as a page of HTML."""

from pipeline import __version__
from pipeline.evaluation.comparison.result import (
    RANKS,
    Comparison,
    headline,
    metrics_at,
    p_text,
    row_label,
    verdicts,
)
from pipeline.evaluation.result import RANK_UNITS, with_margin
from pipeline.reports.charts import LineChart, interval_chart, line_chart
from pipeline.reports.rendering import render_page

_MOST_LINES = 3
"""Rows of a line chart, the best ones: more have no colour of their own."""


def page(comparison: Comparison) -> str:
    """HTML page of a comparison; names are escaped."""
    longest = comparison.cutoffs[-1]
    labels = {name: row_label(comparison, name) for name in comparison.rows}
    by_value = sorted(
        comparison.rows, key=lambda name: -(comparison.rows[name].results[f"ndcg@{longest}"] or 0)
    )
    tables = [
        {
            "heads": [head.replace("_", " ") for head in metrics_at(comparison, cutoff)],
            "rows": [
                {
                    "label": labels[name],
                    "is_baseline": not comparison.rows[name].runs,
                    "cells": [
                        _cell(comparison, name, head) for head in metrics_at(comparison, cutoff)
                    ],
                }
                for name in comparison.rows
            ],
        }
        for cutoff in reversed(comparison.cutoffs)
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
                    f"{metric}@{longest}",
                    f"{RANK_UNITS[metric]}, with 95 % interval",
                    {
                        labels[name]: _value(comparison, name, f"{metric}@{longest}")
                        for name in by_value
                    },
                )
                for metric in RANKS
            ],
            "curves": _curves(comparison, by_value[:_MOST_LINES], labels),
            "tables": tables,
            "differences": [
                {"metric": metric, "best": labels[best], "rows": rows}
                for metric, best, rows in _differences(comparison, longest, labels)
            ],
        },
    )


def _value(comparison: Comparison, name: str, metric: str) -> tuple[float, float | None]:
    row = comparison.rows[name]
    return row.results[metric] or 0.0, row.margins.get(metric)


def _cell(comparison: Comparison, name: str, metric: str) -> dict[str, str | bool]:
    row = comparison.rows[name]
    value = row.results[metric]
    deviation = row.deviations.get(metric)
    return {
        "text": "-" if value is None else with_margin(value, row.margins.get(metric)),
        "deviation": "" if deviation is None else f"sd {deviation:.4f}",
        "best": comparison.is_best(metric, name),
    }


def _curves(comparison: Comparison, names: list[str], labels: dict[str, str]) -> list[LineChart]:
    """Metrics by the length of the list."""
    if len(comparison.cutoffs) == 1:
        return []
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
    comparison: Comparison, cutoff: int, labels: dict[str, str]
) -> list[tuple[str, str, list[dict[str, str]]]]:
    sections = []
    for metric in (f"{metric}@{cutoff}" for metric in RANKS):
        tests = comparison.tests[metric]
        if not tests:
            continue
        rows = [
            {
                "label": labels[name],
                "difference": f"{tests[name].difference:+.4f}",
                "margin": "" if tests[name].margin is None else f"±{tests[name].margin:.4f}",
                "p": p_text(tests[name]),
            }
            for name in sorted(tests, key=lambda name: -tests[name].difference)
        ]
        sections.append((metric, next(iter(tests.values())).best, rows))
    return sections
