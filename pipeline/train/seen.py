"""Rankings without what a session holds already, for logs in which nothing comes twice.

The published figures of the leave-one-out data sets are such. A target that stands in its own past
cannot be hit then, as it never would be recommended.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY
from pipeline.train.baselines import Array, Baseline, Scores, chunks
from pipeline.train.loader import RaggedBatch


def target_places(
    items: Tensor, sessions: Tensor, starts: Tensor, lengths: Tensor, every: Tensor
) -> tuple[Tensor, Tensor]:
    """(W, L) items of windows -> (T,) session of each target and (T,) its place there.

    In the order of rows and positions. `sessions`, `starts` and `lengths` (W,) say where a window
    lies; in a window of `every` all positions but the first are targets, in others the last.
    """
    places = torch.arange(items.size(1), device=items.device)
    last = places == (lengths - 1).unsqueeze(1)
    wanted = (places > 0) & (places < lengths.unsqueeze(1)) & (every.unsqueeze(1) | last)
    # an unknown item is a target, a missing one is none
    rows, columns = (wanted & (items >= OUT_OF_VOCABULARY)).nonzero(as_tuple=True)
    return sessions[rows], starts[rows] + columns


def hide_seen(
    scores: Tensor, batch: RaggedBatch, item: str, sessions: Tensor, places: Tensor
) -> Tensor:
    """(T, items) scores -> the same with minus infinity for what came before each target.

    All of the session counts, also what lies further back than the model reads.
    """
    first = batch.offsets[sessions]
    rows = torch.repeat_interleave(torch.arange(places.numel(), device=places.device), places)
    within = torch.arange(rows.numel(), device=rows.device)
    within = within - torch.repeat_interleave(places.cumsum(0) - places, places)
    seen = batch.sequences[item][first[rows] + within].to(torch.int64)
    known = seen >= FIRST_ITEM
    hidden = scores.clone()
    rows, seen = rows[known].to(scores.device), seen[known].to(scores.device) - FIRST_ITEM
    hidden[rows, seen] = float("-inf")
    return hidden


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
