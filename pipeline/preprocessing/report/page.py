"""The report of data as HTML."""

import math
from typing import Any

from pipeline.core.columns import ITEM
from pipeline.preprocessing.report.drift import LITTLE, MUCH
from pipeline.preprocessing.report.drifting import drifting
from pipeline.reports.charts import BarChart, LineChart, bar_chart, line_chart, number
from pipeline.reports.rendering import rendered

_WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_LENGTH_GROUPS = 12
_TIME_TICKS = 3


def render(report: dict[str, Any]) -> str:
    """What `facts.report_of` gives -> the page. Values of the log are escaped."""
    parts = report["parts"]
    columns = parts["train"]["columns"]
    charts = [
        _lengths(parts),
        _popularity(parts),
        _time(report["time"]),
        _shares("hour of the day, % of interactions", "hour, UTC", parts, "hours"),
        _shares("day of the week, % of interactions", "UTC", parts, "weekdays"),
    ]
    values = {
        "report": report,
        "parts": parts,
        "charts": [chart for chart in charts if chart is not None],
        "categorical": [name for name, c in columns.items() if c["kind"] == "categorical"],
        "continuous": [name for name, c in columns.items() if c["kind"] == "continuous"],
        "quantiles": [name for c in columns.values() for name in c if name.endswith(" %")][:7],
        "drifting": drifting(report),
        "item": ITEM,
        "little": LITTLE,
        "much": MUCH,
        "percent": percent,
    }
    return rendered("pipeline.preprocessing.report", values)


def percent(count: float, of: float = 1) -> str:
    """A share with two digits or so: `12 %`, `1.3 %`, `under 0.01 %`; a dash of nothing."""
    if not of:
        return "–"
    share = 100 * count / of
    if 0 < share < 0.01:
        return "under 0.01 %"
    if 99.9 < share < 100:
        return "over 99.9 %"
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.2g} %"


def _lengths(parts: dict[str, Any]) -> BarChart | None:
    longest = max((part["lengths"]["histogram"] for part in parts.values()), key=len)
    spans = [(group["from"], group["to"]) for group in longest]
    names = [f"{low}" if low == high else f"{low}–{high}" for low, high in spans]
    shown = min(len(names), _LENGTH_GROUPS)
    if shown < len(names):
        names = [*names[: shown - 1], f"{spans[shown - 1][0]}+"]
    series = {}
    for name, part in parts.items():
        counts = [group["sessions"] for group in part["lengths"]["histogram"]]
        counts += [0] * (len(spans) - len(counts))
        counts = [*counts[: shown - 1], sum(counts[shown - 1 :])]
        series[name] = [100 * count / part["sessions"] for count in counts]
    return bar_chart("session length, % of sessions", "interactions", names, series)


def _popularity(parts: dict[str, Any]) -> LineChart | None:
    series = {
        name: [(math.log10(share), 100 * reached) for share, reached in part["popularity"]["curve"]]
        for name, part in parts.items()
    }
    least = min((points[0][0] for points in series.values() if points), default=0.0)
    ticks = [(float(power), f"{number(100 * 10.0**power)} %") for power in range(int(least), 1)]
    return line_chart(
        "% of interactions with the most popular items",
        "share of the items",
        series,
        from_zero=True,
        x_texts=ticks,
        x_names=lambda power: f"{number(100 * 10.0**power)} %",
    )


def _time(time: dict[str, Any] | None) -> LineChart | None:
    if time is None:
        return None
    starts = time["starts"]
    series = {}
    for name, counts in time["parts"].items():
        there = [place for place, count in enumerate(counts) if count]
        span = range(there[0], there[-1] + 1) if there else range(0)
        series[name] = [(float(place), float(counts[place])) for place in span]
    step = max(1, -(-len(starts) // _TIME_TICKS))
    # the first and the last stand at the ends of the axis, where half of a date has room
    ticks = [(float(place), starts[place]) for place in range(step // 2, len(starts), step)]
    title = f"interactions by {time['unit']}"
    return line_chart(
        title,
        "UTC",
        series,
        from_zero=True,
        x_texts=ticks,
        x_names=lambda place: str(starts[int(place)]),
    )


def _shares(title: str, label: str, parts: dict[str, Any], key: str) -> BarChart | None:
    series = {
        name: [100 * count / sum(part[key]) for count in part[key]]
        for name, part in parts.items()
        if part[key] and sum(part[key])
    }
    groups = _WEEKDAYS if key == "weekdays" else [str(hour) for hour in range(24)]
    return bar_chart(title, label, groups, series)
