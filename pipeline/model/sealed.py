"""A sealed model: it has no trainable parts, and predicts only from the newest interactions.

Shape letters: B sessions, L positions, Q width of queries, V rows of the item table.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pipeline.core.columns import OUT_OF_VOCABULARY
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.model.head import Head
from pipeline.model.masking import Stage
from pipeline.model.model import Model, TargetHidden


class NoPartsError(ConfigError, AttributeError):
    """Access to a part of a sealed model; `hasattr`, which tracing uses, returns False."""


class _Table(NamedTuple):
    """Size of an embedding table."""

    num_embeddings: int


class SealedInputs:
    """Inputs of a sealed model, with the interface of an input block."""

    def __init__(
        self, item: str, features: list[str], max_sequence_length: int, rows: Mapping[str, int]
    ) -> None:
        """`rows` are the table sizes of the index columns among `features`."""
        self.item = item
        self.feature_names = features
        self.max_sequence_length = max_sequence_length
        self.vectors: tuple[str, ...] = ()
        self.index_columns = {name: name for name in rows}
        self._rows = dict(rows)

    @property
    def item_table(self) -> _Table:
        """Size of the catalogue with the reserved rows."""
        return self.table(self.item)

    def table(self, column: str) -> _Table:
        """Size of the table of a column."""
        return _Table(self._rows[column])


class SealedModel(Model):
    """A model without heads; a subclass computes `session_queries` and scores."""

    causal = False
    """False for any model, so that evaluation makes one window per target: a sealed model predicts
    only the newest position."""
    no_parts = "The model has no parts."
    """Message of `NoPartsError`."""
    _inputs: SealedInputs

    @property
    def inputs(self) -> SealedInputs:  # type: ignore[override]
        """Inputs of the model."""
        return self._inputs

    @property
    def head(self) -> NoReturn:
        """ConfigError: a sealed model has no parts."""
        raise NoPartsError(self.no_parts)

    def __getattr__(self, name: str) -> Any:
        # Python calls this after a property raised an AttributeError
        if name == "head":
            raise NoPartsError(self.no_parts)
        return super().__getattr__(name)

    @property
    def all_heads(self) -> list[Head]:
        """Empty: a sealed model has no parts."""
        return []

    @property
    def columns(self) -> list[str]:
        """Columns of an evaluation batch: features, and columns of target tasks."""
        targets = [name for task in self.all_targets for name in task.columns]
        return list(dict.fromkeys([*self.inputs.feature_names, *targets]))

    @property
    def num_rows(self) -> int:
        """V"""
        return self.inputs.item_table.num_embeddings

    def forward(self, batch: SessionBatch) -> Tensor:
        """Scores that rank the items (B, V)."""
        return self.scores(self.session_queries(batch))

    def queries(self, hidden: Tensor) -> Tensor:
        """(..., Q), unchanged: queries take the place of hidden states."""
        return hidden

    def at_targets(self, batch: SessionBatch) -> TargetHidden:
        """Queries before the last interaction of each session, which is the target.

        Each session has one target: evaluation passes one window per target, see `causal`.
        """
        last = (batch.lengths - 1).clamp(min=0)
        targets = batch.features[self.inputs.item].gather(1, last[:, None])[:, 0]
        inside = torch.arange(batch.width, device=last.device) < last[:, None]
        features = {
            name: values * inside.to(values.dtype) if values.dim() == 2 else values
            for name, values in batch.features.items()
        }
        rows = (targets >= OUT_OF_VOCABULARY).nonzero()[:, 0]
        hidden = self.session_queries(SessionBatch(features, last))
        return TargetHidden(hidden[rows], targets[rows], rows, torch.ones_like(rows).bool())

    def loss(self, batch: SessionBatch, shares: Tensor | None = None) -> NoReturn:
        """ConfigError: a sealed model cannot be trained."""
        raise NoPartsError(self.no_parts)

    def encode(self, batch: SessionBatch, stage: Stage) -> NoReturn:
        """ConfigError: a sealed model has no hidden states."""
        raise NoPartsError(self.no_parts)
