"""`pipeline monitor`: drift and online metrics from a log of requests."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.monitoring.arms import experiment_results
from pipeline.monitoring.groups import Training, describe_group
from pipeline.monitoring.outcomes import Outcomes, by_value, read_outcomes
from pipeline.monitoring.requests import Requests, read_requests
from pipeline.monitoring.result import Clicks, MonitorResult, VersionResult, day_text, time_text
from pipeline.recipe.durations import duration_microseconds

CUTOFFS = (5, 10, 20)


def monitor(
    logs: list[Path],
    data: Data | Path,
    *,
    clicks: list[Path] | None = None,
    window: str = "30m",
    cutoffs: tuple[int, ...] = CUTOFFS,
) -> MonitorResult:
    """Compare logged requests with the training sessions of `data`, and with later `clicks`.

    Cutoffs beyond the longest list are left out. ConfigError for a wrong window and for clicks
    without times, DataError for files of another form.
    """
    try:
        window_microseconds = duration_microseconds(window)
    except ValueError as error:
        raise ConfigError(f"--window is {window!r}, {error}.") from None
    data = Data.open(data)
    catalogue = data.fitted.item.values.cast(pa.string())
    requests = read_requests(logs, catalogue)
    longest = max(1, int(requests.lists.lengths.max()))
    cutoffs = tuple(k for k in cutoffs if k <= longest) or (longest,)
    outcomes = None
    if clicks is not None:
        outcomes = read_outcomes(requests, clicks, data.recipe, window_microseconds)
    return MonitorResult(
        data=data.path.name,
        first=time_text(int(requests.times[0])),
        last=time_text(int(requests.times[-1])),
        requests=len(requests.times),
        catalogue_items=requests.num_catalogue,
        versions=_versions(requests, Training(data), outcomes, cutoffs),
        experiments=experiment_results(requests, outcomes, cutoffs),
        clicks=None
        if outcomes is None
        else Clicks(outcomes.clicks, outcomes.matched_sessions, window),
    )


def _versions(
    requests: Requests, training: Training, outcomes: Outcomes | None, cutoffs: tuple[int, ...]
) -> list[VersionResult]:
    results = []
    groups = by_value(requests.versions)
    for version in sorted(groups, key=_by_number):
        rows = groups[version]
        days = requests.days[rows]
        by_day = {day_text(day): rows[days == day] for day in np.unique(days).tolist()}
        online, online_days = None, {}
        if outcomes is not None:
            online = outcomes.metrics(requests, rows, cutoffs)
            online_days = {
                day: outcomes.metrics(requests, of_day, cutoffs) for day, of_day in by_day.items()
            }
        results.append(
            VersionResult(
                version=version,
                all=describe_group(requests, rows, training),
                days={day: describe_group(requests, r, training) for day, r in by_day.items()},
                online=online,
                online_days=online_days,
            )
        )
    return results


def _by_number(version: str) -> tuple[str, int]:
    """Sort key of versions: `recommender v2` before `recommender v10`."""
    model, _, number = version.rpartition(" v")
    return model, int(number)
