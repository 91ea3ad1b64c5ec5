"""Columns of a session data set, read from proto files and from Merlin's schema."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.files import read_small_text

VALUE_OF = "value_of"
"""Property of a column that holds one value of a multi-valued feature: Merlin has no nested
lists."""
_INT, _FLOAT = 2, 3
"""FeatureType.INT and FLOAT of tensorflow-metadata."""


class Tags(StrEnum):
    """Roles of a column, by Merlin's names."""

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
    """Schema of one column."""

    name: str
    tags: frozenset[str] = field(default_factory=frozenset)
    num_rows: int = 0
    """Rows of the embedding table of a categorical column: highest index + 1; else 0."""
    is_float: bool = False
    is_list: bool = False
    """Whether the column has one value per interaction, otherwise one per session."""
    max_length: int = 0
    """Longest list; 0 if unknown."""
    values_per_interaction: int = 0
    """M of a column of nested lists (B, L, M): maximum values per interaction, -1 if unknown; 0 for
    one value per interaction."""
    value_of: str = ""
    """Multi-valued feature that the column belongs to."""
    width: int = 0
    """P of a column tagged `embedding`: vectors of P numbers, (B, L, P) or (B, P); else 0."""

    @classmethod
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
        """Column of the indices of `num_items` values, from 3 on; the tag `categorical` is added.

        Index 0 is padding, 1 missing, 2 out of vocabulary.
        """
        if num_items < 0:
            raise ConfigError(f"num_items of {name} is {num_items}, expected 0 or more.")
        return cls(
            name=name,
            tags=normalize_tags({Tags.CATEGORICAL, *tags}),
            num_rows=FIRST_ITEM + num_items,
            is_list=is_list,
            max_length=max_length,
            values_per_interaction=values_per_interaction,
        )

    @classmethod
    def create_continuous(
        cls,
        name: str,
        *,
        tags: Iterable[str] = (),
        is_float: bool = True,
        is_list: bool = True,
        max_length: int = 0,
    ) -> Self:
        """Column of numbers; the tag `continuous` is added."""
        return cls(
            name=name,
            tags=normalize_tags({Tags.CONTINUOUS, *tags}),
            is_float=is_float,
            is_list=is_list,
            max_length=max_length,
        )

    @classmethod
    def create_embedding(
        cls, name: str, width: int, *, tags: Iterable[str] = (), is_list: bool = True
    ) -> Self:
        """Column of vectors of `width` numbers; the tag `embedding` is added."""
        tags = normalize_tags({Tags.EMBEDDING, *tags})
        return cls(name=name, tags=tags, is_float=True, is_list=is_list, width=width)


def normalize_tags(tags: Iterable[str]) -> frozenset[str]:
    """Tags in lower case without a prefix; a compound tag such as `item_id` comes with its parts.

    Merlin splits some compound tags in two.
    """
    names = {tag.rsplit(".", 1)[-1].lower() for tag in tag_values(tags)}
    for owner in (Tags.ITEM, Tags.SESSION):
        if {owner, "id"} <= names:
            names.add(f"{owner}_id")
        elif f"{owner}_id" in names:
            names.add(owner)
    if {"binary", "classification"} <= names:
        names.add(Tags.BINARY_CLASSIFICATION)
    return frozenset(str(name) for name in names)


def tag_values(tags: Iterable[str]) -> frozenset[str]:
    """Tags as text, also those of Merlin's enumeration."""
    return frozenset(str(getattr(tag, "value", tag)) for tag in tags)


_MOST_CHARACTERS = 1 << 20
"""Maximum characters of a schema, enough for thousands of columns: the parser is slow."""


def read_columns(path: Path) -> tuple[ColumnSchema, ...]:
    """Columns of a tensorflow-metadata schema in JSON or protobuf text.

    Unknown fields are ignored, as other versions of the proto have them. ArtifactError if the file
    is missing or not a schema.
    """
    from google.protobuf import json_format, text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    try:
        text = read_small_text(path)
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"it has more than {_MOST_CHARACTERS:,} characters.")
        proto = schema_pb2.Schema()
        if text.lstrip().startswith("{"):
            content = _add_types(json.loads(text))
            json_format.ParseDict(content, proto, ignore_unknown_fields=True)
        else:
            text_format.Parse(text, proto, allow_unknown_field=True)
        if not proto.feature and text.strip() not in ("", "{}"):
            raise ValueError("it has no feature.")
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} does not exist. `pipeline preprocess` writes a schema.pbtxt."
        ) from None
    except (
        json_format.ParseError, text_format.ParseError, OSError, ValueError, RecursionError
    ) as error:  # fmt: skip
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is not a schema: {line}") from None
    return tuple(_proto_column(feature) for feature in proto.feature)


