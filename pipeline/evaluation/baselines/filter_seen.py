"""Baselines without what a session holds already, for logs in which nothing comes twice.

The published figures of the leave-one-out data sets are such. A target that stands in its own past
cannot be hit then, as it never would be recommended.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipeline.evaluation.baselines.ranking import Array, Baseline, Scores, chunks


@dataclass(frozen=True)
class WithoutSeen:
    """A baseline that has no score for what a prefix holds."""

    baseline: Baseline
    values: Array
    """Items of the whole prefixes, which may be longer than what the baseline scores by."""
    offsets: Array
    """(N + 1,) where each begins."""

    @property
    def name(self) -> str:
        """That of the baseline."""
        return self.baseline.name

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
        """(b,) prefixes -> (b, V) with 1 where one holds an item."""
        lengths = np.diff(self.offsets)[prefixes]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0)
        places += np.repeat(self.offsets[prefixes] - (ends - lengths), lengths)
        rows = np.repeat(np.arange(len(prefixes)), lengths)
        entries = np.ones(len(places), np.int64), (rows, self.values[places])
        matrix = sp.csr_array(entries, shape=(len(prefixes), num_rows))
        matrix.data[:] = 1  # repeated items were summed
        return matrix
