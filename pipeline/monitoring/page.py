"""The result of `pipeline monitor` as an HTML page."""

from collections.abc import Callable
from datetime import UTC, date, datetime

from pipeline import __version__
from pipeline.monitoring.groups import GroupStatistics
from pipeline.monitoring.outcomes import OnlineMetrics
from pipeline.monitoring.result import MonitorResult, headline, tables
from pipeline.preprocessing.report.drift import Drift
from pipeline.reports.charts import IntervalChart, LineChart, interval_chart, line_chart
from pipeline.reports.rendering import render_page

_MOST_LINES = 3
"""Maximum lines of a chart, as many as there are colours; the newest versions are shown."""
_PSI = "population stability index"


def page(result: MonitorResult) -> str:
    """HTML page of a result; names of models and arms are escaped."""
    charts = [
        _by_day(result, "Unknown items", "share of interactions", lambda g: g.unknown_items),
        _by_day(result, "Drift of items", _PSI, lambda g: _psi(g.items)),
        _by_day(result, "Drift of session lengths", _PSI, lambda g: _psi(g.lengths)),
        _by_day(result, "Coverage", "share of catalogue", lambda g: g.exposure.coverage),
    ]
    hit_rate = _longest_hit_rate(result)
    # the chart marks the first, the newest version
    online = {version.version: version.online for version in reversed(result.versions)}
    intervals = [_intervals(f"{hit_rate} by version", online, hit_rate)]
    for experiment in result.experiments:
        of_arms = {arm.name: arm.online for arm in experiment.arms}
        intervals.append(_intervals(f"{hit_rate} by arm of {experiment.name}", of_arms, hit_rate))
    return render_page(
        __package__,
        {
            "written_by": f"pipeline {__version__}",
            "title": f"Requests compared with {result.data}",
            "headline": headline(result),
            "notes": result.notes(),
            "charts": [chart for chart in charts if chart is not None],
            "intervals": [chart for chart in intervals if chart is not None],
            "tables": [
                {"title": title, "heads": heads, "rows": rows}
                for title, heads, rows in tables(result)
            ],
        },
    )


def _by_day(
    result: MonitorResult,
    title: str,
    unit: str,
    value_of: Callable[[GroupStatistics], float | None],
) -> LineChart | None:
    """Line of each version over the days; None if no version has two days."""
    series: dict[str, list[tuple[float, float]]] = {}
    for version in result.versions[-_MOST_LINES:]:
        points = [(_day(day), value_of(group)) for day, group in version.days.items()]
        series[version.version] = [(day, value) for day, value in points if value is not None]
    days = sorted({day for points in series.values() for day, _ in points})
    if len(days) < 2:
        return None
    shown = days[:: max(1, -(-len(days) // 4))]
    return line_chart(
        title,
        "day, UTC",
        unit,
        series,
        from_zero=True,
        x_labels={day: _label(day) for day in shown},
        format_x=_label,
    )


def _psi(drift: Drift | None) -> float | None:
    return None if drift is None else drift.psi


def _day(text: str) -> float:
    return float(date.fromisoformat(text).toordinal())


def _label(day: float) -> str:
    return f"{datetime.fromordinal(round(day)).replace(tzinfo=UTC):%d %b}"


def _longest_hit_rate(result: MonitorResult) -> str:
    names = [n for v in result.versions if v.online is not None for n in v.online.metrics]
    return next((name for name in reversed(names) if name.startswith("hit_rate")), "")


def _intervals(
    title: str, groups: dict[str, OnlineMetrics | None], metric: str
) -> IntervalChart | None:
    values = {
        name: (online.metrics[metric].value, online.metrics[metric].margin)
        for name, online in groups.items()
        if online is not None and metric in online.metrics
    }
    return (
        interval_chart(title, "share of requests, with 95 % interval", values) if values else None
    )
