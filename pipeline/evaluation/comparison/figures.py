"""Plots of a comparison for a paper, by matplotlib: SVG and PNG."""

from pathlib import Path

from pipeline.core.files import atomic_write
from pipeline.evaluation.comparison.result import (
    Comparison,
    row_label,
    rows_with,
    shown_metrics,
)

_INCHES_PER_ROW = 0.3
_DOTS_PER_INCH = 200


def check_figures() -> None:
    """ImportError if matplotlib is not installed."""
    import matplotlib as _  # noqa: F401


def write_figures(comparison: Comparison, folder: Path) -> None:
    """Write one plot per metric at the largest cutoff and per target, the best row on top.

    A point is the mean, a bar its 95 % interval over sessions; the best rows are filled.
    """
    from matplotlib.figure import Figure  # pyplot would have global state

    folder.mkdir(parents=True, exist_ok=True)
    for metric, unit in shown_metrics(comparison).items():
        names = rows_with(comparison, metric)[::-1]
        figure = Figure(figsize=(5, 0.8 + _INCHES_PER_ROW * len(names)), layout="constrained")
        axes = figure.subplots()
        for height, name in enumerate(names):
            row = comparison.rows[name]
            axes.errorbar(
                [row.results[metric] or 0.0],
                [height],
                xerr=[row.margins.get(metric) or 0.0],
                fmt="o",
                color="tab:blue" if row.runs else "tab:gray",
                markerfacecolor=None if comparison.is_best(metric, name) else "white",
                capsize=2,
            )
        # names are not formulas
        labels = [row_label(comparison, name).replace("$", r"\$") for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.set_title(metric)
        axes.set_xlabel(f"{unit}, with 95 % interval")
        axes.grid(axis="x", alpha=0.3)
        for ending in ("svg", "png"):
            file = folder / f"{metric.replace('@', '-').replace('.', '-')}.{ending}"
            # no date, so that equal comparisons are equal bytes
            metadata = {"Date": None} if ending == "svg" else None
            with atomic_write(file) as partial:
                figure.savefig(partial, format=ending, dpi=_DOTS_PER_INCH, metadata=metadata)
