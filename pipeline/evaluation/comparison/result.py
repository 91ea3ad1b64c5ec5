"""The result of a comparison."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from pipeline.evaluation.result import on_request, request_legend, verdict, with_margin
from pipeline.evaluation.targets import Positions

if TYPE_CHECKING:
    import pandas as pd

RANKS = ("recall", "ndcg", "mrr")
LISTS = ("coverage", "popularity_bias")
_LEGEND = """\
±: half the 95 % interval, over sessions; sd: standard deviation between seeds. *: the best row of
a column, and those that do not differ from it (paired test by sessions, p of 0.05 or more after
Holm's correction)."""

SIGNIFICANCE = 0.05
"""A row whose corrected p is below differs from the best one."""


@dataclass(frozen=True)
class ComparedRow:
    """Metrics of a run, of runs that differ in the seed, or of a baseline."""

    runs: list[str]
    """Names of the runs; empty for a baseline."""
    results: dict[str, float | None]
    """Means over the runs by `metric@K`."""
    margins: dict[str, float | None]
    """Half the 95 % interval over sessions."""
    deviations: dict[str, float | None]
    """Standard deviation between the runs; empty for a single one."""


@dataclass(frozen=True)
class PairedTest:
    """A row minus the best one in a metric, on the same targets."""

    best: str
    difference: float
    margin: float | None
    """Half the 95 % interval of the difference."""
    p: float | None
    """P-value of no difference, corrected for the number of rows; None with fewer than 10
    sessions, or if all differences are equal."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs and baselines on the targets of one part of the data."""

    part: str
    positions: Positions
    filter_seen: bool
    sessions: int
    """Sessions with a target."""
    targets: int
    catalogue_items: int
    cutoffs: list[int]
    rows: dict[str, ComparedRow]
    """Runs in their order, then baselines."""
    tests: dict[str, dict[str, PairedTest]]
    """By metric of ranks and row, all rows but the best."""
    against_baseline: dict[str, dict[str, PairedTest]]
    """By metric of ranks and row of runs, the row minus the best baseline, which is the `best` of
    each; empty without baselines. P-values are corrected for the number of runs."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the comparison of which `to_dict` returned `values`."""
        rows = {name: ComparedRow(**row) for name, row in values["rows"].items()}
        tests = {
            key: {
                metric: {name: PairedTest(**test) for name, test in each.items()}
                for metric, each in values[key].items()
            }
            for key in ("tests", "against_baseline")
        }
        return cls(**{**values, "rows": rows, **tests})

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each row of the comparison and metric."""
        import pandas as pd

        lines = []
        for name, row in self.rows.items():
            for metric, value in row.results.items():
                test = self.tests.get(metric, {}).get(name)
                lines.append(
                    {
                        "model": name,
                        "runs": len(row.runs),
                        "metric": metric,
                        "value": value,
                        "margin": row.margins.get(metric),
                        "deviation": row.deviations.get(metric),
                        "best": self.is_best(metric, name),
                        "difference": None if test is None else test.difference,
                        "difference_margin": None if test is None else test.margin,
                        "p": None if test is None else test.p,
                    }
                )
        return pd.DataFrame(lines)

    def is_best(self, metric: str, name: str) -> bool:
        """Whether a row is the best one in a metric of ranks, or does not differ from it."""
        if metric not in self.tests:
            return False
        test = self.tests[metric].get(name)
        return test is None or (
            test.difference == 0 or (test.p is not None and test.p >= SIGNIFICANCE)
        )

    def to_text(self) -> str:
        """Return the tables of models and metrics, and the differences from the best."""
        return _text(self)

    __str__ = to_text


def metrics_at(comparison: Comparison, cutoff: int) -> list[str]:
    """Metrics of a table: the usual ones, then those on request."""
    results = next(iter(comparison.rows.values())).results
    requested = on_request(results, cutoff)
    return [*(f"{metric}@{cutoff}" for metric in (*RANKS, *LISTS)), *requested]


def row_label(comparison: Comparison, name: str) -> str:
    """Name of a row, with the number of seeds."""
    count = len(comparison.rows[name].runs)
    return f"{name} ({count} seeds)" if count > 1 else name


def _text(comparison: Comparison) -> str:
    """Tables for a terminal."""
    lines = [headline(comparison), *verdicts(comparison)]
    for cutoff in comparison.cutoffs:
        heads = metrics_at(comparison, cutoff)
        rows = [
            [row_label(comparison, name), *(_text_cell(comparison, name, head) for head in heads)]
            for name in comparison.rows
        ]
        lines += ["", *_columns([["", *heads], *rows])]
    for metric in (f"{metric}@{comparison.cutoffs[-1]}" for metric in RANKS):
        lines += ["", *_differences(comparison, metric)]
    requested = metrics_at(comparison, comparison.cutoffs[-1])[len(RANKS) + len(LISTS) :]
    return "\n".join([*lines, "", _LEGEND, *request_legend(requested)])


def headline(comparison: Comparison) -> str:
    """What was ranked."""
    seen = ", seen ones left out" if comparison.filter_seen else ""
    return (
        f"{comparison.targets:,} targets ({comparison.positions} positions of the "
        f"{comparison.part} sessions), {comparison.catalogue_items:,} items ranked{seen}"
    )


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each row of runs: in what it is better or worse than the best baseline."""
    tests = {
        metric: comparison.against_baseline[metric]
        for metric in (f"{metric}@{comparison.cutoffs[-1]}" for metric in RANKS)
        if metric in comparison.against_baseline
    }
    return [
        verdict(name, {metric: _word(tests[metric][name]) for metric in tests})
        for name, row in comparison.rows.items()
        if row.runs and tests
    ]


def _word(test: PairedTest) -> str:
    if test.difference and test.p is None:
        return "not tested against"
    if test.p is None or test.p >= SIGNIFICANCE:
        return "no different from"
    return "better than" if test.difference > 0 else "worse than"


def _text_cell(comparison: Comparison, name: str, metric: str) -> str:
    row = comparison.rows[name]
    value = row.results[metric]
    if value is None:
        return "-"
    star = "*" if comparison.is_best(metric, name) else ""
    cell = with_margin(value, row.margins.get(metric)) + star
    deviation = row.deviations.get(metric)
    return cell if deviation is None else f"{cell} sd {deviation:.4f}".replace("sd 0", "sd ")


def _differences(comparison: Comparison, metric: str) -> list[str]:
    tests = comparison.tests[metric]
    if not tests:
        return []
    best = next(iter(tests.values())).best
    order = sorted(tests, key=lambda name: -tests[name].difference)
    rows = []
    for name in order:
        test = tests[name]
        margin = "" if test.margin is None else f"±{test.margin:.4f}".replace("±0", "±")
        rows.append([name, f"{test.difference:+.4f} {margin}".rstrip(), p_text(test)])
    return [f"{metric} minus that of {best}, the best", *_columns(rows)]


def p_text(test: PairedTest) -> str:
    """A p-value for readers."""
    p = test.p
    if p is None:
        return "not tested" if test.difference else "no difference"
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
