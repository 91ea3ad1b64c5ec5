"""Plot of load tests of a server as one SVG file: latency in an open and in a closed loop."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.reports.charts import HEIGHT, WIDTH, LineChart, line_chart

_QUANTILES = ("p50", "p99")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_TITLE_HEIGHT, _LEGEND_HEIGHT = 28, 16
_GAP = 16
"""Distance between the panels."""

Load = Mapping[str, Any]
"""A load as returned by `LoadTestResult.to_dict`."""


def load_plot(title: str, loads: Mapping[str, Sequence[Load]]) -> str:
    """SVG of the latency of each server by its load; all axes begin at 0.

    The load is the offered one, even if responses were late: requests per second in an open loop,
    clients in a closed loop.
    """
    panels = [panel for panel in (_open_loop(loads), _closed_loop(loads)) if panel is not None]
    num_lines = max(len(panel.lines) for panel in panels)
    width = len(panels) * WIDTH + (len(panels) - 1) * _GAP
    height = 2 * _TITLE_HEIGHT + HEIGHT + _LEGEND_HEIGHT * (num_lines + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="18" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * (WIDTH + _GAP)} {_TITLE_HEIGHT})">')
        parts += [*_axes(panel), *_lines(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _open_loop(loads: Mapping[str, Sequence[Load]]) -> LineChart | None:
    series = {
        f"{name}, {quantile}": [
            (float(load["rate"]), float(load[f"{quantile}_ms"]))
            for load in of_server
            if load["rate"] is not None
        ]
        for name, of_server in loads.items()
        for quantile in _QUANTILES
    }
    return line_chart(
        "Open loop: latency by offered load",
        "offered requests a second, at random moments",
        "latency from when a request was due, ms",
        series,
        from_zero=True,
        x_from_zero=True,
    )


def _closed_loop(loads: Mapping[str, Sequence[Load]]) -> LineChart | None:
    series = {
        f"{name}, {quantile}": [
            (float(load["clients"]), float(load[f"{quantile}_ms"]))
            for load in of_server
            if load["rate"] is None
        ]
        for name, of_server in loads.items()
        for quantile in _QUANTILES
    }
    return line_chart(
        "Closed loop: latency by number of clients",
        "clients, each sending its next request after the answer",
        "latency, ms",
        series,
        from_zero=True,
        x_from_zero=True,
    )


def _axes(panel: LineChart) -> list[str]:
    middle = (panel.left + panel.right) / 2
    parts = [
        f'<text x="{middle}" y="14" text-anchor="middle" font-weight="bold">'
        f"{escape(panel.title)}</text>",
        f'<text x="4" y="{_TITLE_HEIGHT + 12}" font-style="italic">{escape(panel.y_label)}</text>',
        f'<g transform="translate(0 {_TITLE_HEIGHT})">',
        f'<text x="{middle}" y="{panel.height - 6}" text-anchor="middle" font-style="italic">'
        f"{escape(panel.x_label)}</text>",
    ]
    for tick in panel.y_ticks:
        parts.append(
            f'<line x1="{panel.left}" x2="{panel.right}" y1="{tick.at:.1f}" y2="{tick.at:.1f}" '
            f'stroke="#ddd"/><text x="{panel.left - 6}" y="{tick.at + 4:.1f}" text-anchor="end">'
            f"{escape(tick.text)}</text>"
        )
    parts += [
        f'<text x="{tick.at:.1f}" y="{panel.bottom + 16}" text-anchor="middle">'
        f"{escape(tick.text)}</text>"
        for tick in panel.x_ticks
    ]
    return [*parts, "</g>"]


def _lines(panel: LineChart) -> list[str]:
    parts = [f'<g transform="translate(0 {_TITLE_HEIGHT})">']
    for number, line in enumerate(panel.lines):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(
            f'<polyline points="{line.path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
        parts += [
            f'<circle cx="{point.x:.1f}" cy="{point.y:.1f}" r="2.6" fill="{colour}">'
            f"<title>{escape(point.text)}</title></circle>"
            for point in line.points
        ]
        y = panel.height + _LEGEND_HEIGHT * (number + 1)
        parts.append(
            f'<rect x="{panel.left}" y="{y - 6}" width="12" height="3" fill="{colour}"/>'
            f'<text x="{panel.left + 18}" y="{y}">{escape(line.label)}</text>'
        )
    return [*parts, "</g>"]