def proto_text(columns: Iterable[ColumnSchema]) -> str:
    """Protobuf text of a tensorflow-metadata schema, the inverse of `read_columns`."""
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    proto = schema_pb2.Schema()
    for column in columns:
        _add_feature(proto, column)
    return str(text_format.MessageToString(proto))


def _add_feature(proto: Any, column: ColumnSchema) -> None:
    from google.protobuf import struct_pb2

    feature = proto.feature.add(name=column.name, type=_FLOAT if column.is_float else _INT)
    feature.annotation.tag.extend(sorted(column.tags))
    if column.num_rows:
        feature.int_domain.name = column.name
        feature.int_domain.max = column.num_rows - 1
        feature.int_domain.is_categorical = True
    axes = [column.max_length] if column.is_list else []
    if column.width or column.values_per_interaction:
        axes.append(column.width or max(column.values_per_interaction, 0))
    properties: dict[str, Any] = {"is_list": bool(axes)}
    if axes:
        properties["_dims"] = [[0, None], *([0, size or None] for size in axes)]
    if len(axes) == 1 and axes[0]:
        feature.value_count.max = axes[0]
    if column.value_of:
        properties[VALUE_OF] = column.value_of
    struct = struct_pb2.Struct()
    struct.update(properties)
    feature.annotation.extra_metadata.add().Pack(struct)


def _proto_column(feature: Any) -> ColumnSchema:
    metadata: dict[str, Any] = {}
    for packed in feature.annotation.extra_metadata:
        metadata.update(_unpack(packed))
    nested = feature.value_counts.value_count  # one for each level of nested lists
    axes = (
        [_length(axis) for axis in metadata.get("_dims", [])[1:]]
        or [int(count.max) for count in nested]
        or [int(axis.size) for axis in feature.shape.dim[1:]]
    )
    column = ColumnSchema(
        name=feature.name,
        tags=normalize_tags(feature.annotation.tag),
        is_float=feature.type == _FLOAT,
        is_list=bool(metadata.get("is_list")),
        max_length=int(feature.value_count.max or 0),
        value_of=str(metadata.get(VALUE_OF, "")),
    )
    return _complete(column, int(feature.int_domain.max), axes)


def merlin_column(column: Any) -> ColumnSchema:
    """Column of a `merlin.schema.Schema`."""
    domain = column.int_domain
    converted = ColumnSchema(
        name=column.name,
        tags=normalize_tags(column.tags),
        is_float=bool(column.dtype.is_float),
        is_list=bool(column.is_list),
        value_of=str(column.properties.get(VALUE_OF, "")),
    )
    axes = [int(axis.max or 0) for axis in (column.shape.dims or ())[1:]]
    return _complete(converted, int(domain.max or 0) if domain else 0, axes)


def _complete(column: ColumnSchema, highest: int, axes: list[int]) -> ColumnSchema:
    """Add the properties that follow from the highest index and the lengths of the list axes.

    A length is 0 where unknown.
    """
    max_length = column.max_length or sum(axes[:1])
    is_list = column.is_list or max_length > 0 or bool(axes) or Tags.LIST in column.tags
    nested = axes[1] or -1 if len(axes) > 1 else 0
    width = 0
    if Tags.EMBEDDING in column.tags:
        # a list of numbers is one vector per session, nested lists one vector per interaction
        width, nested = max(nested, 0) if nested else max_length, 0
        is_list = len(axes) > 1
        max_length = max_length if is_list else 0
    return replace(
        column,
        num_rows=highest + 1 if column.tags & {Tags.CATEGORICAL, Tags.ITEM_ID} else 0,
        is_list=is_list,
        max_length=max_length,
        values_per_interaction=nested,
        width=width,
    )


def _length(axis: Any) -> int:
    """Length of an axis, which Merlin writes as a number or as its minimum and maximum."""
    return int((axis[-1] if isinstance(axis, list) else axis) or 0)


def _add_types(value: Any, packed: bool = False) -> Any:
    """Declare each `extraMetadata` of a JSON schema a Struct, which Merlin's own JSON omits."""
    if isinstance(value, list):
        return [_add_types(inner, packed) for inner in value]
    if not isinstance(value, dict) or "@type" in value:
        return value
    if packed:
        return {"@type": "type.googleapis.com/google.protobuf.Struct", "value": value}
    return {key: _add_types(inner, key == "extraMetadata") for key, inner in value.items()}


def _unpack(packed: Any) -> dict[str, Any]:
    """Content of an `extra_metadata`, into which Merlin packs a Struct."""
    from google.protobuf import json_format, struct_pb2

    struct = struct_pb2.Struct()
    return dict(json_format.MessageToDict(struct)) if packed.Unpack(struct) else {}
