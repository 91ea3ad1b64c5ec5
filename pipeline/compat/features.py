"""Input blocks with the arguments of Transformers4Rec, and towers without an item.

Shape letters: B sessions or rows, L positions, d width of a feature, D width of the result.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from pipeline import model as blocks
from pipeline.compat.arguments import expect
from pipeline.compat.construction import Rebuildable
from pipeline.compat.transformations import PretrainedEmbeddings
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.batch import SessionBatch
from pipeline.data.loader import RaggedBatch
from pipeline.data.schema import ColumnSchema, Schema, Tags
from pipeline.evaluation.targets import Positions

ROW = "row"
"""Name of the artificial item of rows without an item: a row is a session of length 1."""
_VALUES, _OFFSETS = "__values", "__offsets"
"""Suffixes of the two columns of a ragged list, as in Merlin's dataloader."""


def as_schema(schema: Schema | Iterable[Any]) -> Schema:
    """Convert Merlin's schema; ours is returned unchanged."""
    return schema if isinstance(schema, Schema) else Schema.from_merlin(schema)


class TabularSequenceFeatures(Rebuildable, blocks.TabularSequenceFeatures):
    """Input block of sessions, see `pipeline.model.TabularSequenceFeatures`.

    `eval_on_last_item_seq_only` selects the targets of an evaluation: the last interaction of each
    session, or all except the first. A matrix in `pretrained_embeddings` becomes
    PretrainedEmbeddings with `pretrained_output_dims` and `normalizer`.
    """

    def __init__(
        self,
        schema: Schema | Iterable[Any],
        *,
        eval_on_last_item_seq_only: bool = True,
        automatic_build: bool = True,
        item_id: str | None = None,
        padding_idx: int = 0,
        aggregation: Any = None,
        **options: Any,
    ) -> None:
        expect("automatic_build", automatic_build, True, because="sizes follow from the schema")
        expect("padding_idx", padding_idx, 0, because="padding is index 0")
        columns = as_schema(schema)
        if item_id is not None:
            columns = _with_item(columns, item_id)
        tables = _tables_of(options)
        options |= tables
        super().__init__(columns, aggregation=aggregation or "concat", **options)
        positional, keywords = self.construction
        self.__dict__["construction"] = (positional, keywords | tables)
        self.schema = columns
        self.eval_on_last_item_seq_only = eval_on_last_item_seq_only

    @classmethod
    def from_schema(cls, schema: Schema | Iterable[Any], **options: Any) -> Self:
        """Build an input block from the features of our schema or Merlin's, see the class."""
        return cls(as_schema(schema), **options)

    @property
    def positions(self) -> Positions:
        """Positions that an evaluation predicts."""
        return "last" if self.eval_on_last_item_seq_only else "all"

    @property
    def item_id(self) -> str:
        """Name of the item feature."""
        return self.item


def _with_item(schema: Schema, item: str) -> Schema:
    """The schema with `item` as its only item."""
    columns = []
    for column in schema:
        tags = column.tags - {str(Tags.ITEM_ID)}
        if column.name == item:
            tags |= {str(Tags.ITEM_ID), str(Tags.ITEM)}
        columns.append(replace(column, tags=tags))
    return Schema(tuple(columns))


