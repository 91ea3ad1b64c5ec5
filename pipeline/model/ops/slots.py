"""Rows of a batch that take part in a loss, in one of two forms.

The packed form holds only these rows. It is the least work, but the number of rows depends on the
mask, so each step would synchronize the GPU. The static form has a fixed number of slots; the last
ones may be empty and have weight 0. All shapes are known in advance, no step synchronizes the
device, and a step can be captured as a graph. The filled slots are the rows of the packed form in
the same order, so that random draws per slot are equal in both forms.

Shape letters: B sessions, L positions, T slots.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class Slots(NamedTuple):
    """True rows of a flattened (B, L) or (B,) mask, in order."""

    rows: Tensor
    """(T,) indices of flattened rows; the number of rows in an empty slot."""
    filled: Tensor | None
    """(T,) bool, None for the packed form, which has no empty slot."""
    num_axes: int
    """Axes of the mask."""

    @classmethod
    def of(cls, mask: Tensor, most: int | None) -> Self:
        """Make `most` slots of a bool `mask`, or the packed form for None.

        Rows beyond the first `most` are left out.
        """
        flat = mask.reshape(-1)
        if most is None:
            return cls(flat.nonzero().squeeze(1), None, mask.dim())
        most = min(most, flat.numel())
        slot = flat.cumsum(0) - 1
        # rows without a slot write to an extra slot, which is cut off
        slot = torch.where(flat & (slot < most), slot, most)
        every = torch.arange(flat.numel(), device=flat.device)
        rows = torch.full((most + 1,), flat.numel(), device=flat.device)
        rows = rows.scatter(0, slot, every)[:most]
        return cls(rows, rows < flat.numel(), mask.dim())

    def take(self, values: Tensor) -> Tensor:
        """(B, L, ...) or (B, ...) -> (T, ...); an empty slot holds an arbitrary row."""
        return self._flat(values).index_select(0, self._existing())

    def put(self, values: Tensor, rows: Tensor) -> Tensor:
        """(B, L, ...), (T, ...) -> (B, L, ...) with `rows` at the positions of the filled slots."""
        flat = self._flat(values)
        if self.filled is None:
            return flat.index_copy(0, self.rows, rows).view_as(values)
        longer = torch.cat([flat, flat[:1]]).index_copy(0, self.rows, rows)
        return longer[:-1].view_as(values)

    def only_filled(self, values: Tensor, other: float) -> Tensor:
        """(..., T) -> (..., T) with `other` in empty slots."""
        return values if self.filled is None else values.masked_fill(~self.filled, other)

    def num_filled(self) -> Tensor:
        """Number of filled slots, ()."""
        if self.filled is None:
            return torch.full((), len(self.rows), device=self.rows.device)
        return self.filled.sum()

    def mean(self, values: Tensor) -> Tensor:
        """(T,) -> (): mean over the filled slots, 0 if there are none."""
        if self.filled is None:
            return values.mean() if len(values) else values.sum()
        return self.only_filled(values, 0.0).sum() / self.num_filled().clamp(min=1)

    def _existing(self) -> Tensor:
        return self.rows if self.filled is None else self.rows * self.filled

    def _flat(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *values.shape[self.num_axes :])
