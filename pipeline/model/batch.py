"""What a model reads: sessions as right-padded rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.core.columns import PADDING


class SessionBatch(NamedTuple):
    """B sessions."""

    features: dict[str, Tensor]
    """Per feature (B, L), one value an interaction, 0 after the last; or (B,), one a session."""
    lengths: Tensor
    """(B,) interactions of each session, 0..L."""

    @classmethod
    def from_features(cls, features: dict[str, Tensor], item: str) -> "SessionBatch":
        """Lengths from the padding of the item column, (B, L)."""
        return cls(features, (features[item] != PADDING).sum(1))

    def to(self, device: torch.device | str) -> "SessionBatch":
        """Copy on another device."""
        moved = {name: values.to(device) for name, values in self.features.items()}
        return SessionBatch(moved, self.lengths.to(device))


def newest(batch: SessionBatch, length: int) -> SessionBatch:
    """Keep the newest `length` interactions of each session: (B, L) -> (B, length).

    A batch that is not wider comes back as it is.
    """
    width = max((v.size(1) for v in batch.features.values() if v.dim() == 2), default=0)
    if width <= length:
        return batch
    kept = batch.lengths.clamp(max=length)
    first = (batch.lengths - kept).unsqueeze(1)  # (B, 1)
    columns = torch.arange(length, device=batch.lengths.device)
    inside = columns < kept.unsqueeze(1)  # (B, length)
    positions = torch.where(inside, first + columns, 0)
    features = {}
    for name, values in batch.features.items():
        if values.dim() == 2:
            values = values.gather(1, positions) * inside.to(values.dtype)
        features[name] = values
    return SessionBatch(features, kept)


def visible_positions(lengths: Tensor, width: int) -> Tensor:
    """(B,) -> (B, L) bool: true where there is an interaction."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)
