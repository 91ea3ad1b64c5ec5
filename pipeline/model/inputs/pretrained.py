"""Vectors that were learned elsewhere, from text, images or graphs."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.schema import Schema
from pipeline.model.inputs.checks import check_names, check_positive
from pipeline.model.inputs.combiner import Combiner, check_combiner, look_up

Normalizer = Literal["layer-norm"]


class PretrainedEmbeddingsInitializer:
    """Fills the table of a feature, given in `embeddings_initializers`.

    `weight_matrix` is (rows, P) in the order of the feature's indices, rows 0, 1 and 2 reserved;
    `read_vectors` makes one. The table does not move in training unless `trainable`.
    """

    def __init__(self, weight_matrix: Any, trainable: bool = False) -> None:
        self.weight_matrix = as_matrix(weight_matrix)
        self.trainable = trainable

    def __call__(self, weight: Tensor) -> None:
        """Fill (rows, P) in place. ConfigError for another shape."""
        if weight.shape != self.weight_matrix.shape:
            raise ConfigError(
                f"The pretrained matrix is {_shape(self.weight_matrix)}, the table "
                f"{_shape(weight)}. Its rows are the values of the feature and 3 reserved ones."
            )
        with torch.no_grad():
            weight.copy_(self.weight_matrix)
        weight.requires_grad_(self.trainable)


class VectorProjection(nn.Module):
    """Vectors to another width if `output_dim` is given, then normalised if asked for."""

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
        """(B, L, P) -> (B, L, d). DataError if vectors are not of the width that was told."""
        if vectors.size(-1) != self.width:
            raise DataError(
                f"Vectors have {int(vectors.size(-1))} numbers, the schema says {self.width}."
            )
        return self.normalizer(self.projection(vectors))


class PretrainedEmbeddings(nn.Module):
    """Vectors beside a feature's own table, looked up by the same index.

    `weight_matrix` as in PretrainedEmbeddingsInitializer. It is saved with the model's weights,
    whether it is `trainable` or not. Of several indices the `combiner` makes one vector.
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
        projected: Tensor = self.projection(look_up(self.table, indices, self.combiner))
        return projected


def check_pretrained(
    pretrained: Mapping[str, PretrainedEmbeddings], num_rows: Mapping[str, int]
) -> None:
    """ConfigError for a name that is no categorical feature and a matrix of other rows."""
    check_names("pretrained_embeddings", pretrained, num_rows, "categorical")
    if len(set(map(id, pretrained.values()))) < len(pretrained):
        raise ConfigError("pretrained_embeddings gives one object to two features. Make two.")
    for name, embeddings in pretrained.items():
        rows = embeddings.table.num_embeddings
        if rows != num_rows[name]:
            raise ConfigError(
                f"The pretrained matrix of {name!r} has {rows} rows, the feature has "
                f"{num_rows[name]}: its values and 3 reserved ones."
            )


def build_vector_projections(
    columns: Schema, output_dims: int | Mapping[str, int] | None, normalizer: Normalizer | None
) -> dict[str, VectorProjection]:
    """What is done to each column of vectors; `output_dims` is one width for all or by name."""
    if isinstance(output_dims, Mapping):
        check_names("pretrained_output_dims", output_dims, columns.column_names, "embedding")
        dims = dict(output_dims)
    else:
        dims = {} if output_dims is None else dict.fromkeys(columns.column_names, output_dims)
    return {c.name: VectorProjection(c.width, dims.get(c.name), normalizer) for c in columns}


def as_matrix(weights: Any) -> Tensor:
    """(rows, P) float32, a copy, of a tensor, an array or lists. ConfigError for another thing."""
    try:
        matrix = torch.as_tensor(weights).detach().to(torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(f"weight_matrix is no matrix of numbers: {line}") from None
    if matrix.dim() != 2 or matrix.size(0) < FIRST_ITEM or matrix.size(1) < 1:
        raise ConfigError(
            f"weight_matrix is {_shape(matrix)}, expected (rows, numbers), 3 reserved rows first."
        )
    if not bool(matrix.isfinite().all()):
        raise ConfigError("weight_matrix holds numbers that are not finite.")
    return matrix


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
