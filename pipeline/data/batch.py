"""Batch of sessions as right-padded tensors, the input of a model.

Padding is on the right, so that a causal model never sees it, and a batch of another width gives
the same hidden states.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.core.columns import PADDING
from pipeline.core.errors import DataError


class SessionBatch(NamedTuple):
    """Batch of B sessions of up to L interactions."""

    features: dict[str, Tensor]
    """Features by name. Interactions: (B, L), or (B, L, M) multi-valued, both 0 after the last
    interaction, or (B, L, P) vectors. Sessions: (B,), (B, P) vectors, or the shapes of interactions
    with L = 1."""
    lengths: Tensor
    """(B,) number of interactions of each session, 0 to L."""
    most_interactions: int | None = None
    """Maximum sum of the lengths in the static form of a training step; None for the packed form,
    see `pipeline.model.ops.slots`."""

    @property
    def is_static(self) -> bool:
        """Whether a training step has fixed shapes."""
        return self.most_interactions is not None

    @classmethod
    def from_features(cls, features: dict[str, Tensor], item: str) -> "SessionBatch":
        """Batch with the lengths of the item column, (B, L).

        DataError unless its padding is on the right.
        """
        present = features[item] != PADDING
        if bool((present[:, 1:] & ~present[:, :-1]).any()):
            raise DataError(
                f"{item!r} has 0, which is padding, before other values. Sessions stand on the "
                "left, padding on the right; a missing value is 1, an unknown one 2."
            )
        return cls(features, present.sum(1))

    @property
    def width(self) -> int:
        """L, the number of positions of the index features."""
        tables = [v for v in self.features.values() if v.dim() == 2]
        indices = [v for v in tables if not v.is_floating_point()]
        return max([0, *(v.size(1) for v in indices or tables)])

    def read(
        self, axes: Mapping[str, Collection[int]], vectors: Collection[str] = ()
    ) -> "SessionBatch":
        """Batch of the features in `axes`, each with an interaction axis of length L or 1.

        `axes` maps each feature to its allowed numbers of axes; two axes of a feature in `vectors`
        are (B, P). DataError for a missing feature or another shape.
        """
        features = {}
        for name, allowed in axes.items():
            if name not in self.features:
                raise DataError(
                    f"The batch has no feature {name!r}, which the model reads. It has: "
                    f"{', '.join(self.features) or 'none'}."
                )
            values = self.features[name]
            if values.dim() not in allowed:
                raise DataError(
                    f"Feature {name!r} comes with {values.dim()} axes, expected "
                    f"{' or '.join(map(str, allowed))}: sessions, then interactions."
                )
            of_session = values.dim() == 1 or (name in vectors and values.dim() == 2)
            features[name] = values.unsqueeze(1) if of_session else values
        return self._replace(features=features)

    def to(self, device: torch.device | str) -> "SessionBatch":
        """Copy of the batch on another device."""
        moved = {name: values.to(device) for name, values in self.features.items()}
        return self._replace(features=moved, lengths=self.lengths.to(device))


def newest(batch: SessionBatch, length: int, vectors: Collection[str] = ()) -> SessionBatch:
    """Newest `length` interactions of each session: (B, L, ...) -> (B, length, ...).

    `vectors` names the vector features, so that (B, P) is not read as P interactions. A batch of L
    <= `length` is returned unchanged.
    """
    width = batch.width
    if width <= length:
        return batch
    kept = batch.lengths.clamp(max=length)
    first = (batch.lengths - kept).unsqueeze(1)  # (B, 1)
    columns = torch.arange(length, device=batch.lengths.device)
    inside = columns < kept.unsqueeze(1)  # (B, length)
    positions = torch.where(inside, first + columns, 0)
    features = {}
    for name, values in batch.features.items():
        of_session = values.dim() < 2 or (name in vectors and values.dim() == 2)
        if not of_session and values.size(1) == width:
            shape = [*positions.shape, *[1] * (values.dim() - 2)]
            index = positions.reshape(shape).expand(-1, -1, *values.shape[2:])
            values = values.gather(1, index) * inside.reshape(shape).to(values.dtype)
        features[name] = values
    return batch._replace(features=features, lengths=kept)


def visible_positions(lengths: Tensor, width: int) -> Tensor:
    """Padding mask, (B,) lengths -> (B, L) bool: true for an interaction."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)
