"""Result of `pipeline monitor` and its text."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.core.text import shown
from pipeline.monitoring.arms import ExperimentResult
from pipeline.monitoring.groups import GroupStatistics
from pipeline.monitoring.outcomes import Estimate, OnlineMetrics
from pipeline.monitoring.requests import DAY_MICROSECONDS
from pipeline.preprocessing.report.drift import LITTLE, Drift
from pipeline.reports.rendering import finite

NO_VALUE = "-"


@dataclass(frozen=True)
class Clicks:
    """Later interactions, from which outcomes of requests come."""

    interactions: int
    matched_sessions: int
    window: str
    """Attribution window, such as 30m."""


@dataclass(frozen=True)
class VersionResult:
    """Statistics of the requests of one version."""

    version: str
    """Model and version, such as `recommender v3`."""
    all: GroupStatistics
    days: dict[str, GroupStatistics]
    """By day, UTC."""
    online: OnlineMetrics | None
    """None without later clicks."""
    online_days: dict[str, OnlineMetrics]


@dataclass(frozen=True)
class MonitorResult:
    """Logged recommendations of a server, compared with training and with later clicks."""

    data: str
    """Name of the data directory."""
    first: str
    last: str
    """Times of the first and the last request, UTC."""
    requests: int
    catalogue_items: int
    versions: list[VersionResult]
    experiments: list[ExperimentResult]
    clicks: Clicks | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        result: dict[str, Any] = finite(asdict(self))
        return result

    def notes(self) -> list[str]:
        """Return sentences on findings that need attention."""
        return [
            *_version_notes(self.versions),
            *_outcome_notes(self),
            *_experiment_notes(self.experiments),
        ]

    def to_text(self) -> str:
        """Return tables for a terminal."""
        lines = [headline(self), *self.notes()]
        for title, heads, rows in tables(self):
            lines += ["", title, *text_table(heads, rows)]
        return "\n".join(map(shown, lines))


def day_text(day: int) -> str:
    """Return a day since 1970 as text."""
    return time_text(day * DAY_MICROSECONDS)[:10]


def time_text(microseconds: int) -> str:
    """Return a time in UTC as text."""
    return f"{datetime.fromtimestamp(microseconds / 1e6, UTC):%Y-%m-%d %H:%M:%S}"


def headline(result: MonitorResult) -> str:
    """Return a sentence on the compared requests and data."""
    text = (
        f"{result.requests:,} requests from {result.first} to {result.last} UTC, compared with the "
        f"training sessions of {result.data} ({result.catalogue_items:,} items)"
    )
    if result.clicks is None:
        return f"{text}."
    clicks = result.clicks
    return (
        f"{text} and with {clicks.interactions:,} interactions, which {clicks.matched_sessions:,} "
        f"sessions of the log have. The outcome of a request is the next interaction of its "
        f"session within {clicks.window}."
    )


Table = tuple[str, list[str], list[list[str]]]
"""Title, heads, rows."""


def tables(result: MonitorResult) -> list[Table]:
    """Return the tables of a result."""
    result_tables = [
        _table("Requests", _REQUEST_COLUMNS, _groups(result)),
        _table("Drift against training", _DRIFT_COLUMNS, _groups(result)),
        _table("Lists", _LIST_COLUMNS, _groups(result)),
    ]
    if result.clicks is not None:
        rows = [
            (label, online)
            for version in result.versions
            for label, online in [
                (version.version, version.online),
                *((f"  {day}", online) for day, online in version.online_days.items()),
            ]
        ]
        result_tables.append(_online_table("Online metrics by version", rows))
    for experiment in result.experiments:
        result_tables += _experiment_tables(experiment)
    return result_tables


def _groups(result: MonitorResult) -> list[tuple[str, GroupStatistics]]:
    return [
        row
        for version in result.versions
        for row in [
            (version.version, version.all),
            *((f"  {day}", group) for day, group in version.days.items()),
        ]
    ]


_Columns = dict[str, Callable[[GroupStatistics], str]]


def _share(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.4f}"


def _drift(drift: Drift | None) -> list[str]:
    if drift is None:
        return [NO_VALUE] * 3
    return [drift.drift or "too few", f"{drift.psi:.3f}", f"{drift.jensen_shannon:.3f}"]


_REQUEST_COLUMNS: _Columns = {
    "requests": lambda group: f"{group.requests:,}",
    "sessions": lambda group: f"{group.sessions:,}",
    "unnamed": lambda group: f"{group.unnamed:,}",
    "interactions": lambda group: f"{group.interactions:,}",
    "unknown items": lambda group: _share(group.unknown_items),
    "none known": lambda group: _share(group.without_known),
}
_DRIFT_COLUMNS: _Columns = {
    "items": lambda group: _drift(group.items)[0],
    "items PSI": lambda group: _drift(group.items)[1],
    "items JS": lambda group: _drift(group.items)[2],
    "length": lambda group: _drift(group.lengths)[0],
    "length PSI": lambda group: _drift(group.lengths)[1],
    "length JS": lambda group: _drift(group.lengths)[2],
}
_LIST_COLUMNS: _Columns = {
    "coverage": lambda group: _share(group.exposure.coverage),
    "Gini": lambda group: _share(group.exposure.gini),
    "top 1 %": lambda group: _share(group.exposure.top_1_percent),
    "not in training": lambda group: _share(group.exposure.outside),
}


def _table(title: str, columns: _Columns, groups: list[tuple[str, GroupStatistics]]) -> Table:
    rows = [[label, *(text(group) for text in columns.values())] for label, group in groups]
    return title, ["", *columns], rows


def estimate_text(estimate: Estimate | None) -> str:
    """Format a value with half its interval."""
    if estimate is None:
        return NO_VALUE
    margin = "" if estimate.margin is None else f" ±{estimate.margin:.4f}"
    return f"{estimate.value:.4f}{margin}"


def p_text(p: float) -> str:
    """Format a p-value with four digits."""
    return f"{p:.4f}" if p >= 1e-4 else "<0.0001"


def _online_table(title: str, rows: Sequence[tuple[str, OnlineMetrics | None]]) -> Table:
    names = list(dict.fromkeys(n for _, o in rows if o is not None for n in o.metrics))
    texts = [
        [
            label,
            NO_VALUE if online is None else f"{online.requests:,}",
            estimate_text(None if online is None else online.followed),
            *(estimate_text(None if online is None else online.metrics.get(n)) for n in names),
        ]
        for label, online in rows
    ]
    return title, ["", "requests", "followed", *names], texts


def _experiment_tables(experiment: ExperimentResult) -> list[Table]:
    title = f"Experiment {experiment.name}"
    ratio = experiment.sample_ratio_p
    rows = [
        [
            arm.name,
            NO_VALUE if arm.share is None else f"{arm.share:.4f}",
            f"{arm.sessions / max(sum(a.sessions for a in experiment.arms), 1):.4f}",
            f"{arm.sessions:,}",
            f"{arm.requests:,}",
        ]
        for arm in experiment.arms
    ]
    p = "not tested" if ratio is None else f"p {p_text(ratio)}"
    result: list[Table] = [
        (
            f"{title}: sessions (sample ratio: {p})",
            ["arm", "share", "observed", "sessions", "requests"],
            rows,
        )
    ]
    if any(arm.online is not None for arm in experiment.arms):
        online = [(arm.name, arm.online) for arm in experiment.arms]
        result.append(_online_table(f"{title}: online metrics by arm", online))
    if experiment.differences:
        result.append(
            (
                f"{title}: arm minus control",
                ["arm", "metric", "difference", "95 % interval", "p"],
                [
                    [
                        each.arm,
                        each.metric,
                        f"{each.difference:+.4f}",
                        f"{each.low:+.4f} to {each.high:+.4f}",
                        p_text(each.p),
                    ]
                    for each in experiment.differences
                ],
            )
        )
    return result


def text_table(heads: list[str], rows: list[list[str]]) -> Iterable[str]:
    """Yield aligned lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in [heads, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()


def _version_notes(versions: list[VersionResult]) -> Iterable[str]:
    for each in versions:
        for what, drift in (("items", each.all.items), ("session lengths", each.all.lengths)):
            if drift is not None and drift.drift not in (None, LITTLE):
                yield (
                    f"Drift: the {what} of {each.version} differ from training's "
                    f"({drift.drift}: PSI {drift.psi:.3f})."
                )
        if each.all.exposure.outside > 0:
            yield (
                f"{each.all.exposure.outside:.1%} of the recommendations of {each.version} are "
                "items outside these training data: give the data of its run."
            )


def _outcome_notes(result: MonitorResult) -> Iterable[str]:
    """A sentence where sessions of the requests have clicks, and no request an outcome."""
    online = [each.online.followed for each in result.versions if each.online is not None]
    if result.clicks is not None and not any(share and share.value for share in online):
        yield (
            f"No request has an outcome within {result.clicks.window}. If the clicks are later, "
            "the clocks differ: times of a log without a zone are read as UTC, as those of "
            "requests are. Write local times with their offset, such as 2026-01-31 12:00:00+01:00."
        )


def _experiment_notes(experiments: list[ExperimentResult]) -> Iterable[str]:
    for each in experiments:
        if each.moved_sessions:
            yield (
                f"Experiment {each.name}: {each.moved_sessions:,} sessions were in several arms, "
                "as after a change of shares, and are left out."
            )
        if not each.fits_shares:
            yield (
                f"Experiment {each.name}: the sessions of the arms do not fit the shares (p of the "
                f"sample ratio {p_text(each.sample_ratio_p or 0.0)}). Find the reason before the "
                "differences are read."
            )
