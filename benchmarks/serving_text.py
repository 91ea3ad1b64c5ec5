"""What `python -m benchmarks serve` shows: a table, and a plot."""

from html import escape
from typing import Any

from benchmarks.text import machine_line
from pipeline.reports.charts import LineChart, line_chart

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def serving_text(result: dict[str, Any]) -> str:
    """The table: one line a kind of load."""
    lines = [
        machine_line(result["machine"]),
        f"{result['model']}, {result['items']:,} items; one core for server and clients, "
        f"{result['protocol']}",
        "",
        f"{'':<28}{'clients':>8}{'a second':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
        f"{'sessions/s':>12}  errors",
    ]
    for row in result["rows"]:
        label = f"{row['target']}, {row['sessions']} of {row['interactions']}"
        clients = str(row["clients"]) if row["rate"] is None else f"{row['rate']:.0f}/s"
        errors = sum(row["errors"].values())
        lines.append(
            f"{label:<28}{clients:>8}{row['requests_per_second']:>10,.0f}{row['p50_ms']:>9.2f}"
            f"{row['p95_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['sessions_per_second']:>12,.0f}"
            f"  {errors or ''}".rstrip()
        )
    lines += [
        "",
        "clients: so many at once, each asking again when it has its answer; N/s: an open loop, "
        "from when a request was due",
        "",
        f"{'':<28}{'requests':>10}{'executions':>12}{'queue us':>10}{'input us':>10}"
        f"{'infer us':>10}{'output us':>11}",
    ]
    for name, step in result["steps"].items():
        lines.append(
            f"{name:<28}{step['requests']:>10,}{step['executions']:>12,}{step['queue_us']:>10.0f}"
            f"{step['compute_input_us']:>10.0f}{step['compute_infer_us']:>10.0f}"
            f"{step['compute_output_us']:>11.0f}"
        )
    return "\n".join(lines)


def serving_plot(result: dict[str, Any]) -> str:
    """An SVG: milliseconds over requests a second, closed loop of single sessions."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in result["rows"]:
        if row["rate"] is None and row["sessions"] == 1 and row["target"] in result["targets"]:
            for quantile in ("p50", "p99"):
                label = f"{row['target']}, {quantile}"
                point = (row["requests_per_second"], row[f"{quantile}_ms"])
                series.setdefault(label, []).append(point)
    chart = line_chart("ms by requests a second", "requests a second", series, from_zero=True)
    assert chart is not None  # noqa: S101  there is a row of each target
    return _svg(chart)


def _svg(chart: LineChart) -> str:
    legend = 16 * len(chart.lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {chart.width} '
        f'{chart.height + legend}" font-family="sans-serif" font-size="10">',
        f'<rect width="{chart.width}" height="{chart.height + legend}" fill="white"/>',
    ]
    for tick in chart.y_ticks:
        parts.append(
            f'<line x1="{chart.left}" x2="{chart.right}" y1="{tick.at:.1f}" y2="{tick.at:.1f}" '
            f'stroke="#ddd"/><text x="{chart.left - 6}" y="{tick.at + 3:.1f}" '
            f'text-anchor="end">{escape(tick.text)} ms</text>'
        )
    for tick in chart.x_ticks:
        parts.append(
            f'<text x="{tick.at:.1f}" y="{chart.bottom + 14}" text-anchor="middle">'
            f"{escape(tick.text)}</text>"
        )
    middle = (chart.left + chart.right) / 2
    parts.append(
        f'<text x="{middle}" y="{chart.bottom + 28}" text-anchor="middle">'
        f"{escape(chart.x_label)}</text>"
    )
    for number, line in enumerate(chart.lines):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(
            f'<polyline points="{line.path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
        parts += [
            f'<circle cx="{point.x:.1f}" cy="{point.y:.1f}" r="2.4" fill="{colour}"/>'
            for point in line.points
        ]
        y = chart.height + 16 * number + 6
        parts.append(
            f'<rect x="{chart.left}" y="{y - 7}" width="12" height="3" fill="{colour}"/>'
            f'<text x="{chart.left + 18}" y="{y}">{escape(line.label)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
