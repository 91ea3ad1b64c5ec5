"""The schema that preprocessing writes and models read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.schema import ColumnSchema, Schema, Tags

PBTXT = """
feature {
  name: "item_id"
  value_count { min: 1 max: 6 }
  type: INT
  int_domain { name: "item_id" max: 50 is_categorical: true }
  annotation {
    tag: "categorical" tag: "item" tag: "id"
    extra_metadata {
      [type.googleapis.com/google.protobuf.Struct] {
        fields { key: "is_list" value { bool_value: true } }
      }
    }
  }
}
feature { name: "price" value_count { min: 1 max: 6 } type: FLOAT annotation { tag: "continuous" } }
feature {
  name: "device"
  type: INT
  int_domain { max: 4 is_categorical: true }
  annotation { tag: "categorical" tag: "session" }
}
"""
SCHEMA = Schema(
    (
        ColumnSchema(
            name="item_id",
            tags=frozenset({"categorical", "item", "id", "item_id"}),
            num_rows=51,
            is_list=True,
            max_length=6,
        ),
        ColumnSchema(
            name="price",
            tags=frozenset({"continuous"}),
            is_float=True,
            is_list=True,
            max_length=6,
        ),
        ColumnSchema(name="device", tags=frozenset({"categorical", "session"}), num_rows=5),
    )
)


def written(directory: Path, text: str) -> Path:
    (directory / "schema").write_text(text, encoding="utf-8")
    return directory / "schema"


def test_protobuf_text_is_read_with_tags_cardinalities_and_lengths(tmp_path: Path) -> None:
    assert Schema.from_json(written(tmp_path, PBTXT)) == SCHEMA


def test_the_json_form_of_the_same_proto_is_read_alike(tmp_path: Path) -> None:
    from google.protobuf import json_format, text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    text = json_format.MessageToJson(text_format.Parse(PBTXT, schema_pb2.Schema()))
    assert '"@type"' in text
    assert Schema.from_json(written(tmp_path, text)) == SCHEMA


def test_json_as_merlin_and_transformers4rec_write_it_is_read(tmp_path: Path) -> None:
    item = {
        "name": "item_id/list",
        "valueCount": {"min": "2", "max": "185"},
        "type": "INT",
        "intDomain": {"name": "item_id/list", "min": "1", "max": "52742", "isCategorical": True},
        "annotation": {
            "tag": ["item_id", "list", "categorical", "item"],
            "extraMetadata": [{"is_list": True, "embedding_sizes": {"dimension": 16.0}}],
        },
    }
    schema = Schema.from_json(written(tmp_path, json.dumps({"feature": [item]})))
    assert schema.item_id.num_rows == 52743
    assert schema.item_id.max_length == 185
    assert schema.item_id.is_list


def test_merlins_own_files_are_read_and_merlin_reads_them_too(tmp_path: Path) -> None:
    import pipeline.core.merlin  # noqa: F401, I001
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    (tmp_path / "schema.pbtxt").write_text(PBTXT)
    metadata = TensorflowMetadata.from_proto_text_file(str(tmp_path), "schema.pbtxt")
    merlin = metadata.to_merlin_schema()
    assert merlin.column_names == ["item_id", "price", "device"]
    assert merlin["item_id"].properties["domain"]["max"] == 50
    rewritten = TensorflowMetadata.from_merlin_schema(merlin)
    rewritten.to_proto_text_file(str(tmp_path), "again.pbtxt")
    assert Schema.from_json(tmp_path / "again.pbtxt") == SCHEMA
    assert Schema.from_json(written(tmp_path, rewritten.to_json())) == SCHEMA


def test_a_schema_is_read_in_a_process_that_loaded_nothing_else(tmp_path: Path) -> None:
    # protobuf only knows the types inside `extra_metadata` that somebody imported
    code = f"""
from pipeline.core.schema import Schema
import sys
assert Schema.from_json({str(written(tmp_path, PBTXT))!r}).item_id.is_list
assert "merlin" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("text", ["{", "[]", "{'a'", '{"feature": 3}', "feature {", "name: 'x'"])
def test_what_is_no_schema_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Schema.from_json(written(tmp_path, text))
    assert "is not a schema" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_schema_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="`pipeline preprocess` writes"):
        Schema.from_json(tmp_path / "none.pbtxt")
    with pytest.raises(ArtifactError, match="is not a schema"):
        Schema.from_json(tmp_path)


COLUMNS = st.builds(
    ColumnSchema,
    name=st.text(),
    tags=st.frozensets(st.sampled_from([str(tag) for tag in Tags])),
    num_rows=st.integers(0, 10**9),
    is_float=st.booleans(),
    is_list=st.booleans(),
    max_length=st.integers(0, 4096),
)


@given(st.lists(COLUMNS, max_size=4))
def test_a_schema_survives_json(columns: list[ColumnSchema]) -> None:
    schema = Schema(tuple(columns))
    assert Schema.from_dicts(json.loads(json.dumps(schema.to_dicts()))) == schema


def test_columns_are_found_by_name_and_by_tag() -> None:
    assert SCHEMA["price"].is_float
    assert SCHEMA.select_by_tag(Tags.CATEGORICAL).column_names == ["item_id", "device"]
    assert SCHEMA.select_by_tag(Tags.SESSION, Tags.CONTINUOUS).column_names == ["price", "device"]
    assert SCHEMA.select_by_name("device", "item_id").column_names == ["device", "item_id"]
    with pytest.raises(ConfigError, match="no column 'prise'"):
        SCHEMA["prise"]


def test_one_column_is_the_item() -> None:
    assert SCHEMA.item_id.name == "item_id"
    with pytest.raises(ConfigError, match="found 0 among price"):
        _ = SCHEMA.select_by_name("price").item_id
    with pytest.raises(ConfigError, match="found 2 among"):
        _ = Schema((SCHEMA["item_id"], SCHEMA["item_id"])).item_id
