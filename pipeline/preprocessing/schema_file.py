"""The schema of the sessions as a file that Merlin reads."""

from pathlib import Path

from merlin.schema import ColumnSchema
from merlin.schema import Schema as MerlinSchema
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

from pipeline.core.columns import SCHEMA_FILE
from pipeline.data.proto import VALUE_OF
from pipeline.recipe.preprocess import Preprocess

_SCHEMA_PROPERTIES = ("domain", "embedding_sizes", "value_count")
"""Of Merlin's, what is written; none of it is a path of this machine."""


def write_schema(schema: MerlinSchema, recipe: Preprocess, directory: Path) -> None:
    """`schema.pbtxt` by Merlin's own writer, without paths of this machine."""
    value_of = {c: {VALUE_OF: f.name} for f in recipe.features for c in f.columns if c != f.name}
    columns = [
        ColumnSchema(
            column.name,
            tags=column.tags,
            dtype=column.dtype,
            properties={k: v for k, v in column.properties.items() if k in _SCHEMA_PROPERTIES}
            | value_of.get(column.name, {}),
            is_list=column.is_list,
            is_ragged=column.is_ragged,
        )
        for column in schema
    ]
    metadata = TensorflowMetadata.from_merlin_schema(MerlinSchema(columns))
    for feature in metadata.proto_schema.feature:
        feature.annotation.tag.sort()  # a set of texts; each process would order it its own way
    metadata.to_proto_text_file(str(directory), SCHEMA_FILE)
