"""The data report as an HTML page and as JSON."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.columns import ITEM
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.report.counts import PartCounts
from pipeline.preprocessing.report.drift import LITTLE, MUCH, drifting_columns
from pipeline.preprocessing.report.summary import summarize
from pipeline.reports import JSON_FILE, PAGE_FILE
from pipeline.reports.charts import BarChart, LineChart, bar_chart, format_number, line_chart
from pipeline.reports.rendering import render_page

_WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_LENGTH_GROUPS = 12
_TIME_TICKS = 3


def write_report(
    directory: Path, fitted: Fitted, facts: dict[str, Any], counts: dict[str, PartCounts]
) -> dict[str, Any]:
    """Write report.html and report.json into a data directory.

    Takes the arguments of `summary.summarize`. Returns for the manifest {"drift", "notes"}: the
    columns of each part that drift much, and all notes.
    """
    report = summarize(fitted, facts, counts)
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (directory / JSON_FILE).write_text(text, encoding="utf-8")
    (directory / PAGE_FILE).write_text(render(report), encoding="utf-8")
    return {"drift": drifting_columns(report), "notes": report["notes"]}


def render(report: dict[str, Any]) -> str:
    """The page of a report of `summary.summarize`; values of the log are escaped."""
    parts = report["parts"]
    columns = parts["train"]["columns"]
    charts = [
        _length_chart(parts),
        _popularity_chart(parts),
        _time_chart(report["time"]),
        _share_chart("Hour of the day", "hour, UTC", parts, "hours"),
        _share_chart("Day of the week", "day, UTC", parts, "weekdays"),
    ]
    values = {
        "report": report,
        "parts": parts,
        "charts": [chart for chart in charts if chart is not None],
        "categorical": [name for name, c in columns.items() if c["kind"] == "categorical"],
        "continuous": [name for name, c in columns.items() if c["kind"] == "continuous"],
        "quantiles": [name for c in columns.values() for name in c if name.endswith(" %")][:7],
        "drifting": drifting_columns(report),
        "item": ITEM,
        "little": LITTLE,
        "much": MUCH,
        "percent": percent,
        "moment": _date if report["time"] is None or report["time"]["calendar"] else _seconds,
    }
    return render_page("pipeline.preprocessing.report", values)


def percent(count: float, total: float = 1) -> str:
    """A share with about two digits: `12 %`, `1.3 %`, `under 0.01 %`; a dash if `total` is 0."""
    if not total:
        return "–"
    share = 100 * count / total
    if 0 < share < 0.01:
        return "under 0.01 %"
    if 99.9 < share < 100:
        return "over 99.9 %"
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.2g} %"


def _date(moment: str) -> str:
    """Format a date: `2026-01-05 00:02:19`."""
    return moment.replace("T", " ").replace("Z", "")


def _seconds(moment: str) -> str:
    """Format a time that is a counter, in seconds as in the log."""
    seconds = (np.datetime64(moment.removesuffix("Z")) - np.datetime64(0, "s")).item()
    return f"{seconds.total_seconds():,.15g} s"


def _length_chart(parts: dict[str, Any]) -> BarChart | None:
    longest = max((part["lengths"]["histogram"] for part in parts.values()), key=len)
    ranges = [(group["from"], group["to"]) for group in longest]
    labels = [f"{low}" if low == high else f"{low}–{high}" for low, high in ranges]
    num_groups = min(len(labels), _LENGTH_GROUPS)
    if num_groups < len(labels):
        labels = [*labels[: num_groups - 1], f"{ranges[num_groups - 1][0]}+"]
    series = {}
    for name, part in parts.items():
        counts = [group["sessions"] for group in part["lengths"]["histogram"]]
        counts += [0] * (len(ranges) - len(counts))
        counts = [*counts[: num_groups - 1], sum(counts[num_groups - 1 :])]
        series[name] = [100 * count / part["sessions"] for count in counts]
    return bar_chart("Session length", "interactions of a session", "% of sessions", labels, series)


def _popularity_chart(parts: dict[str, Any]) -> LineChart | None:
    series = {
        name: [
            (math.log10(items), 100 * interactions)
            for items, interactions in part["popularity"]["curve"]
        ]
        for name, part in parts.items()
    }
    lowest = min((points[0][0] for points in series.values() if points), default=0.0)

    def label(power: float) -> str:
        return f"{format_number(100 * 10.0**power)} %"

    return line_chart(
        "Interactions with the most popular items",
        "% of the items, the most popular first",
        "% of interactions",
        series,
        from_zero=True,
        x_labels={float(power): label(power) for power in range(int(lowest), 1)},
        format_x=label,
    )


def _time_chart(time: dict[str, Any] | None) -> LineChart | None:
    if time is None:
        return None
    starts = time["starts"]
    series = {}
    for name, counts in time["parts"].items():
        filled = [index for index, count in enumerate(counts) if count]
        indices = range(filled[0], filled[-1] + 1) if filled else range(0)
        series[name] = [(float(index), float(counts[index])) for index in indices]
    step = max(1, -(-len(starts) // _TIME_TICKS))
    # labels begin half a step from the axis end, so that no date is cut off
    labels = {float(index): starts[index] for index in range(step // 2, len(starts), step)}
    unit = time["unit"]
    since = "hours" if unit == "hour" else "days"
    outside = f", {time['outside']:,} far from the others left out" if time["outside"] else ""
    return line_chart(
        f"Interactions by {unit}{outside}",
        "UTC" if time["calendar"] else f"{since} since the first interaction",
        f"interactions of a{'n' if unit == 'hour' else ''} {unit}",
        series,
        from_zero=True,
        x_labels=labels,
        format_x=lambda index: str(starts[int(index)]),
    )


def _share_chart(title: str, label: str, parts: dict[str, Any], key: str) -> BarChart | None:
    series = {
        name: [100 * count / sum(part[key]) for count in part[key]]
        for name, part in parts.items()
        if part[key] and sum(part[key])
    }
    groups = _WEEKDAYS if key == "weekdays" else [str(hour) for hour in range(24)]
    return bar_chart(title, label, "% of interactions", groups, series)
