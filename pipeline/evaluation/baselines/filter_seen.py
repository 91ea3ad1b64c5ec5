"""Baselines that leave the items of the prefix out, for logs in which no item comes twice.

The published metrics of the leave-one-out data sets are measured so. A target that is in its own
prefix cannot be hit then, as it would never be recommended.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipeline.evaluation.baselines.ranking import Array, Baseline, Scores, chunks


@dataclass(frozen=True)
class WithoutSeen:
    """A baseline without scores for the items of the prefix."""

    baseline: Baseline
    values: Array
    """Items of the whole prefixes, which may be longer than those that the baseline reads."""
    offsets: Array
    """(N + 1,) where each begins."""

    def scores(self, values: Array, offsets: Array) -> Iterator[Scores]:
        """Ragged prefixes, (N + 1,) offsets -> chunks with one row for each prefix."""
        for matrix, rows, prefixes in self.baseline.scores(values, offsets):
            for chunk in chunks(np.diff(matrix.indptr)[rows]):
                own = matrix[rows[chunk]]  # (b, V)
                yield Scores(
                    own - own.multiply(self._seen(prefixes[chunk], own.shape[1])).tocsr(),
                    np.arange(own.shape[0]),
                    prefixes[chunk],
                )

    def _seen(self, prefixes: Array, num_rows: int) -> sp.csr_array:
        """(b,) prefixes -> (b, V) with 1 for the items of each."""
        lengths = np.diff(self.offsets)[prefixes]
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1] if len(ends) else 0)
        positions += np.repeat(self.offsets[prefixes] - (ends - lengths), lengths)
        rows = np.repeat(np.arange(len(prefixes)), lengths)
        entries = np.ones(len(positions), np.int64), (rows, self.values[positions])
        matrix = sp.csr_array(entries, shape=(len(prefixes), num_rows))
        matrix.data[:] = 1  # repeated items were summed
        return matrix
