"""Pretrained vectors, of texts, images or graphs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.schema import Schema
from pipeline.model.inputs.columns import (
    Combiner,
    InputOptions,
    Normalizer,
    check_combiner,
    check_names,
    check_positive,
)
from pipeline.model.inputs.tables import as_matrix, look_up


class VectorProjection(nn.Module):
    """Project vectors to `output_dim`, None for no projection, then normalize them."""

    def __init__(
        self, width: int, output_dim: int | None = None, normalizer: Normalizer | None = None
    ) -> None:
        super().__init__()
        if normalizer not in (None, "layer-norm"):
            raise ConfigError(f"normalizer is {normalizer!r}. Expected 'layer-norm' or None.")
        if output_dim is not None:
            check_positive("The output width of vectors", output_dim)
        self.width = width
        self.output_size = width if output_dim is None else output_dim
        self.projection = nn.Identity() if output_dim is None else nn.Linear(width, output_dim)
        self.normalizer = nn.Identity() if normalizer is None else nn.LayerNorm(self.output_size)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, L, P) -> (B, L, d). DataError for vectors of another width than P."""
        if vectors.size(-1) != self.width:
            raise DataError(
                f"Vectors have {int(vectors.size(-1))} numbers, the schema says {self.width}."
            )
        return self.normalizer(self.projection(vectors))


class PretrainedEmbeddings(nn.Module):
    """Pretrained vectors of a feature, looked up by the index of its table.

    `weight_matrix` is that of PretrainedEmbeddingsInitializer. It is saved with the weights of the
    model, `trainable` or not. `combiner` merges the vectors of several indices into one.
    """

    def __init__(
        self,
        weight_matrix: Any,
        trainable: bool = False,
        output_dim: int | None = None,
        normalizer: Normalizer | None = None,
        combiner: Combiner = "mean",
    ) -> None:
        super().__init__()
        check_combiner(combiner)
        matrix = as_matrix(weight_matrix)
        self.combiner = combiner
        self.table = nn.Embedding(matrix.size(0), matrix.size(1), padding_idx=PADDING)
        with torch.no_grad():
            self.table.weight.copy_(matrix)
            self.table.weight[:FIRST_ITEM] = 0
        self.table.weight.requires_grad_(trainable)
        self.projection = VectorProjection(matrix.size(1), output_dim, normalizer)
        self.output_size = self.projection.output_size

    def forward(self, indices: Tensor) -> Tensor:
        """(B, L) or (B, L, M) -> (B, L, d)."""
        return self.projection(look_up(self.table, indices, self.combiner))


def check_pretrained(
    pretrained: Mapping[str, PretrainedEmbeddings], num_rows: Mapping[str, int]
) -> None:
    """ConfigError for an unknown feature, another class, or a matrix of other rows."""
    check_names("pretrained_embeddings", pretrained, num_rows, "categorical")
    if len(set(map(id, pretrained.values()))) < len(pretrained):
        raise ConfigError("pretrained_embeddings gives one object to two features. Make two.")
    for name, embeddings in pretrained.items():
        if not isinstance(embeddings, PretrainedEmbeddings):
            raise ConfigError(
                f"pretrained_embeddings has a {type(embeddings).__name__} for {name!r}, expected "
                "tr.PretrainedEmbeddings(matrix)."
            )
        rows = embeddings.table.num_embeddings
        if rows != num_rows[name]:
            raise ConfigError(
                f"The pretrained matrix of {name!r} has {rows} rows, the feature has "
                f"{num_rows[name]}: its values and 3 reserved ones."
            )


def build_vector_projections(columns: Schema, options: InputOptions) -> dict[str, VectorProjection]:
    """Build the projection of each column of vectors, by name."""
    output_dims = options.pretrained_output_dims
    if isinstance(output_dims, Mapping):
        check_names("pretrained_output_dims", output_dims, columns.column_names, "embedding")
        dims = dict(output_dims)
    else:
        dims = {} if output_dims is None else dict.fromkeys(columns.column_names, output_dims)
    return {
        c.name: VectorProjection(c.width, dims.get(c.name), options.normalizer) for c in columns
    }
