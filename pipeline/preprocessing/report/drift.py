"""How far a later part is from training, column by column.

The population stability index (PSI; N. Siddiqi, Credit Risk Scorecards, 2006) and the distance of
Jensen and Shannon (the square root of J. Lin's divergence, IEEE Transactions on Information
Theory 37, 1991, to base 2: from 0 to 1), over the bins of a column.

Both grow where there are few sessions and nothing has changed: without drift PSI is about
(B - 1)(1/n + 1/m) for B bins and samples of n and m, and spread like chi-squared with B - 1
degrees of freedom (B. Yurdakul, 2018). n and m count sessions (`counting.Totals.size`): the
interactions of one resemble each other. What is judged is the part of PSI above its expected value.
"""

import math
from typing import NamedTuple

import numpy as np

from pipeline.core.columns import FIRST_ITEM, NULL, OUT_OF_VOCABULARY
from pipeline.preprocessing.report.counting import Categories
from pipeline.preprocessing.report.numbers import Numbers

LITTLE, SOME, MUCH = "little", "some", "much"
THRESHOLDS = ((0.1, LITTLE), (0.25, SOME), (math.inf, MUCH))
"""Siddiqi's: below .1 nothing to see to, from .25 on the population is another one."""
FEWEST_SESSIONS = 20
"""With less in either part nothing is said."""
_RARE = 5
"""Sessions that a bin should have, at least, in the smaller of the parts (Cochran's rule)."""
_TOP_VALUES = 50
_NUMBER_BINS = 10
_ONE_IN_A_THOUSAND = 3.09
"""Of a normal deviate, the value that one in a thousand exceeds."""


class Drift(NamedTuple):
    """Of one column."""

    psi: float
    expected: float
    """PSI without drift, from the size of the samples alone."""
    excess: float
    """What is above that; at least 0."""
    jensen_shannon: float
    bins: int
    word: str | None
    """None where there is too little to tell."""


def drift(reference: np.ndarray, found: np.ndarray, n: int, m: int) -> Drift | None:
    """Of (B,) counts in the bins of a column, where the parts have `n` and `m` sessions.

    None where fewer than two bins have a count.
    """
    there = (reference > 0) | (found > 0)
    reference, found = reference[there], found[there]
    if len(reference) < 2 or not reference.sum() or not found.sum():
        return None
    p, q = smoothed(reference, n), smoothed(found, m)
    value, spread = psi(p, q), 1 / n + 1 / m
    degrees = len(p) - 1
    expected = degrees * spread
    # Wilson and Hilferty's approximation of chi-squared
    part = 2 / (9 * degrees)
    limit = degrees * (1 - part + _ONE_IN_A_THOUSAND * math.sqrt(part)) ** 3 * spread
    excess = max(0.0, value - expected)
    word = None
    if min(n, m) >= FEWEST_SESSIONS:
        word = LITTLE if value <= limit else next(w for bound, w in THRESHOLDS if excess < bound)
    return Drift(value, expected, excess, jensen_shannon(p, q), len(p), word)


def smoothed(counts: np.ndarray, sessions: int) -> np.ndarray:
    """Shares of (B,) counts, with half a session more in each bin, so that none is 0."""
    size = min(sessions, int(counts.sum()))
    return (counts * (size / counts.sum()) + 0.5) / (size + 0.5 * len(counts))


def psi(p: np.ndarray, q: np.ndarray) -> float:
    """Population stability index of (B,) shares, none of which is 0; the sum of both divergences.

    The same for (p, q) and (q, p).
    """
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Distance of (B,) shares: 0 of equal ones, 1 of such that have no bin in common."""
    middle = (p + q) / 2
    parts = [x[x > 0] * np.log2(x[x > 0] / middle[x > 0]) for x in (p, q)]
    return float(np.sqrt(max(0.0, sum(part.sum() for part in parts) / 2)))


def category_bins(
    reference: Categories, found: Categories, fewest: int
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) counts of the most frequent values, the rest, unknown ones and missing ones.

    `fewest` are the sessions of the smaller part. What training has never seen is unknown. Training
    has none of that, by construction; as its share counts that of the values which stand in one
    session alone: they would be unknown if that session were a later one (I. J. Good, 1953).
    """
    known = reference.known
    total = reference.counts.sum()
    alone = reference.sessions[FIRST_ITEM:] == 1
    common = np.flatnonzero(known >= max(1, _RARE * total / max(fewest, 1)))
    top = common[np.argsort(-known[common], kind="stable")[:_TOP_VALUES]]
    top = top[~alone[top]]
    rows = []
    for counts, unseen in ((reference.counts, alone), (found.counts, known == 0)):
        own = counts[FIRST_ITEM:]
        unknown = counts[OUT_OF_VOCABULARY] + own[unseen].sum()
        rest = own.sum() - own[unseen].sum() - own[top].sum()
        rows.append(np.array([*own[top], rest, unknown, counts[NULL]]))
    return rows[0], rows[1]


def number_bins(
    reference: Numbers, found: Numbers, fewest: int, least: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) counts in groups that are about equally frequent in training, and of missing ones.

    With `least`, only of numbers that are not below it.
    """
    if least is not None:
        reference, found = reference.from_least(least), found.from_least(least)
    edges = reference.edges(min(_NUMBER_BINS, max(2, fewest // _RARE)))
    return (
        np.append(reference.grouped(edges), reference.missing),
        np.append(found.grouped(edges), found.missing),
    )


def per_exposure(
    reference: np.ndarray, found: np.ndarray, exposures: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """(B,) counts of hours or weekdays as they were if each had come up equally often.

    `exposures` is how often each came up in both parts. One that came up less than half a time is
    left out; None where more than a quarter is, so that there is nothing to compare.
    """
    usable = (exposures[0] >= 0.5) & (exposures[1] >= 0.5)
    if usable.mean() < 0.75:
        return None
    rows = []
    for counts, exposure in zip((reference, found), exposures, strict=True):
        rate = counts[usable] / exposure[usable]
        rows.append(rate * (counts.sum() / rate.sum()) if rate.any() else rate)
    return rows[0], rows[1]
