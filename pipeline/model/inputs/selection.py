"""Which columns of a schema an input block reads, and as what."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.core.errors import ConfigError, closest
from pipeline.data.schema import ColumnSchema, Schema, Tags

Tagged = str | Sequence[str] | None
"""A tag or several; None chooses nothing."""


class SelectedFeatures(NamedTuple):
    """Columns by kind, each in the order of the schema."""

    categorical: Schema
    """Indices, the item among them."""
    continuous: Schema
    """Numbers."""
    vectors: Schema
    """Vectors that come with the batch."""


def select_features(
    schema: Schema, categorical: Tagged, continuous: Tagged, vectors: Tagged
) -> SelectedFeatures:
    """Columns that have the tags of a kind, but no target; the item in any case.

    A vector is one, whatever else it is tagged as. ConfigError for a column of two kinds and for
    one that the schema does not say enough about.
    """
    item = schema.item_id
    for given, default in (
        (categorical, Tags.CATEGORICAL),
        (continuous, Tags.CONTINUOUS),
        (vectors, Tags.EMBEDDING),
    ):
        _check_tags(schema, _tags(given), default)
    readable = Schema(tuple(c for c in schema if c == item or Tags.TARGET not in c.tags))
    indices = readable.select_by_tag(*_tags(categorical)).column_names
    found = SelectedFeatures(
        categorical=Schema(tuple(c for c in readable if c == item or c.name in indices)),
        continuous=readable.select_by_tag(*_tags(continuous)),
        vectors=readable.select_by_tag(*_tags(vectors)),
    )
    found = found._replace(continuous=found.continuous - found.vectors)
    for column in found.categorical:
        if column.name in [*found.continuous.column_names, *found.vectors.column_names]:
            raise ConfigError(
                f"Column {column.name!r} is tagged {', '.join(sorted(column.tags))}: it is read "
                "either as indices or as numbers. Keep one of the tags."
            )
    for column in found.continuous:
        if column.values_per_interaction:
            raise ConfigError(
                f"Column {column.name!r} has several numbers an interaction. Tag it embedding, "
                "with their number as its width, to read them as a vector."
            )
    for column in found.vectors:
        if column.width < 1:
            raise ConfigError(
                f"The schema does not say how many numbers the vectors of {column.name!r} have. "
                "Make it by ColumnSchema.create_embedding, or give its shape in the file."
            )
    return found


def together(schema: Schema) -> tuple[Schema, dict[str, tuple[str, ...]]]:
    """Columns of one value each become those of the features of several values that they are of.

    Also the columns of each such feature.
    """
    parts: dict[str, list[ColumnSchema]] = {}
    for column in schema:
        if column.value_of:
            parts.setdefault(column.value_of, []).append(column)
    columns: dict[str, ColumnSchema] = {}
    for column in schema:
        values = parts.get(column.value_of, [])
        name = column.value_of or column.name
        columns[name] = column
        if values:
            columns[name] = replace(
                column,
                name=name,
                num_rows=max(value.num_rows for value in values),
                values_per_interaction=len(values),
                value_of="",
            )
    named = {name: tuple(column.name for column in values) for name, values in parts.items()}
    return Schema(tuple(columns.values())), named


def _tags(given: Tagged) -> Sequence[str]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else given


def _check_tags(schema: Schema, given: Sequence[str], default: str) -> None:
    """ConfigError for a tag that no column has; the usual ones may find none."""
    known = sorted({tag for column in schema for tag in column.tags})
    for tag in given:
        if str(tag) != str(default) and str(tag) not in known:
            raise ConfigError(f"No column has the tag {str(tag)!r}; {closest(str(tag), known)}")
