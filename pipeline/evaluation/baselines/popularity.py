"""Popularity and recent popularity."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipeline.evaluation.baselines.ranking import Array, Scores
from pipeline.evaluation.baselines.sessions import drop_reserved


@dataclass(frozen=True)
class Popularity:
    """The same scores for every prefix."""

    counts: sp.csr_array
    """(1, V) interactions of each item."""

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:  # noqa: ARG002
        """Ragged prefixes, (N + 1,) offsets -> all N prefixes on one row."""
        yield self.of_prefixes(np.arange(len(offsets) - 1))

    def of_prefixes(self, prefixes: Array) -> Scores:
        """(b,) prefixes -> their scores."""
        return Scores(self.counts, np.zeros_like(prefixes), prefixes)


def popularity(values: Array, offsets: Array, num_rows: int) -> Popularity:
    """Score = interactions of the item in training."""
    values, _ = drop_reserved(values, offsets)
    ones = np.ones_like(values)
    return Popularity(sp.csr_array((ones, (np.zeros_like(values), values)), shape=(1, num_rows)))


def recent_popularity(
    values: Array, offsets: Array, num_rows: int, recent: float = 0.1
) -> Popularity:
    """Score = interactions in the newest tenth of the training sessions; of equals, in all.

    Training sessions stand oldest first. After Ji et al., "A re-visit of the popularity baseline
    in recommender systems" (SIGIR 2020), which counts what is recent alone.
    """
    every = popularity(values, offsets, num_rows).counts
    first = math.floor((len(offsets) - 1) * (1 - recent))
    newest = popularity(values, offsets[first:], num_rows).counts
    # whole numbers, so that equal counts are ties
    counts = newest * (int(every.sum()) + 1) + every
    return Popularity(sp.csr_array(counts))
