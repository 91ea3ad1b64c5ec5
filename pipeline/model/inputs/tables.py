"""Embedding tables of categorical features."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import ConfigError
from pipeline.data.schema import Schema, embedding_size
from pipeline.model.inputs.checks import check_names, check_positive
from pipeline.model.inputs.pretrained import PretrainedEmbeddingsInitializer

EMBEDDING_DEVIATION = 0.05

T = TypeVar("T")

Initializer = Callable[[Tensor], object]
"""Fills a weight, (rows, d), in place."""


def build_tables(
    columns: Schema,
    *,
    item: str,
    dims: Mapping[str, int],
    dim_default: int,
    infer_sizes: bool,
    multiplier: float,
    initializers: Mapping[str, Initializer],
    shared: Sequence[Sequence[str]],
) -> dict[str, nn.Embedding]:
    """A table for each column, one for all those of a group in `shared`, with its largest rows.

    Its width is the first that is known: of `dims`, of a pretrained matrix, from the rows if
    `infer_sizes`, `dim_default`. ConfigError for what does not fit.
    """
    groups = _groups(columns.column_names, shared)
    tables: dict[str, nn.Embedding] = {}
    for name in columns.column_names:
        if name in tables:
            continue
        names = groups[name]
        rows = max(columns[n].num_rows for n in names)
        if rows < 1:
            raise ConfigError(
                f"The schema does not say how many values {name!r} has. Give it an int_domain, or "
                "make it by ColumnSchema.create_categorical."
            )
        if item in names and rows > columns[item].num_rows:
            raise ConfigError(
                f"{_listed(names)} share a table of {rows} rows, but the catalogue has "
                f"{columns[item].num_rows}: the rest could not be recommended. Share the item's "
                "table only with features of its own values."
            )
        initializer = _the_one(names, initializers, "embeddings_initializers")
        dim = _the_one(names, dims, "embedding_dims")
        if isinstance(initializer, PretrainedEmbeddingsInitializer):
            width = initializer.weight_matrix.size(1)
            if dim not in (None, width):
                raise ConfigError(
                    f"embedding_dims of {name!r} is {dim}, but its pretrained vectors have {width} "
                    "numbers. Leave it out."
                )
            dim = width
        if dim is None:
            dim = embedding_size(rows, multiplier) if infer_sizes else dim_default
        check_positive(f"The embedding width of {name!r}", dim)
        tables |= dict.fromkeys(names, _table(rows, dim, initializer))
    return {name: tables[name] for name in columns.column_names}


def _groups(names: list[str], shared: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Per name those that it shares a table with, itself among them."""
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


def _the_one(names: list[str], values: Mapping[str, T], argument: str) -> T | None:
    """What is given for any of the features of a table. ConfigError if that differs."""
    found: list[T] = []
    for name in names:
        if name in values and not any(values[name] is v or values[name] == v for v in found):
            found.append(values[name])
    if len(found) > 1:
        raise ConfigError(
            f"{_listed(names)} share a table, but {argument} gives them {len(found)} different "
            "values."
        )
    return found[0] if found else None


def _listed(names: list[str]) -> str:
    return " and ".join(map(repr, names))


def _table(rows: int, dim: int, initializer: Initializer | None) -> nn.Embedding:
    table = nn.Embedding(rows, dim, padding_idx=PADDING)
    with torch.no_grad():
        if initializer is None:
            nn.init.normal_(table.weight, std=EMBEDDING_DEVIATION)
        else:
            initializer(table.weight)
        # training may never show an unknown value: it must then say nothing rather than noise
        table.weight[:FIRST_ITEM] = 0
    return table
