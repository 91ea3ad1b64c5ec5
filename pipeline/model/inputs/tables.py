"""Embedding tables of categorical features, and lookups.

Shape letters: B sessions, L positions, M values of an interaction, d and P widths.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import ConfigError
from pipeline.data.schema import Schema, embedding_size
from pipeline.model.inputs.columns import Combiner, InputOptions, check_names, check_positive
from pipeline.model.ops.shards import ShardedEmbedding

EMBEDDING_DEVIATION = 0.05
"""Standard deviation of initial weights."""

T = TypeVar("T")


def look_up(
    table: nn.Embedding, indices: Tensor, combiner: Combiner, weight: Tensor | None = None
) -> Tensor:
    """(B, L) indices -> (B, L, d); (B, L, M) indices -> (B, L, d), combined without padding.

    `sqrtn` divides the sum by the square root of the number of values. `weight` replaces the
    weight of the table; its gradient is sparse.
    """
    if weight is None:
        vectors = table(indices)
    elif isinstance(table, ShardedEmbedding):
        vectors = table.look_up(indices, weight, sparse=True)
    else:
        vectors = functional.embedding(indices, weight, table.padding_idx, sparse=True)
    if indices.dim() < 3:
        return vectors
    total = vectors.sum(-2)  # the padding row is zero
    if combiner == "sum":
        return total
    number = (indices != PADDING).sum(-1, keepdim=True).clamp(min=1)  # (B, L, 1)
    return total / (number if combiner == "mean" else number.sqrt())


class PretrainedEmbeddingsInitializer:
    """Initializer of a feature's table, for `embeddings_initializers`.

    `weight_matrix` is (rows, P) in the order of the feature's indices, rows 0, 1 and 2 reserved;
    `read_vectors` makes one. The table is frozen unless `trainable`.
    """

    def __init__(self, weight_matrix: Any, trainable: bool = False) -> None:
        self.weight_matrix = as_matrix(weight_matrix)
        self.trainable = trainable

    def __call__(self, weight: Tensor) -> None:
        """Fill (rows, P) in place. ConfigError for another shape."""
        if weight.shape != self.weight_matrix.shape:
            raise ConfigError(
                f"The pretrained matrix is {shape_text(self.weight_matrix)}, the table "
                f"{shape_text(weight)}. Its rows are the values of the feature and 3 reserved ones."
            )
        with torch.no_grad():
            weight.copy_(self.weight_matrix)
        weight.requires_grad_(self.trainable)


def as_matrix(weights: Any) -> Tensor:
    """Copy a tensor, an array or lists to (rows, P) float32. ConfigError for other values."""
    try:
        matrix = torch.as_tensor(weights).detach().to(torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(f"weight_matrix is not a matrix of numbers: {line}") from None
    if matrix.dim() != 2 or matrix.size(0) < FIRST_ITEM or matrix.size(1) < 1:
        raise ConfigError(
            f"weight_matrix is {shape_text(matrix)}, expected (rows, numbers), 3 reserved rows "
            "first."
        )
    if not bool(matrix.isfinite().all()):
        raise ConfigError("weight_matrix holds numbers that are not finite.")
    return matrix


def shape_text(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def build_tables(columns: Schema, item: str, options: InputOptions) -> dict[str, nn.Embedding]:
    """Build the table of each column, by name; columns of a shared table have the same object.

    ConfigError for options that do not fit the columns.
    """
    tables: dict[str, nn.Embedding] = {}
    for name, names in _groups(columns.column_names, options.shared_tables).items():
        if name not in tables:
            tables |= dict.fromkeys(names, _build_table(columns, names, item, options))
    return {name: tables[name] for name in columns.column_names}


def _build_table(
    columns: Schema, names: list[str], item: str, options: InputOptions
) -> nn.Embedding:
    """Build the table that the features `names` share."""
    name, rows = names[0], _num_rows(columns, names, item)
    initializer = _common(names, options.embeddings_initializers, "embeddings_initializers")
    dim = _common(names, options.embedding_dims, "embedding_dims")
    if isinstance(initializer, PretrainedEmbeddingsInitializer):
        width = initializer.weight_matrix.size(1)
        if dim not in (None, width):
            raise ConfigError(
                f"embedding_dims of {name!r} is {dim}, but its pretrained vectors have {width} "
                "numbers. Leave it out."
            )
        dim = width
    if dim is None:
        multiplier = options.infer_embedding_sizes_multiplier
        inferred = embedding_size(rows, multiplier) if options.infer_embedding_sizes else None
        dim = options.embedding_dim_default if inferred is None else inferred
    check_positive(f"The embedding width of {name!r}", dim)
    table = nn.Embedding(rows, dim, padding_idx=PADDING)
    with torch.no_grad():
        if initializer is None:
            nn.init.normal_(table.weight, std=EMBEDDING_DEVIATION)
        else:
            initializer(table.weight)
        # training may have no unknown value, whose vector must then be 0 rather than random
        table.weight[:FIRST_ITEM] = 0
    return table


def _num_rows(columns: Schema, names: list[str], item: str) -> int:
    """Rows of a table: the largest number of its features."""
    rows = max(columns[name].num_rows for name in names)
    if rows < 1:
        raise ConfigError(
            f"The schema does not say how many values {names[0]!r} has. Give it an int_domain, or "
            "make it by ColumnSchema.create_categorical."
        )
    if item in names and rows > columns[item].num_rows:
        raise ConfigError(
            f"{_listed(names)} share a table of {rows} rows, but the catalogue has "
            f"{columns[item].num_rows}: the rest could not be recommended. Share the item's table "
            "only with features of its own values."
        )
    return rows


def _groups(names: list[str], shared: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Features that share the table of each feature, itself included."""
    groups = {name: [name] for name in names}
    for group in shared:
        if isinstance(group, str) or len(set(group)) < 2:
            raise ConfigError(
                f"shared_tables holds {group!r}, expected lists of two or more features, as in "
                "[['item_id', 'last_bought']]."
            )
        check_names("shared_tables", group, names, "categorical")
        for name in group:
            if len(groups[name]) > 1:
                raise ConfigError(f"shared_tables names {name!r} twice. Put all in one list.")
        groups |= {name: list(dict.fromkeys(group)) for name in group}
    return groups


def _common(names: list[str], values: Mapping[str, T], argument: str) -> T | None:
    """Common value of the features of a table, None without any. ConfigError if values differ."""
    different: list[T] = []
    for name in names:
        if name in values and not any(values[name] is v or values[name] == v for v in different):
            different.append(values[name])
    if len(different) > 1:
        raise ConfigError(
            f"{_listed(names)} share a table, but {argument} gives them {len(different)} different "
            "values."
        )
    return different[0] if different else None


def _listed(names: list[str]) -> str:
    return " and ".join(map(repr, names))
