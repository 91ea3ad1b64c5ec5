"""Schema of a session data set: the columns that a model reads.

It is read from the `schema.pbtxt` of a data directory or from the JSON form of the same proto
(tensorflow-metadata's `Schema`, which NVTabular and Transformers4Rec use), converted from Merlin's
schema, or written by hand.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.core.errors import ConfigError
from pipeline.data.column_schema import (
    ColumnSchema,
    Tags,
    merlin_column,
    proto_text,
    read_columns,
    tag_values,
)

__all__ = ["ColumnSchema", "Schema", "Tags", "embedding_size"]


@dataclass(frozen=True)
class Schema:
    """Columns in the order of the file."""

    columns: tuple[ColumnSchema, ...] = ()

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read JSON or protobuf text (`schema.pbtxt`). ArtifactError if the file is not a
        schema."""
        return cls(read_columns(Path(path)))

    @classmethod
    def from_merlin(cls, schema: Iterable[Any]) -> Self:
        """Convert a `merlin.schema.Schema`. ConfigError if `schema` is anything else."""
        try:
            return cls(tuple(merlin_column(column) for column in schema))
        except (AttributeError, TypeError):
            raise ConfigError(
                f"Expected a Schema or a merlin.schema.Schema, found {type(schema).__name__}."
            ) from None

    @classmethod
    def from_proto_text(cls, path: str | Path) -> Self:
        """Read protobuf text or JSON, as `from_json` does."""
        return cls.from_json(path)

    def to_proto_text(self) -> str:
        """Columns as protobuf text, which `from_proto_text` and Merlin read."""
        return proto_text(self.columns)

    @classmethod
    def from_dicts(cls, columns: Iterable[dict[str, Any]]) -> Self:
        """Inverse of `to_dicts`."""
        return cls(tuple(ColumnSchema(**{**c, "tags": frozenset(c["tags"])}) for c in columns))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Columns as JSON values."""
        return [{**asdict(column), "tags": sorted(column.tags)} for column in self.columns]

    def __iter__(self) -> Iterator[ColumnSchema]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __add__(self, other: "Schema") -> "Schema":
        """Columns of both; ConfigError if columns of one name differ."""
        for column in other:
            if column.name in self.column_names and self[column.name] != column:
                raise ConfigError(f"Both schemas have a column {column.name!r}, and they differ.")
        return Schema((*self, *(c for c in other if c.name not in self.column_names)))

    def __sub__(self, other: "Schema") -> "Schema":
        """Columns that `other` does not have, by name."""
        return Schema(tuple(c for c in self if c.name not in other.column_names))

    def __getitem__(self, name: str) -> ColumnSchema:
        for column in self.columns:
            if column.name == name:
                return column
        raise ConfigError(
            f"The schema has no column {name!r}. It has: {', '.join(self.column_names)}."
        )

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in order."""
        return [column.name for column in self.columns]

    @property
    def item_id(self) -> ColumnSchema:
        """The one column tagged `item_id`. ConfigError if there is none or more than one."""
        items = self.select_by_tag(Tags.ITEM_ID).columns
        if len(items) != 1:
            raise ConfigError(
                f"Expected one column tagged item_id in the schema, found {len(items)} among "
                f"{', '.join(self.column_names) or 'no columns'}."
            )
        return items[0]

    def select_by_tag(self, *tags: str | Iterable[str]) -> "Schema":
        """Columns that have any of `tags`, names or lists of them."""
        return Schema(tuple(c for c in self if c.tags & tag_values(_flat(tags))))

    def remove_by_tag(self, *tags: str | Iterable[str]) -> "Schema":
        """Columns that have none of `tags`, names or lists of them."""
        return Schema(tuple(c for c in self if not c.tags & tag_values(_flat(tags))))

    def select_by_name(self, *names: str | Iterable[str]) -> "Schema":
        """Columns of `names`, names or lists of them, in their order.

        ConfigError for an unknown name.
        """
        return Schema(tuple(self[name] for name in _flat(names)))

    def remove_by_name(self, *names: str | Iterable[str]) -> "Schema":
        """Columns of all other names. ConfigError for an unknown name."""
        return self - self.select_by_name(*names)

    def categorical_cardinalities(self) -> dict[str, int]:
        """Rows of the embedding table of each categorical column, with the reserved ones."""
        return {column.name: column.num_rows for column in self.select_by_tag(Tags.CATEGORICAL)}

    def embedding_sizes(self, multiplier: float = 2.0) -> dict[str, int]:
        """Width of each categorical column: the fourth root of its rows times `multiplier`."""
        cardinalities = self.categorical_cardinalities()
        return {name: embedding_size(rows, multiplier) for name, rows in cardinalities.items()}


def _flat(names: Iterable[str | Iterable[str]]) -> list[str]:
    """Flatten names and lists of names; Merlin's tags are enumerations, not text."""
    flat: list[str] = []
    for name in names:
        is_list = isinstance(name, list | tuple | set | frozenset)
        flat += name if is_list else [name]  # type: ignore[list-item]
    return flat


def embedding_size(num_rows: int, multiplier: float = 2.0) -> int:
    """Width of an embedding table: the fourth root of its rows times `multiplier`, rounded up."""
    return math.ceil(num_rows**0.25 * multiplier)