def _tables_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that change where `pretrained_embeddings` has matrices: tables take their place."""
    vectors = options.get("pretrained_embeddings")
    vectors = vectors if isinstance(vectors, Mapping) else {}
    matrices = {k: v for k, v in vectors.items() if not isinstance(v, blocks.PretrainedEmbeddings)}
    if not matrices:
        return {}
    dims = options.get("pretrained_output_dims")
    by_name = dims if isinstance(dims, Mapping) else dict.fromkeys(matrices, dims)
    tables = {
        name: PretrainedEmbeddings(
            matrix, output_dim=by_name.get(name), normalizer=options.get("normalizer")
        )
        for name, matrix in matrices.items()
    }
    if isinstance(dims, Mapping):
        dims = {name: dim for name, dim in dims.items() if name not in tables}
    return {"pretrained_embeddings": {**vectors, **tables}, "pretrained_output_dims": dims}


class TabularFeatures(TabularSequenceFeatures):
    """Features of a row without a session: users, contexts, candidates.

    A dictionary of (B,) or multi-valued (B, M) features becomes (B, D), or without an `aggregation`
    a dictionary of vectors (B, d). In a SequentialBlock each row is a session of one interaction,
    with the blocks, tasks and Trainer of sessions. `max_sequence_length` is ignored.
    """

    def __init__(
        self, schema: Schema | Iterable[Any], *, aggregation: Any = None, **options: Any
    ) -> None:
        expect("masking", options.pop("masking", None), None, because="a row is no session")
        options.pop("max_sequence_length", None)
        columns = as_schema(schema)
        if ROW in columns.column_names:
            raise ConfigError(f"A column is called {ROW!r}, which names the rows. Rename it.")
        row = ColumnSchema.create_categorical(ROW, 1, tags=[Tags.ITEM_ID])
        rows = Schema((row, *map(_of_row, columns)))
        widths = {**(options.pop("embedding_dims", None) or {}), ROW: 1}
        super().__init__(rows, aggregation=aggregation, embedding_dims=widths, **options)
        self.schema = columns
        self.returns_parts = aggregation is None
        self.item_table.requires_grad_(False)

    def forward(self, batch: Any, items: Tensor | None = None) -> Any:
        """SessionBatch of L = 1 -> (B, 1, D); a dictionary -> (B, D) or {name: (B, d)}."""
        if isinstance(batch, SessionBatch):
            return super().forward(batch, items)
        rows = as_rows(batch)
        if not self.returns_parts:
            return super().forward(rows, items).squeeze(1)
        parts = self._embed(self._stacked(rows.read(self._axes, self.vectors)).features)
        return {name: part.squeeze(1) for name, part in parts.items() if name != ROW}

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        """Vectors of the features by name, (B, 1, d) each -> (B, 1, D)."""
        return super().combine({name: part for name, part in parts.items() if name != ROW})

    def example_parts(self) -> dict[str, Tensor]:
        """Parts of a session of two padding interactions, without the artificial item."""
        parts = super().example_parts()
        del parts[ROW]
        return parts


class EmbeddingFeatures(TabularFeatures):
    """Embeddings of the categorical features of a row."""

    def __init__(self, schema: Schema | Iterable[Any], **options: Any) -> None:
        options |= {"continuous_tags": None, "pretrained_embeddings_tags": None}
        super().__init__(schema, **options)


class SoftEmbeddingFeatures(TabularFeatures):
    """Soft embeddings of the numbers of a row."""

    def __init__(self, schema: Schema | Iterable[Any], **options: Any) -> None:
        only = {"categorical_tags": None, "pretrained_embeddings_tags": None}
        super().__init__(schema, continuous_soft_embeddings=True, **options | only)


class ContinuousFeatures(TabularFeatures):
    """Numbers of a row, unchanged."""

    def __init__(self, schema: Schema | Iterable[Any], **options: Any) -> None:
        options |= {"categorical_tags": None, "pretrained_embeddings_tags": None}
        super().__init__(schema, **options)


def _of_row(column: ColumnSchema) -> ColumnSchema:
    """Convert a column of rows to one of sessions: values of a list become values of the one
    interaction, and an item becomes a category."""
    tags = column.tags - {str(Tags.ITEM_ID)}
    nested = -1 if column.is_list and not column.width else column.values_per_interaction
    return replace(column, tags=tags, is_list=False, values_per_interaction=nested)


def as_rows(features: Mapping[str, Tensor]) -> SessionBatch:
    """Batch of rows, each a session of one interaction."""
    first = next(iter(features.values()), None)
    if first is None:
        raise DataError("The batch has no feature.")
    rows = torch.full((len(first), 1), FIRST_ITEM, device=first.device)
    values = {name: v.unsqueeze(1) if v.dim() == 2 else v for name, v in features.items()}
    return SessionBatch({**values, ROW: rows}, torch.ones_like(rows[:, 0]))


def as_sessions(
    inputs: blocks.TabularSequenceFeatures,
    features: Mapping[str, Tensor] | SessionBatch,
    targets: Mapping[str, Tensor] | None = None,
) -> SessionBatch:
    """Batch from a dictionary of the original's loaders; a SessionBatch is returned unchanged.

    A list feature is (B, L) or ragged: `NAME__values` and `NAME__offsets`. `targets` are columns
    of further tasks. The dictionary is not changed.
    """
    if isinstance(features, SessionBatch):
        return features
    labels = {n: v.reshape(v.size(0), -1).squeeze(1) for n, v in (targets or {}).items()}
    columns = {**features, **labels}
    if inputs.item == ROW:
        return as_rows(columns)
    if any(name.endswith(_VALUES) for name in columns):
        return _padded(inputs, columns)
    padded = {name: _without_unit_axis(v) for name, v in columns.items()}
    return SessionBatch.from_features(padded, inputs.item)


def _padded(inputs: blocks.TabularSequenceFeatures, columns: Mapping[str, Tensor]) -> SessionBatch:
    """Batch of ragged columns, padded.

    With `max_sequence_length` the width is fixed, the newest interactions and a target, so that a
    traced model accepts sessions of any length.
    """
    ragged = [name.removesuffix(_VALUES) for name in columns if name.endswith(_VALUES)]
    sequences = {name: columns[name + _VALUES].reshape(-1) for name in ragged}
    endings = (_VALUES, _OFFSETS)
    sessions = {n: _without_unit_axis(v) for n, v in columns.items() if not n.endswith(endings)}
    offsets = columns[inputs.item + _OFFSETS].reshape(-1).to(torch.int64)
    batch = RaggedBatch(sequences, sessions, offsets)
    lengths, longest = batch.lengths, inputs.max_sequence_length
    starts, width = torch.zeros_like(lengths), None
    if longest is not None:
        width = longest + 1
        starts = (lengths - width).clamp(min=0)
    rows = torch.arange(lengths.size(0), device=lengths.device)
    return batch.window(rows, starts, lengths, width)


def sessions_of(inputs: blocks.TabularSequenceFeatures, batch: Any) -> SessionBatch:
    """Batch from an element of a loader: (features, targets), features or a SessionBatch."""
    if isinstance(batch, Mapping | SessionBatch):
        return as_sessions(inputs, batch)
    features, targets = batch
    return as_sessions(inputs, features, targets)


def _without_unit_axis(values: Tensor) -> Tensor:
    """(B, 1) -> (B,) for a number per session; others unchanged."""
    is_column = values.dim() == 2 and values.size(1) == 1 and values.is_floating_point()
    return values.squeeze(1) if is_column else values


def as_ragged(inputs: blocks.TabularSequenceFeatures, batch: SessionBatch) -> RaggedBatch:
    """Concatenate the sessions of a padded batch. ConfigError for vectors in the batch."""
    if inputs.vectors:
        raise ConfigError(
            f"{', '.join(inputs.vectors)}: sessions with vectors are evaluated at their last "
            "interaction. Leave out eval_on_last_item_seq_only=False."
        )
    width = batch.features[inputs.item].size(1)
    inside = torch.arange(width, device=batch.lengths.device) < batch.lengths.unsqueeze(1)
    sequences, sessions = {}, {}
    for name, values in batch.features.items():
        if values.dim() > 1 and values.size(1) == width:
            sequences[name] = values[inside]
        else:
            sessions[name] = values.reshape(len(values), -1)[:, 0]
    offsets = torch.nn.functional.pad(batch.lengths.cumsum(0), (1, 0))
    return RaggedBatch(sequences, sessions, offsets)
