"""Geometry of small SVG charts; `charts.html.jinja` draws them in the colours of the page.

No plotting library is used: a chart is two kilobytes of reproducible text that follows the reader's
light or dark theme and stays readable on a phone.

Lengths are in units of the drawing, WIDTH by HEIGHT, with the origin at the top left.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 400, 244
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 28, 42
"""Margins around the plot area, with the label of the y axis above it and that of x below."""
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
_ROW_TOP, _ROW_HEIGHT = 12, 24
_ROW_LABEL_WIDTH = 132
_MAX_ROW_LABEL = 18
_LETTER_WIDTH = 7
_BAR_SHARE = 0.84
"""Share of a group's width that its bars fill."""


class Tick(NamedTuple):
    """A label at an axis."""

    at: float
    text: str


class Point(NamedTuple):
    """A point of a line with its tooltip."""

    x: float
    y: float
    text: str


class Line(NamedTuple):
    """A series of a line chart."""

    label: str
    points: list[Point]

    @property
    def path(self) -> str:
        """Value of the attribute `points` of a polyline."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


class Bar(NamedTuple):
    """A bar with its tooltip."""

    x: float
    y: float
    width: float
    height: float
    series: int
    """Number of the series, from 1 on."""
    text: str


class Row(NamedTuple):
    """A value with its interval in an interval chart, and its tooltip."""

    label: str
    y: float
    x: float
    low: float | None
    """None without an interval."""
    high: float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class _AxesChart:
    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


@dataclass(frozen=True, kw_only=True)
class LineChart(_AxesChart):
    """Series over a numeric x axis."""

    lines: list[Line]


@dataclass(frozen=True, kw_only=True)
class BarChart(_AxesChart):
    """Series over common groups, with adjacent bars."""

    labels: list[str]
    bars: list[Bar]


@dataclass(frozen=True, kw_only=True)
class IntervalChart:
    """Values with intervals, one row each."""

    title: str
    x_label: str
    ticks: list[Tick]
    rows: list[Row]
    height: float
    bottom: float
    left: float = _ROW_LABEL_WIDTH
    right: float = WIDTH - _RIGHT
    width: float = WIDTH


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: dict[str, list[tuple[float, float]]],
    *,
    from_zero: bool = False,
    x_from_zero: bool = False,
    x_labels: dict[float, str] | None = None,
    format_x: Callable[[float], str] | None = None,
) -> LineChart | None:
    """Chart of points (x, y) by label of the series; None without a point.

    Axis labels name the quantity and its unit. `x_labels` are ticks of the x axis by position, in
    place of round numbers; `format_x` formats x in a tooltip. `from_zero` extends the y axis to 0,
    `x_from_zero` the x axis.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return None
    xs, ys = zip(*points, strict=True)
    lowest = min(*ys, 0.0) if from_zero else min(ys)
    y_ticks = ticks(lowest, max(ys))
    # the x axis ends at the first and last point, the y axis at round numbers
    x_low, x_high = _widen(min(*xs, 0.0) if x_from_zero else min(xs), max(xs))
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def at_x(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * _PLOT_WIDTH

    def at_y(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * _PLOT_HEIGHT

    if x_labels is None:
        x_labels = {x: format_number(x) for x in ticks(x_low, x_high)}
    format_x = format_x or format_number
    lines = [
        Line(
            label,
            [
                Point(at_x(x), at_y(y), f"{label}: {format_number(y)} at {format_x(x)}")
                for x, y in line
            ],
        )
        for label, line in series.items()
        if line
    ]
    return LineChart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[Tick(at_x(x), text) for x, text in x_labels.items() if x_low <= x <= x_high],
        y_ticks=[Tick(at_y(y), format_number(y)) for y in y_ticks],
        lines=lines,
    )


def bar_chart(
    title: str, x_label: str, y_label: str, groups: list[str], series: dict[str, list[float]]
) -> BarChart | None:
    """Chart of a non-negative value per group, by label of the series; None without groups.

    The last group always has a label, as it is often an open range.
    """
    if not groups or not series:
        return None
    y_ticks = ticks(0.0, max(max(values) for values in series.values()) or 1.0, about=4)
    step = _PLOT_WIDTH / len(groups)
    bar_width = _BAR_SHARE * step / len(series)
    margin = (1 - _BAR_SHARE) / 2
    scale = _PLOT_HEIGHT / y_ticks[-1]
    bottom = HEIGHT - _BOTTOM
    bars = [
        Bar(
            _LEFT + step * (group + margin) + bar_width * index,
            bottom - value * scale,
            bar_width,
            value * scale,
            index + 1,
            f"{label}, {groups[group]}: {format_number(value)}",
        )
        for index, (label, values) in enumerate(series.items())
        for group, value in enumerate(values)
    ]
    return BarChart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[
            Tick(_LEFT + step * (index + 0.5), groups[index])
            for index in _labelled_groups(groups, step)
        ],
        y_ticks=[Tick(bottom - tick * scale, format_number(tick)) for tick in y_ticks],
        labels=list(series),
        bars=bars,
    )


def _labelled_groups(groups: list[str], step: float) -> list[int]:
    """Every n-th group and the last one, so that labels do not overlap."""
    every = max(1, math.ceil((max(map(len, groups)) * _LETTER_WIDTH + 6) / step))
    last = len(groups) - 1
    return [*range(0, last - every + 1, every), last]


def interval_chart(
    title: str, x_label: str, values: dict[str, tuple[float, float | None]]
) -> IntervalChart:
    """Chart of a value and half the width of its interval by label; the axis begins at 0."""
    highest = max(value + (margin or 0.0) for value, margin in values.values())
    x_ticks = ticks(0.0, highest, about=4)
    x_high = max(x_ticks[-1], highest)

    def at_x(value: float) -> float:
        plot_width = WIDTH - _RIGHT - _ROW_LABEL_WIDTH
        return _ROW_LABEL_WIDTH + max(value, 0.0) / x_high * plot_width

    rows = [
        Row(
            label if len(label) <= _MAX_ROW_LABEL else label[: _MAX_ROW_LABEL - 1] + "…",
            _ROW_TOP + _ROW_HEIGHT * (index + 0.5),
            at_x(value),
            None if margin is None else at_x(value - margin),
            None if margin is None else at_x(value + margin),
            f"{label}: {value:.4f}" + ("" if margin is None else f" ±{margin:.4f}"),
        )
        for index, (label, (value, margin)) in enumerate(values.items())
    ]
    bottom = _ROW_TOP + _ROW_HEIGHT * len(rows)
    return IntervalChart(
        title=title,
        x_label=x_label,
        ticks=[Tick(at_x(tick), format_number(tick)) for tick in x_ticks],
        rows=rows,
        height=bottom + 40,
        bottom=bottom,
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About `about` round numbers that cover low..high."""
    low, high = _widen(low, high)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_number(value: float) -> str:
    """Short text of a number, such as 1,200, 0.125 or 3e-05."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _widen(low: float, high: float) -> tuple[float, float]:
    """A range of positive width around low..high."""
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    half = abs(low) * 0.1 or 1.0
    return low - half, high + half
