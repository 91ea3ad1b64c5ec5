"""Histogram of numbers with fixed bins, so that histograms of shards can be merged.

Bins do not depend on the data: sign, exponent and the first 8 bits of the fraction of the number's
distance from a centre, as float32. A bin is 0.4 % of that distance wide.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_LOW_BITS = 15
"""Low bits of a float32 that the bin ignores."""
_FLOAT32_MAX = np.finfo(np.float32).max


@dataclass(frozen=True)
class Histogram:
    """Counts and sums of numbers in U non-empty bins."""

    centre: float
    bins: NDArray[Any]
    """(U,) int64, in the order of the numbers in them."""
    counts: NDArray[Any]
    """(U,) int64."""
    sums: NDArray[Any]
    """(U,) float64 sums of distances from the centre."""
    missing: int = 0
    low: float = np.inf
    """Minimum of all numbers, inf without any."""
    high: float = -np.inf

    @classmethod
    def of(cls, numbers: NDArray[Any], centre: float = 0.0) -> Self:
        """Histogram of (N,) float64 numbers; NaN is missing."""
        is_missing = np.isnan(numbers)
        missing = int(np.count_nonzero(is_missing))
        if missing:
            numbers = numbers[~is_missing]
        if not len(numbers):
            return cls(centre, np.empty(0, int), np.empty(0, int), np.empty(0), missing)
        low, high = float(numbers.min()), float(numbers.max())
        distance = numbers - centre
        if max(high - centre, centre - low) > _FLOAT32_MAX:
            distance = np.clip(distance, -_FLOAT32_MAX, _FLOAT32_MAX)
        bins = _bins(distance)
        first = int(bins.min())
        counts = np.bincount(bins - first)
        sums = np.bincount(bins - first, distance)
        filled = np.flatnonzero(counts)
        return cls(centre, filled + first, counts[filled], sums[filled], missing, low, high)

    def merge(self, other: Self) -> Self:
        """Sum of two histograms with the same centre."""
        bins, inverse = np.unique(np.append(self.bins, other.bins), return_inverse=True)
        return replace(
            self,
            bins=bins,
            # exact: integers below 2^53
            counts=np.bincount(inverse, np.append(self.counts, other.counts)).astype(np.int64),
            sums=np.bincount(inverse, np.append(self.sums, other.sums)),
            missing=self.missing + other.missing,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
        )

    @property
    def count(self) -> int:
        """Count of non-missing numbers."""
        return int(self.counts.sum())

    def summary(self, quantiles: tuple[float, ...]) -> dict[str, float | None]:
        """Mean, sample deviation, minimum, quantiles and maximum; None without a number.

        A quantile is the mean of its bin: exact if the bin holds one value, as for whole numbers
        below 512 from 0. The deviation is exact to five digits.
        """
        names = ["mean", "deviation", "least", *(f"{100 * q:g} %" for q in quantiles), "greatest"]
        if not self.count:
            return dict.fromkeys(names)
        means = self.sums / self.counts
        mean = float(self.sums.sum() / self.count)
        squares = float((self.counts * (means - mean) ** 2).sum())
        deviation = float(np.sqrt(squares / max(self.count - 1, 1)))
        cumulative = np.cumsum(self.counts)
        of_quantiles = means[np.searchsorted(cumulative, np.array(quantiles) * self.count)]
        points = np.array([mean, *of_quantiles]) + self.centre
        mean, *of_quantiles = np.clip(points, self.low, self.high)
        numbers = [mean, deviation, self.low, *of_quantiles, self.high]
        return {name: round_digits(value) for name, value in zip(names, numbers, strict=True)}

    def at_least(self, number: float) -> Self:
        """Histogram without the bins below that of `number`."""
        kept = self.bins >= _bins(np.array([number - self.centre]))[0]
        return replace(
            self,
            bins=self.bins[kept],
            counts=self.counts[kept],
            sums=self.sums[kept],
            low=max(self.low, number),
        )

    def counts_from(self, starts: list[int]) -> NDArray[Any]:
        """(G,) numbers from each of the ascending `starts` up to the next one."""
        return self.group_counts(_bins(np.array(starts) - self.centre))[1:]

    def quantile_edges(self, num_groups: int) -> NDArray[Any]:
        """Ascending bins at which groups of about equal size begin, the first one left out.

        At most `num_groups - 1`; for a constant, its bin and the next one.
        """
        if len(self.bins) < 2:
            return np.append(self.bins, self.bins + 1)
        cumulative = np.cumsum(self.counts)
        targets = cumulative[-1] * np.arange(1, num_groups) / num_groups
        return np.unique(self.bins[np.searchsorted(cumulative, targets)] + 1)

    def group_counts(self, edges: NDArray[Any]) -> NDArray[Any]:
        """(G,) int64 numbers in each of the groups that `edges` divide the bins into."""
        group = np.searchsorted(edges, self.bins, side="right")
        return np.bincount(group, self.counts, minlength=len(edges) + 1).astype(np.int64)


def _bins(distance: NDArray[Any]) -> NDArray[Any]:
    """(N,) int64 bin of each distance from the centre."""
    bits = (distance.astype(np.float32) + np.float32(0)).view(np.int32)  # -0 becomes 0
    # inverting all bits but the sign of negative numbers makes the integers sort as the numbers
    ordered = bits ^ ((bits >> 31) & np.int32((1 << 31) - 1))
    return (ordered >> _LOW_BITS).astype(np.int64)


def round_digits(value: float) -> float:
    """Round to the six significant digits of float32."""
    return float(f"{value:.6g}")
