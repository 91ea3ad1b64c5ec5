"""Geometry of small charts; `pages/charts.html.jinja` draws them as SVG in the page's colours.

Drawn here and not by a plotting library: a chart is two kilobytes of text that follows the
reader's light or dark theme, keeps its letters readable on a phone, and is the same each time.

Lengths are in units of the drawing, WIDTH by HEIGHT, from its top left corner.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

WIDTH, HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
_ROW = 24
_LABELS = 132
_LETTER = 7


class Tick(NamedTuple):
    """A number at an axis."""

    at: float
    text: str


class Point(NamedTuple):
    """A value in its place."""

    x: float
    y: float
    text: str
    """What it says when it is pointed at."""


class Line(NamedTuple):
    """One series."""

    label: str
    points: list[Point]

    @property
    def path(self) -> str:
        """For the attribute `points` of a polyline."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


class LineChart(NamedTuple):
    """Series over one axis."""

    title: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


class Row(NamedTuple):
    """A value with its interval; x positions, the ends None where there is no interval."""

    label: str
    y: float
    x: float
    low: float | None
    high: float | None
    text: str


class IntervalChart(NamedTuple):
    """Values of several models below each other."""

    title: str
    ticks: list[Tick]
    rows: list[Row]
    height: float
    bottom: float
    left: float = _LABELS
    right: float = WIDTH - _RIGHT
    width: float = WIDTH


class Bar(NamedTuple):
    """A share of a group."""

    x: float
    y: float
    width: float
    height: float
    series: int
    """1 is the first."""
    text: str


class BarChart(NamedTuple):
    """Series of the same groups, side by side."""

    title: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    labels: list[str]
    bars: list[Bar]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def line_chart(
    title: str,
    x_label: str,
    series: dict[str, list[tuple[float, float]]],
    *,
    from_zero: bool = False,
    x_texts: list[tuple[float, str]] | None = None,
    x_names: Callable[[float], str] | None = None,
) -> LineChart | None:
    """Points (x, y) by label -> a chart; None where there is no point.

    `x_texts` are the ticks of the axis and what they say, in place of round numbers; `x_names` says
    what the x of a point is called, where that is not its number.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return None
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
    lowest = min(y for _, y in points)
    if from_zero:
        lowest = min(lowest, 0.0)
    y_ticks = ticks(lowest, max(y for _, y in points))
    # the first and last epochs are the ends; the values have room above and below
    x_low, x_high = _widen(min(x for x, _ in points), max(x for x, _ in points))
    y_low = min(y_ticks[0], *(y for _, y in points))
    y_high = max(y_ticks[-1], *(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _RIGHT - _LEFT),
            HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _BOTTOM - _TOP),
        )

    named = dict(x_texts) if x_texts is not None else {x: number(x) for x in x_ticks}
    return LineChart(
        title,
        x_label,
        [Tick(place(x, y_low)[0], text) for x, text in named.items() if x_low <= x <= x_high],
        [Tick(place(x_low, y)[1], number(y)) for y in y_ticks],
        [
            Line(
                label,
                [
                    Point(*place(x, y), f"{label}: {number(y)} at {(x_names or number)(x)}")
                    for x, y in line
                ],
            )
            for label, line in series.items()
            if line
        ],
    )


def bar_chart(
    title: str, x_label: str, groups: list[str], series: dict[str, list[float]]
) -> BarChart | None:
    """A value, 0 or more, for each group, by label -> a chart; None where there is no group."""
    if not groups or not series:
        return None
    y_ticks = ticks(0.0, max(max(values) for values in series.values()) or 1.0, about=4)
    step = (WIDTH - _RIGHT - _LEFT) / len(groups)
    each = 0.84 * step / len(series)
    scale = (HEIGHT - _BOTTOM - _TOP) / y_ticks[-1]
    bars = [
        Bar(
            _LEFT + step * (group + 0.08) + each * index,
            HEIGHT - _BOTTOM - value * scale,
            each,
            value * scale,
            index + 1,
            f"{label}, {groups[group]}: {number(value)}",
        )
        for index, (label, values) in enumerate(series.items())
        for group, value in enumerate(values)
    ]
    # so many labels that they do not run into each other
    longest = max(len(group) for group in groups)
    every = max(1, -(-(longest * _LETTER + 6) // step))
    return BarChart(
        title,
        x_label,
        [
            Tick(_LEFT + step * (index + 0.5), group)
            for index, group in enumerate(groups)
            if index % every == 0
        ],
        [Tick(HEIGHT - _BOTTOM - tick * scale, number(tick)) for tick in y_ticks],
        list(series),
        bars,
    )


def interval_chart(title: str, values: dict[str, tuple[float, float | None]]) -> IntervalChart:
    """By model a value and half its interval -> a chart that begins at 0."""
    highest = max(value + (margin or 0.0) for value, margin in values.values())
    scale = ticks(0.0, highest, about=4)
    end = max(scale[-1], highest)

    def place(value: float) -> float:
        return _LABELS + max(value, 0.0) / end * (WIDTH - _RIGHT - _LABELS)

    rows = []
    for index, (label, (value, margin)) in enumerate(values.items()):
        rows.append(
            Row(
                label if len(label) <= 18 else label[:17] + "…",
                _TOP + _ROW * (index + 0.5),
                place(value),
                None if margin is None else place(value - margin),
                None if margin is None else place(value + margin),
                f"{label}: {value:.4f}" + ("" if margin is None else f" ±{margin:.4f}"),
            )
        )
    bottom = _TOP + _ROW * len(rows)
    return IntervalChart(
        title, [Tick(place(t), number(t)) for t in scale], rows, bottom + 24, bottom
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, `about` so many, that reach over low..high."""
    low, high = _widen(low, high)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """As short as it can be read: 1,200 or 0.125 or 3e-05."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _widen(low: float, high: float) -> tuple[float, float]:
    """A span that is not empty."""
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    half = abs(low) * 0.1 or 1.0
    return low - half, high + half
