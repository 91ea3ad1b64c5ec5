"""Result of an experiment: its arms, their differences from the control, and the sample ratio."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import chdtrc, stdtr, stdtrit

from pipeline.monitoring.outcomes import Estimate, OnlineMetrics, Outcomes, by_value
from pipeline.monitoring.requests import Requests
from pipeline.serve.proxy.session_names import CONTROL

SAMPLE_RATIO_LIMIT = 0.001
"""p-value below which the numbers of sessions do not fit the shares: arms were not chosen by the
hash alone, or requests were lost, so differences are not valid."""


@dataclass(frozen=True)
class ArmResult:
    """Figures of an arm."""

    name: str
    share: float | None
    """Configured share of the arm; None if it was changed."""
    sessions: int
    requests: int
    online: OnlineMetrics | None
    """None without later clicks."""


@dataclass(frozen=True)
class Difference:
    """Metric of an arm minus that of the control, which are independent samples of sessions."""

    arm: str
    metric: str
    difference: float
    low: float
    high: float
    """Upper end of the 95 % interval, from `low`."""
    p: float
    """Two-sided p-value of no difference, by Welch's t-test on the cluster-robust errors; not
    corrected for the number of metrics and arms."""


@dataclass(frozen=True)
class ExperimentResult:
    """Result of an A/B test."""

    name: str
    arms: list[ArmResult]
    differences: list[Difference]
    sample_ratio_p: float | None
    """p-value of the chi-squared test of the numbers of sessions against the shares; None if the
    shares were changed or a session is in two arms."""
    moved_sessions: int
    """Sessions with more than one arm, as after a change of shares; they are left out."""

    @property
    def fits_shares(self) -> bool:
        """Whether the numbers of sessions fit the shares."""
        return self.sample_ratio_p is None or self.sample_ratio_p >= SAMPLE_RATIO_LIMIT


def experiment_results(
    requests: Requests, outcomes: Outcomes | None, cutoffs: tuple[int, ...]
) -> list[ExperimentResult]:
    """Results of all experiments of a log, by name."""
    return [
        _result(requests, name, rows, outcomes, cutoffs)
        for name, rows in by_value(requests.experiments).items()
    ]


def _result(
    requests: Requests,
    name: str,
    rows: NDArray[Any],
    outcomes: Outcomes | None,
    cutoffs: tuple[int, ...],
) -> ExperimentResult:
    arms = requests.arms.iloc[rows]
    sessions = pd.Series(requests.sessions[rows])
    is_moved = pd.Series(arms.to_numpy()).groupby(sessions).transform("nunique").to_numpy() > 1
    num_moved = sessions[is_moved].nunique()
    by_arm = by_value(arms[~is_moved].reset_index(drop=True))
    kept = rows[~is_moved]
    settings = requests.shares.get(name, [])
    shares = dict(settings[0]) if len(settings) == 1 else {}
    if shares:
        shares[CONTROL] = 1 - sum(shares.values())
    results = [
        ArmResult(
            arm,
            shares.get(arm),
            len(np.unique(requests.sessions[kept[by_arm[arm]]])) if arm in by_arm else 0,
            len(by_arm.get(arm, ())),
            outcomes.metrics(requests, kept[by_arm[arm]], cutoffs)
            if outcomes is not None and arm in by_arm
            else None,
        )
        for arm in sorted({*by_arm, *shares}, key=lambda arm: (arm != CONTROL, arm))
    ]
    is_whole = bool(shares) and not num_moved
    return ExperimentResult(
        name=name,
        arms=results,
        differences=_differences(results),
        sample_ratio_p=sample_ratio(results) if is_whole else None,
        moved_sessions=int(num_moved),
    )


def sample_ratio(arms: list[ArmResult]) -> float | None:
    """p-value of the numbers of sessions under the shares; None for an unknown share."""
    if any(arm.share is None for arm in arms):
        return None
    counts = np.array([arm.sessions for arm in arms])
    expected = counts.sum() * np.array([arm.share for arm in arms])
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(chdtrc(len(arms) - 1, statistic))


def _differences(arms: list[ArmResult]) -> list[Difference]:
    control = next((arm.online for arm in arms if arm.name == CONTROL), None)
    if control is None:
        return []
    of_control = _metrics(control)
    pairs = [
        (arm.name, metric, value, of_control[metric])
        for arm in arms
        if arm.name != CONTROL and arm.online is not None
        for metric, value in _metrics(arm.online).items()
        if metric in of_control
    ]
    return [
        difference
        for arm, metric, value, base in pairs
        if (difference := compare_estimates(arm, metric, value, base)) is not None
    ]


def _metrics(online: OnlineMetrics) -> dict[str, Estimate]:
    followed = {} if online.followed is None else {"followed": online.followed}
    return online.metrics | followed


def compare_estimates(arm: str, metric: str, one: Estimate, base: Estimate) -> Difference | None:
    """Return the difference of two independent means; None unless both have an interval."""
    if one.error is None or base.error is None:
        return None
    variances = np.array([one.error, base.error]) ** 2
    freedom = np.array([one.sessions, base.sessions]) - 1
    error = float(np.sqrt(variances.sum()))
    # Welch and Satterthwaite's degrees of freedom
    degrees = variances.sum() ** 2 / (variances**2 / freedom).sum()
    difference = one.value - base.value
    margin = float(stdtrit(degrees, 0.975)) * error
    p = float(2 * stdtr(degrees, -abs(difference) / error))
    return Difference(arm, metric, difference, difference - margin, difference + margin, p)
