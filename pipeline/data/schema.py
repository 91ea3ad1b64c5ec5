"""Features of a session data set: what a model reads, with tags, cardinalities and lengths.

Read from what `pipeline preprocess` writes (`schema.pbtxt`) or from the JSON form of the same
proto, tensorflow-metadata's `Schema`, which NVTabular and Transformers4Rec use too; or taken from
Merlin's own schema object; or written by hand.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pipeline.core.arguments import checked_arguments
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError


class Tags(StrEnum):
    """Roles of a column, by the names that Merlin gives them."""

    CATEGORICAL = "categorical"
    CONTINUOUS = "continuous"
    ITEM_ID = "item_id"
    ITEM = "item"
    SESSION = "session"
    SESSION_ID = "session_id"
    TIME = "time"
    LIST = "list"
    EMBEDDING = "embedding"
    TARGET = "target"
    BINARY_CLASSIFICATION = "binary_classification"
    REGRESSION = "regression"


@dataclass(frozen=True, kw_only=True)
class ColumnSchema:
    """One column."""

    name: str
    tags: frozenset[str] = field(default_factory=frozenset)
    num_rows: int = 0
    """Rows of the embedding table of a categorical column: highest index + 1; else 0."""
    is_float: bool = False
    is_list: bool = False
    """One value an interaction; otherwise one a session."""
    max_length: int = 0
    """Longest list, 0 where it is not known."""
    values_per_interaction: int = 0
    """M of a column with several values an interaction, (B, L, M): nested lists, of M values at
    most; -1 where M is not known. 0: one value."""
    value_of: str = ""
    """The feature with several values an interaction of which the column holds one."""
    width: int = 0
    """P of a column tagged `embedding`: vectors of P numbers, (B, L, P) or (B, P); else 0."""

    @classmethod
    @checked_arguments()
    def create_categorical(
        cls,
        name: str,
        num_items: int,
        *,
        tags: Iterable[str] = (),
        is_list: bool = True,
        max_length: int = 0,
        values_per_interaction: int = 0,
    ) -> Self:
        """A column of indices of `num_items` values, which begin at 3; 0 is padding, 1 missing
        and 2 unknown. The tag `categorical` goes without saying.
        """
        if num_items < 0:
            raise ConfigError(f"num_items of {name} is {num_items}, expected 0 or more.")
        return cls(
            name=name,
            tags=completed({Tags.CATEGORICAL, *tags}),
            num_rows=FIRST_ITEM + num_items,
            is_list=is_list,
            max_length=max_length,
            values_per_interaction=values_per_interaction,
        )

    @classmethod
    @checked_arguments()
    def create_continuous(
        cls,
        name: str,
        *,
        tags: Iterable[str] = (),
        is_float: bool = True,
        is_list: bool = True,
        max_length: int = 0,
    ) -> Self:
        """A column of numbers. The tag `continuous` goes without saying."""
        return cls(
            name=name,
            tags=completed({Tags.CONTINUOUS, *tags}),
            is_float=is_float,
            is_list=is_list,
            max_length=max_length,
        )

    @classmethod
    @checked_arguments()
    def create_embedding(
        cls, name: str, width: int, *, tags: Iterable[str] = (), is_list: bool = True
    ) -> Self:
        """A column of vectors of `width` numbers. The tag `embedding` goes without saying."""
        tags = completed({Tags.EMBEDDING, *tags})
        return cls(name=name, tags=tags, is_float=True, is_list=is_list, width=width)


@dataclass(frozen=True)
class Schema:
    """Columns in the order of the file."""

    columns: tuple[ColumnSchema, ...] = ()

    @classmethod
    @checked_arguments()
    def from_json(cls, path: str | Path) -> Self:
        """Read JSON or protobuf text (`schema.pbtxt`), told apart by the first character."""
        from pipeline.data.column_schema import read_columns

        return cls(read_columns(Path(path)))

    @classmethod
    @checked_arguments()
    def from_merlin(cls, schema: Iterable[Any]) -> Self:
        """Columns of a `merlin.schema.Schema`. ConfigError if it is none."""
        from pipeline.data.column_schema import merlin_column

        try:
            return cls(tuple(merlin_column(column) for column in schema))
        except (AttributeError, TypeError):
            raise ConfigError(
                f"Expected a Schema or a merlin.schema.Schema, found {type(schema).__name__}."
            ) from None

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
        """Columns of both; ConfigError if one of them stands in both and differs."""
        for column in other:
            if column.name in self.column_names and self[column.name] != column:
                raise ConfigError(f"Both schemas have a column {column.name!r}, and they differ.")
        return Schema((*self, *(c for c in other if c.name not in self.column_names)))

    def __sub__(self, other: "Schema") -> "Schema":
        """Columns whose names the other does not have."""
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
        """Names in order."""
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

    def select_by_tag(self, *tags: str) -> "Schema":
        """Columns that have any of `tags`."""
        return Schema(tuple(c for c in self if c.tags & _values(tags)))

    def remove_by_tag(self, *tags: str) -> "Schema":
        """Columns that have none of `tags`."""
        return Schema(tuple(c for c in self if not c.tags & _values(tags)))

    def select_by_name(self, *names: str) -> "Schema":
        """Columns of these names, in the order asked for. ConfigError for an unknown one."""
        return Schema(tuple(self[name] for name in names))

    def remove_by_name(self, *names: str) -> "Schema":
        """The other columns. ConfigError for an unknown one."""
        return self - self.select_by_name(*names)

    def categorical_cardinalities(self) -> dict[str, int]:
        """Rows of the embedding table of each categorical column, the reserved ones included."""
        return {column.name: column.num_rows for column in self.select_by_tag(Tags.CATEGORICAL)}

    @checked_arguments()
    def embedding_sizes(self, multiplier: float = 2.0) -> dict[str, int]:
        """A width for each categorical column: the fourth root of its rows times `multiplier`."""
        cardinalities = self.categorical_cardinalities()
        return {name: embedding_size(rows, multiplier) for name, rows in cardinalities.items()}


def embedding_size(num_rows: int, multiplier: float = 2.0) -> int:
    """Width that suits a table of so many rows, rounded up."""
    return math.ceil(num_rows**0.25 * multiplier)


def _values(tags: Iterable[str]) -> frozenset[str]:
    """Tags as text, also those of Merlin's enumeration."""
    return frozenset(str(getattr(tag, "value", tag)) for tag in tags)


def completed(tags: Iterable[str]) -> frozenset[str]:
    """Merlin splits some tags in two halves; here both the halves and the whole are found."""
    found = {tag.rsplit(".", 1)[-1].lower() for tag in _values(tags)}
    for owner in (Tags.ITEM, Tags.SESSION):
        if {owner, "id"} <= found:
            found.add(f"{owner}_id")
        elif f"{owner}_id" in found:
            found.add(owner)
    if {"binary", "classification"} <= found:
        found.add(Tags.BINARY_CLASSIFICATION)
    return frozenset(str(tag) for tag in found)
