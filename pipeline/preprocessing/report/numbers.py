"""Statistics of a column of numbers from a histogram with fixed bins.

Bins belong to the format of float32 and not to the data: sign, exponent and the first 8 bits of
the fraction of a number's distance from a centre. So histograms of parts are added up, and the
result does not depend on how the log was divided. With the sums of the fraction's other bits the
mean of each bin is exact to float32, and so is the mean of all; the deviation is to five digits.
"""

from typing import NamedTuple, Self

import numpy as np

_LOW_BITS = 15
"""Of float32's 32, those that do not choose the bin."""
BINS = 1 << (32 - _LOW_BITS)
_MAGNITUDE = np.int32((1 << 31) - 1)
_LOW = np.int32((1 << _LOW_BITS) - 1)
_LARGEST = np.finfo(np.float32).max
_DIGITS = 6
"""Significant digits that float32 has for sure."""


class NumberCounts(NamedTuple):
    """Of some numbers; U bins that are not empty."""

    bins: np.ndarray
    """(U,) int64, rising with the numbers in them."""
    counts: np.ndarray
    """(U,) int64"""
    lows: np.ndarray
    """(U,) int64, sums of the bits below the bin."""
    missing: int
    low: float
    """Least of all; inf where there is none."""
    high: float


def counted_numbers(numbers: np.ndarray, centre: float = 0.0) -> NumberCounts:
    """Of (N,) numbers, NaN where one is missing."""
    unknown = np.isnan(numbers)
    missing = int(np.count_nonzero(unknown))
    if missing:
        numbers = numbers[~unknown]
    if not len(numbers):
        none = np.empty(0, np.int64)
        return NumberCounts(none, none, none, missing, np.inf, -np.inf)
    low, high = float(numbers.min()), float(numbers.max())
    distance = numbers - centre
    if max(high - centre, centre - low) > _LARGEST:
        distance = np.clip(distance, -_LARGEST, _LARGEST)
    bits = (distance.astype(np.float32) + np.float32(0)).view(np.int32)  # -0 becomes 0
    # of negative ones all bits but the sign are turned, so that a greater number has a greater bin
    place = ((bits ^ ((bits >> 31) & _MAGNITUDE)) >> _LOW_BITS).astype(np.int64) + BINS // 2
    counts = np.bincount(place)
    lows = np.bincount(place, bits & _LOW)  # sums of integers below 2^53: exact in float64
    bins = np.flatnonzero(counts)
    return NumberCounts(
        bins,
        counts[bins],
        lows[bins].astype(np.int64),
        missing,
        low,
        high,
    )


class Numbers:
    """Counts of several parts, added up."""

    def __init__(self, centre: float = 0.0) -> None:
        """Of no number yet; `centre` is what each was counted with."""
        self.centre = centre
        self.missing = 0
        self.low, self.high = np.inf, -np.inf
        self._sums = np.zeros((2, BINS), np.int64)

    def add(self, found: NumberCounts) -> Self:
        """Those of a part."""
        for sums, more in zip(self._sums, found[1:3], strict=True):
            sums[found.bins] += more
        self.missing += found.missing
        self.low, self.high = min(self.low, found.low), max(self.high, found.high)
        return self

    @property
    def counts(self) -> np.ndarray:
        """(BINS,) int64"""
        return self._sums[0]

    @property
    def count(self) -> int:
        """Numbers that are not missing."""
        return int(self.counts.sum())

    def summary(self, quantiles: tuple[float, ...]) -> dict[str, float | None]:
        """mean, deviation (of a sample), least, greatest and `quantiles`; None without a number.

        A quantile is the mean of the bin that it falls into: within 0.4 % of its distance from
        the centre, and exact where a bin holds one value, as of whole numbers below 512 from 0.
        """
        names = ["mean", "deviation", "least", *(quantile_name(q) for q in quantiles), "greatest"]
        if not self.count:
            return dict.fromkeys(names)
        bins = np.flatnonzero(self.counts)
        counts, lows = (sums[bins].astype(np.float64) for sums in self._sums)
        base, unit = _values(bins)
        means = base + unit * lows / counts
        mean = float((counts * means).sum() / counts.sum())
        spread = float((counts * (means - mean) ** 2).sum())
        deviation = np.sqrt(spread / (counts.sum() - 1)) if counts.sum() > 1 else 0.0
        reached = np.cumsum(counts)
        places = [int(np.searchsorted(reached, q * reached[-1])) for q in quantiles]
        found = [self.centre + float(means[place]) for place in places]
        found = [min(max(value, self.low), self.high) for value in found]
        mean = min(max(self.centre + mean, self.low), self.high)
        ends = [mean, float(deviation), self.low, *found, self.high]
        return {name: _short(value) for name, value in zip(names, ends, strict=True)}

    def bin_of(self, number: float) -> int:
        """The bin of a number."""
        return int(counted_numbers(np.array([number]), self.centre).bins[0])

    def from_least(self, least: float) -> Self:
        """Without the numbers whose bin is below that of `least`."""
        kept = type(self)(self.centre)
        begin = self.bin_of(least)
        kept._sums[:, begin:] = self._sums[:, begin:]
        kept.missing, kept.low, kept.high = self.missing, least, self.high
        return kept

    def edges(self, count: int) -> np.ndarray:
        """First bins of `count` groups, or fewer, that are about equally frequent; without 0."""
        filled = np.flatnonzero(self.counts)
        if len(filled) == 1:  # a constant: below it, at it, above it
            return np.append(filled, filled + 1)
        reached = np.cumsum(self.counts)
        wanted = reached[-1] * np.arange(1, count) / count
        return np.unique(np.searchsorted(reached, wanted, side="left") + 1)

    def grouped(self, edges: np.ndarray) -> np.ndarray:
        """(G,) how many numbers lie in each group that `edges` divide the bins into."""
        return np.add.reduceat(self.counts, np.append(0, edges[edges < BINS]))


def quantile_name(share: float) -> str:
    """`50 %`, `2.5 %`."""
    return f"{100 * share:g} %"


def _values(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each bin begins, from 0 on, and what one of its lower bits is worth, with the sign."""
    bits = (bins - BINS // 2).astype(np.int32) << _LOW_BITS
    negative = bits < 0
    magnitude = np.where(negative, bits ^ (_MAGNITUDE & ~_LOW), bits) & _MAGNITUDE
    sign = np.where(negative, -1.0, 1.0)
    exponent = np.maximum(magnitude >> 23, 1).astype(np.int64)
    return sign * magnitude.view(np.float32).astype(np.float64), sign * np.ldexp(
        1.0, exponent - 150
    )


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
