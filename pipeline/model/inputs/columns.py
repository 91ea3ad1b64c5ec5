"""Columns of a schema that an input block reads, their kinds and names, and its options."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

from pipeline.core.errors import ConfigError, closest
from pipeline.data.schema import ColumnSchema, Schema, Tags

Tagged = str | Sequence[str] | None
"""One or several tags; None selects no column."""
Initializer = Callable[[Tensor], object]
"""Fills a weight (rows, d) in place."""
Combiner = Literal["mean", "sum", "sqrtn"]
Normalizer = Literal["layer-norm"]


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Options of TabularSequenceFeatures for single features; None is the default."""

    embedding_dims: Mapping[str, int] = field(default_factory=dict)
    """Width of single tables; overrides the width of pretrained vectors and the defaults below."""
    embedding_dim_default: int = 64
    """Width of the other tables."""
    infer_embedding_sizes: bool = False
    """Infer the width of the other tables from the cardinality."""
    infer_embedding_sizes_multiplier: float = 2.0
    """Factor of the fourth root of the cardinality."""
    embeddings_initializers: Mapping[str, Initializer] = field(default_factory=dict)
    """Functions that fill a weight in place, by feature; reserved rows are 0."""
    shared_tables: Sequence[Sequence[str]] = ()
    """Lists of features that share a table; it has the rows of the largest feature."""
    combiner: Combiner = "mean"
    """Combination of several indices of an interaction: mean, sum or sqrtn."""
    continuous_projection: int | Sequence[int] | None = None
    """Widths of linear layers with ReLU over all continuous features."""
    continuous_soft_embeddings: bool = False
    """Embed each number as a weighted sum of vectors."""
    soft_embedding_cardinalities: Mapping[str, int] = field(default_factory=dict)
    """Number of vectors of single continuous features."""
    soft_embedding_cardinality_default: int = 10
    """Number of vectors of the other continuous features."""
    soft_embedding_dims: Mapping[str, int] = field(default_factory=dict)
    """Width of the vectors of single continuous features."""
    soft_embedding_dim_default: int = 8
    """Width of the vectors of the other continuous features."""
    layer_norm: bool = True
    """Normalize soft embeddings."""
    pretrained_embeddings: Mapping[str, Any] = field(default_factory=dict)
    """PretrainedEmbeddings by categorical feature, in addition to its table."""
    pretrained_output_dims: int | Mapping[str, int] | None = None
    """Output width of vector columns of the batch, one for all or by name."""
    normalizer: Normalizer | None = None
    """Normalization of the vector columns: layer-norm."""

    def __post_init__(self) -> None:
        check_combiner(self.combiner)
        if self.continuous_soft_embeddings and self.continuous_projection is not None:
            raise ConfigError(
                "Both continuous_projection and continuous_soft_embeddings are given. Leave out "
                "one: numbers go through layers together or become vectors each."
            )


def check_combiner(combiner: str) -> None:
    """ConfigError for an unknown combiner."""
    if combiner not in ("mean", "sum", "sqrtn"):
        raise ConfigError(f"combiner is {combiner!r}. Expected mean, sum, sqrtn.")


class SelectedFeatures(NamedTuple):
    """Columns by kind, each in the order of the schema."""

    categorical: Schema
    """Columns of indices, the item among them."""
    continuous: Schema
    """Columns of numbers."""
    vectors: Schema
    """Columns of vectors in the batch."""


def select_features(
    schema: Schema, categorical: Tagged, continuous: Tagged, vectors: Tagged
) -> SelectedFeatures:
    """Select columns by the tags of each kind, without targets; the item is always selected.

    A column with a tag of `vectors` is a vector, whatever its other tags. ConfigError for a column
    of two kinds or with an incomplete description in the schema.
    """
    item = schema.item_id
    _check_tags(schema, _tags(categorical), Tags.CATEGORICAL)
    _check_tags(schema, _tags(continuous), Tags.CONTINUOUS)
    _check_tags(schema, _tags(vectors), Tags.EMBEDDING)
    readable = Schema(tuple(c for c in schema if c == item or Tags.TARGET not in c.tags))
    indices = readable.select_by_tag(*_tags(categorical)).column_names
    selected = SelectedFeatures(
        categorical=Schema(tuple(c for c in readable if c == item or c.name in indices)),
        continuous=readable.select_by_tag(*_tags(continuous)),
        vectors=readable.select_by_tag(*_tags(vectors)),
    )
    selected = selected._replace(continuous=selected.continuous - selected.vectors)
    _check_selected(selected)
    return selected


def _check_selected(selected: SelectedFeatures) -> None:
    """ConfigError for a column of two kinds or with an incomplete description."""
    for column in selected.categorical:
        if column.name in [*selected.continuous.column_names, *selected.vectors.column_names]:
            raise ConfigError(
                f"Column {column.name!r} is tagged {', '.join(sorted(column.tags))}: it is read "
                "either as indices or as numbers. Keep one of the tags."
            )
    for column in selected.continuous:
        if column.values_per_interaction:
            raise ConfigError(
                f"Column {column.name!r} has several numbers per interaction. Tag it embedding, "
                "with their number as its width, to read them as a vector."
            )
    for column in selected.vectors:
        if column.width < 1:
            raise ConfigError(
                f"The schema does not say how many numbers the vectors of {column.name!r} have. "
                "Make it by ColumnSchema.create_embedding, or give its shape in the file."
            )


def merge_multi_valued(schema: Schema) -> tuple[Schema, dict[str, tuple[str, ...]]]:
    """Merge the columns of each multi-valued feature, such as tags, into one column.

    Return the schema and the names of the merged columns by feature.
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


def _tags(tags: Tagged) -> Sequence[str]:
    if tags is None:
        return ()
    return (tags,) if isinstance(tags, str) else tags


def _check_tags(schema: Schema, tags: Sequence[str], default: str) -> None:
    """ConfigError for a tag that no column has; the default tag may select none."""
    present = sorted({tag for column in schema for tag in column.tags})
    for tag in tags:
        if str(tag) != str(default) and str(tag) not in present:
            raise ConfigError(f"No column has the tag {str(tag)!r}; {closest(str(tag), present)}")


def child_name(feature: str) -> str:
    """Name of a feature's module: torch forbids dots and names such as `type` and `keys`."""
    return "of_" + feature.replace("%", "%25").replace(".", "%2E")


def check_positive(what: str, number: object) -> None:
    """ConfigError unless `number` is a whole number above 0."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"{what} is {number!r}, expected a whole number above 0.")


def check_names(
    argument: str, names: Collection[str], features: Collection[str], kind: str
) -> None:
    """ConfigError if an argument names a feature that is not among the `features` of a kind."""
    for name in names:
        if name not in features:
            raise ConfigError(
                f"{argument} names {name!r}, which is no {kind} feature. Those are: "
                f"{', '.join(features) or 'none'}."
            )
