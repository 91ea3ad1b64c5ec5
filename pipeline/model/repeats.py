"""Repeats: a share of the next item's distribution for the session's own items.

A softmax over the catalogue underestimates returns to items further back in the session. The
ranking score is the logarithm of

    (1 - r) softmax(scores) + r c

where r is the share of repeats, and c is the distribution of the session's interactions by 1 /
distance from the end.

Letters: B sessions, P positions, L interactions, N newest interactions with a share, T sessions
with their positions in one row, V rows of the item table, E width of item vectors, Q = E + 1 + 2 N
width of queries, C items.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError

MOST_INTERACTIONS = 50
"""Maximum N: interactions further back have at most a fiftieth of the newest one's weight."""
_LARGEST_INDEX = 1 << 24
"""Item indices are stored as float32, which is exact for integers up to here."""
_SMALLEST = 1e-37
"""Lower bound before logarithms: that of 0 takes a CPU four times as long."""
_ITEMS_AT_ONCE = 8192
"""Items per chunk of summed scores, so that no (T, V) scores are in memory."""


@dataclass(frozen=True)
class Repeats:
    """Adds the share of repeats to scores that are inner products.

    The query of a session is the network's query, the logarithm of the network's share minus that
    of its softmax sum, and index and share of each of the newest N interactions. The last number of
    an item's vector is its index. So `score` needs neither session nor catalogue.
    """

    share: float
    """r, above 0 and below 1."""
    length: int
    """N"""

    @classmethod
    def of(cls, share: float, max_sequence_length: int, num_rows: int) -> "Repeats":
        """Repeats of a model that reads `max_sequence_length` interactions; `num_rows` is V."""
        if num_rows > _LARGEST_INDEX:
            raise ConfigError(
                f"`model.repeats` works with up to {_LARGEST_INDEX:,} items, and there are "
                f"{num_rows:,}. Leave it out."
            )
        return cls(share, min(max_sequence_length, MOST_INTERACTIONS))

    @property
    def width(self) -> int:
        """2 N, the width of `of_positions`."""
        return 2 * self.length

    def of_positions(self, items: Tensor, ends: Tensor) -> Tensor:
        """(B, L) item indices, (B, P) numbers of interactions -> (B, P, 2 N) float32.

        Index and share of each of the newest N interactions among the first `ends`.
        """
        back = torch.arange(self.length, device=items.device)
        positions = ends.unsqueeze(2) - 1 - back  # (B, P, N)
        rows = items.unsqueeze(1).expand(-1, ends.size(1), -1)
        own = rows.gather(2, positions.clamp(min=0))
        weights = ((positions >= 0) & (own >= FIRST_ITEM)) / (back + 1)
        shares = self.share * weights / weights.sum(2, keepdim=True).clamp(min=1e-9)
        return torch.stack([own.to(shares), shares], 3).flatten(2)

    def queries(self, network: Tensor, items: Tensor, own: Tensor) -> Tensor:
        """(..., E) queries, (V - 3, E) items, (..., 2 N) of `of_positions` -> (..., Q)."""
        sums = [(network @ part.T).logsumexp(-1) for part in items.split(_ITEMS_AT_ONCE)]
        offset = math.log1p(-self.share) - torch.stack(sums, -1).logsumexp(-1, keepdim=True)
        return torch.cat([network, offset, own], -1)

    @staticmethod
    def items(vectors: Tensor, positions: Tensor | None) -> Tensor:
        """(C, E) vectors of the catalogue `positions`, None for all -> (C, E + 1)."""
        if positions is None:
            positions = torch.arange(len(vectors), device=vectors.device)
        return torch.cat([vectors, (positions + FIRST_ITEM).to(vectors).unsqueeze(1)], 1)

    @staticmethod
    def score(queries: Tensor, items: Tensor) -> Tensor:
        """(T, Q), (E + 1, C) transposed items -> (T, C) logarithms of probabilities."""
        vectors, indices = items[:-1], items[-1]
        width = vectors.size(0)
        network = queries[:, :width] @ vectors + queries[:, width : width + 1]
        own, shares = queries[:, width + 1 :].unflatten(1, (-1, 2)).unbind(2)
        # an item may occur in several columns
        distinct, columns = indices.unique(return_inverse=True)
        places = torch.searchsorted(distinct, own.contiguous()).clamp(max=distinct.size(0) - 1)
        shares = torch.where(distinct[places] == own, shares, 0.0)
        zeros = shares.new_zeros(shares.size(0), distinct.size(0))
        repeated = zeros.scatter_add(1, places, shares).index_select(1, columns)
        both = torch.logaddexp(network, repeated.clamp(min=_SMALLEST).log())
        return torch.where(repeated > 0, both, network)
