"""Features of a session data set: what a model reads, with tags, cardinalities and lengths.

Read from what `pipeline preprocess` writes (`schema.pbtxt`) or from the JSON form of the same
proto, tensorflow-metadata's `Schema`, which NVTabular and Transformers4Rec use too.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pipeline.core.errors import ArtifactError, ConfigError


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


@dataclass(frozen=True)
class Schema:
    """Columns in the order of the file."""

    columns: tuple[ColumnSchema, ...] = ()

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read JSON or protobuf text (`schema.pbtxt`), told apart by the first character."""
        from google.protobuf import json_format, text_format
        from tensorflow_metadata.proto.v0 import schema_pb2

        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            proto = schema_pb2.Schema()
            if text.lstrip().startswith("{"):
                json_format.ParseDict(_typed(json.loads(text)), proto)
            else:
                text_format.Parse(text, proto)
        except FileNotFoundError:
            raise ArtifactError(
                f"{path} does not exist. `pipeline preprocess` writes a schema.pbtxt."
            ) from None
        except (json_format.ParseError, text_format.ParseError, OSError, ValueError) as error:
            line = " ".join(str(error).split())
            raise ArtifactError(f"{path} is not a schema: {line}") from None
        return cls(tuple(_column(feature) for feature in proto.feature))

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
        return Schema(tuple(c for c in self.columns if c.tags & {str(tag) for tag in tags}))

    def select_by_name(self, *names: str) -> "Schema":
        """Columns of these names, in the order asked for. ConfigError for an unknown one."""
        return Schema(tuple(self[name] for name in names))


def _column(feature: Any) -> ColumnSchema:
    tags = {tag.rsplit(".", 1)[-1].lower() for tag in feature.annotation.tag}
    for owner in (Tags.ITEM, Tags.SESSION):  # Merlin writes item_id as its two halves
        if {owner, "id"} <= tags:
            tags.add(f"{owner}_id")
        elif f"{owner}_id" in tags:
            tags.add(owner)
    metadata: dict[str, Any] = {}
    for packed in feature.annotation.extra_metadata:
        metadata.update(_unpack(packed))
    max_length = int(feature.value_count.max or 0)
    for dimension in feature.shape.dim[1:2]:
        max_length = max_length or int(dimension.size)
    is_list = bool(metadata.get("is_list")) or max_length > 0 or Tags.LIST in tags
    categorical = Tags.CATEGORICAL in tags
    return ColumnSchema(
        name=feature.name,
        tags=frozenset(tags),
        num_rows=int(feature.int_domain.max) + 1 if categorical else 0,
        is_float=feature.type == 3,  # FeatureType.FLOAT
        is_list=is_list,
        max_length=max_length,
    )


def _typed(value: Any, packed: bool = False) -> Any:
    """JSON in which each `extraMetadata` says that it is a Struct; Merlin's own does not."""
    if isinstance(value, list):
        return [_typed(inner, packed) for inner in value]
    if not isinstance(value, dict) or "@type" in value:
        return value
    if packed:
        return {"@type": "type.googleapis.com/google.protobuf.Struct", "value": value}
    return {key: _typed(inner, key == "extraMetadata") for key, inner in value.items()}


def _unpack(packed: Any) -> dict[str, Any]:
    """Merlin packs a google.protobuf.Struct into each `extra_metadata`."""
    from google.protobuf import json_format, struct_pb2

    struct = struct_pb2.Struct()
    if not packed.Unpack(struct):
        return {}
    return dict(json_format.MessageToDict(struct))
