"""Columns from tensorflow-metadata's proto, as text or JSON, and from Merlin's schema object."""

import json
from pathlib import Path
from typing import Any

from pipeline.core.errors import ArtifactError
from pipeline.data.schema import ColumnSchema, Tags, completed

VALUE_OF = "value_of"
"""Property of a column that holds one of several values; Merlin has no lists of lists."""


def read_columns(path: Path) -> tuple[ColumnSchema, ...]:
    """Columns of a file. ArtifactError if it is missing or no schema."""
    from google.protobuf import json_format, text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

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
    return tuple(_from_proto(feature) for feature in proto.feature)


def _from_proto(feature: Any) -> ColumnSchema:
    metadata: dict[str, Any] = {}
    for packed in feature.annotation.extra_metadata:
        metadata.update(_unpack(packed))
    nested = feature.value_counts.value_count  # one for each level of nested lists
    axes = (
        [_largest(axis) for axis in metadata.get("_dims", [])[1:]]
        or [int(count.max) for count in nested]
        or [int(axis.size) for axis in feature.shape.dim[1:]]
    )
    return _column(
        name=feature.name,
        tags=completed(feature.annotation.tag),
        highest=int(feature.int_domain.max),
        is_float=feature.type == 3,  # FeatureType.FLOAT
        is_list=bool(metadata.get("is_list")),
        max_length=int(feature.value_count.max or 0),
        axes=axes,
        value_of=str(metadata.get(VALUE_OF, "")),
    )


def merlin_column(column: Any) -> ColumnSchema:
    """One column of a `merlin.schema.Schema`."""
    domain = column.int_domain
    axes = column.shape.dims or ()
    return _column(
        name=column.name,
        tags=completed(column.tags),
        highest=int(domain.max or 0) if domain else 0,
        is_float=bool(column.dtype.is_float),
        is_list=bool(column.is_list),
        max_length=0,
        axes=[int(axis.max or 0) for axis in axes[1:]],
        value_of=str(column.properties.get(VALUE_OF, "")),
    )


def _column(
    *,
    name: str,
    tags: frozenset[str],
    highest: int,
    is_float: bool,
    is_list: bool,
    max_length: int,
    axes: list[int],
    value_of: str,
) -> ColumnSchema:
    """`axes` are the most values along each axis after the rows, 0 where that is not known."""
    max_length = max_length or sum(axes[:1])
    is_list = is_list or max_length > 0 or bool(axes) or Tags.LIST in tags
    nested = axes[1] or -1 if len(axes) > 1 else 0
    width = 0
    if Tags.EMBEDDING in tags:
        # a list of numbers is one vector a session, a list of lists one an interaction
        width, nested = max(nested, 0) if nested else max_length, 0
        is_list = len(axes) > 1
        max_length = max_length if is_list else 0
    return ColumnSchema(
        name=name,
        tags=tags,
        num_rows=highest + 1 if tags & {Tags.CATEGORICAL, Tags.ITEM_ID} else 0,
        is_float=is_float,
        is_list=is_list,
        max_length=max_length,
        values_per_interaction=nested,
        value_of=value_of,
        width=width,
    )


def _largest(axis: Any) -> int:
    """Merlin writes an axis as its length or as its least and greatest."""
    return int((axis[-1] if isinstance(axis, list) else axis) or 0)


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
