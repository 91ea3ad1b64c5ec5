"""Online metrics: whether a list holds the next interaction of its session.

Attribution: the outcome of a request is the first later interaction of its session, within the
window. Metrics are means over the requests with an outcome; intervals are cluster-robust over
sessions, whose requests depend on each other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import stdtrit

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.errors import ConfigError, DataError
from pipeline.data import values
from pipeline.data.times import NO_TIME, microseconds
from pipeline.evaluation.metrics import standard_error
from pipeline.logs.files import find_logs, read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.monitoring.requests import NO_SESSION, Requests
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.split import Split

NO_RANK = 0


@dataclass(frozen=True)
class Estimate:
    """Mean over requests with its 95 % interval over sessions."""

    value: float
    margin: float | None
    """Half the 95 % interval; None for fewer than 10 sessions, or if all values are equal."""
    error: float | None
    """Standard error; None where `margin` is None."""
    sessions: int


@dataclass(frozen=True)
class OnlineMetrics:
    """Online metrics of a group of requests."""

    requests: int
    """Number of requests with a session."""
    followed: Estimate | None
    """Share of these requests with an outcome; None without a request."""
    metrics: dict[str, Estimate]
    """Metrics such as `hit_rate@10` and `mrr@10` over the requests with an outcome; empty without
    any."""


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of N requests."""

    has_outcome: NDArray[Any]
    """(N,) bool."""
    ranks: NDArray[Any]
    """(N,) 1-based rank of the next item in the list; NO_RANK if the list lacks it."""
    clicks: int
    """Number of interactions read."""
    matched_sessions: int
    """Number of sessions of the log with an interaction."""

    def metrics(
        self, requests: Requests, rows: NDArray[Any], cutoffs: tuple[int, ...]
    ) -> OnlineMetrics:
        """Metrics of the requests at (M,) `rows`."""
        rows = rows[requests.sessions[rows] != NO_SESSION]
        rows = rows[np.argsort(requests.sessions[rows], kind="stable")]
        sessions = requests.sessions[rows]
        followed = self.has_outcome[rows]
        ranks = self.ranks[rows][followed]
        with_outcome = sessions[followed]
        metrics = {}
        for cutoff in cutoffs if len(ranks) else ():
            hit = (ranks != NO_RANK) & (ranks <= cutoff)
            reciprocal = np.where(hit, 1 / np.maximum(ranks, 1), 0.0)
            metrics[f"hit_rate@{cutoff}"] = estimate(hit.astype(float), with_outcome)
            metrics[f"mrr@{cutoff}"] = estimate(reciprocal, with_outcome)
        return OnlineMetrics(
            requests=len(rows),
            followed=estimate(followed.astype(float), sessions) if len(rows) else None,
            metrics=metrics,
        )


def estimate(gains: NDArray[Any], sessions: NDArray[Any]) -> Estimate:
    """(N,) gains, (N,) ascending sessions -> mean with its interval."""
    error, num_sessions = standard_error(gains, sessions)
    margin = None if error is None else float(stdtrit(num_sessions - 1, 0.975) * error)
    return Estimate(float(gains.mean()), margin, error, num_sessions)


def read_outcomes(
    requests: Requests, files: list[Path], recipe: Preprocess, window_microseconds: int
) -> Outcomes:
    """Find the outcomes of requests in a log with the recipe's columns.

    ConfigError for a recipe without a timestamp, DataError for a log that cannot be read or has
    none of the sessions.
    """
    sessions, items, times = _read_clicks(requests, files, recipe)
    of_log = sessions != NO_SESSION
    if not of_log.any():
        raise DataError(
            f"{', '.join(map(str, files))} has none of the sessions of the requests. Send the "
            "session id of the log as the parameter `session` of a request."
        )
    num_clicks = len(sessions)
    sessions, items, times = sessions[of_log], items[of_log], times[of_log]
    following = _next_clicks(requests, sessions, times)
    has_outcome = following >= 0
    delay = np.where(has_outcome, times[following] - requests.times, 0)
    has_outcome &= delay <= window_microseconds
    targets = np.where(has_outcome, items[following], -1)
    return Outcomes(
        has_outcome=has_outcome,
        ranks=_ranks(requests, targets),
        clicks=num_clicks,
        matched_sessions=len(np.unique(sessions)),
    )


def _read_clicks(
    requests: Requests, files: list[Path], recipe: Preprocess
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return sessions (-1 for one without a request), items and times of interactions."""
    timestamp = recipe.timestamp
    if timestamp is None:
        raise ConfigError(
            "--clicks needs to know when interactions were, and the recipe of the data has no "
            "`timestamp`."
        )
    recipe = recipe.model_copy(update={"features": (), "order": (), "split": Split()})
    tables = read_logs(recipe, find_logs(recipe, files), RowCounts())
    if not tables:
        raise DataError(f"{', '.join(map(str, files))} holds no row.")
    columns = {name: [values.to_array(table[name]) for table in tables] for name in _COLUMNS}
    times = microseconds(columns[TIMESTAMP], timestamp)[0]
    names, items = (_texts(columns[name]) for name in (SESSION, ITEM))
    sessions = requests.session_names.get_indexer(names.to_pandas())
    sessions = np.where((times == NO_TIME) | names.is_null().to_numpy(False), NO_SESSION, sessions)
    return sessions, requests.item_positions(items), times


_COLUMNS = (SESSION, ITEM, TIMESTAMP)


def _texts(chunks: list[pa.Array]) -> pa.Array:
    """Return ids as text, as in requests."""
    series, kind = values.categories(chunks, None)
    texts = pa.array(series, from_pandas=True)
    return texts.cast(pa.string()) if kind == "int64" else texts


def _next_clicks(requests: Requests, sessions: NDArray[Any], times: NDArray[Any]) -> NDArray[Any]:
    """(N,) number of the first click of the session after each request, -1 if there is none."""
    num_clicks = len(sessions)
    every_session = np.concatenate([sessions, requests.sessions])
    # clicks sort before requests of the same time, as an outcome must be later
    is_request = np.arange(len(every_session)) >= num_clicks
    every_time = np.concatenate([times, requests.times])
    order = np.lexsort((is_request, every_time, every_session))
    places = np.where(is_request[order], len(order), np.arange(len(order)))
    following = np.minimum.accumulate(places[::-1])[::-1]
    result = np.full(len(requests.times), -1)
    here = np.flatnonzero(is_request[order])
    row, place = order[here] - num_clicks, following[here]
    has_click = place < len(order)
    click = order[np.minimum(place, len(order) - 1)]
    same = has_click & (every_session[click] == requests.sessions[row])
    same &= requests.sessions[row] != NO_SESSION
    result[row[same]] = click[same]
    return result


def _ranks(requests: Requests, targets: NDArray[Any]) -> NDArray[Any]:
    """(N,) item positions -> rank in the list of each request."""
    lists = requests.lists
    hits = np.flatnonzero(lists.values == np.repeat(targets, lists.lengths))
    rows = np.searchsorted(lists.offsets, hits, side="right") - 1
    ranks = np.full(len(targets), NO_RANK)
    # reversed, so that the first position of a repeated item is assigned last
    ranks[rows[::-1]] = (hits - lists.offsets[rows] + 1)[::-1]
    return ranks


def by_value(column: pd.Series) -> dict[str, NDArray[Any]]:
    """Row numbers of each value, in the order of the values, without missing values."""
    groups = column.groupby(column, sort=True).indices
    return {str(value): np.asarray(rows) for value, rows in groups.items()}
