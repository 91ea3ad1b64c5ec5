"""The schema that preprocessing writes and models read."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.schema import ColumnSchema, Schema, Tags

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


def test_json_form_of_the_same_proto_is_read_alike(tmp_path: Path) -> None:
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


def test_schema_is_read_in_a_process_that_loaded_nothing_else(tmp_path: Path) -> None:
    # protobuf only knows the types inside `extra_metadata` that are imported
    code = f"""
from pipeline.data.schema import Schema
import sys
import time
assert Schema.from_json({str(written(tmp_path, PBTXT))!r}).item_id.is_list
assert "merlin" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("text", ["{", "[]", "{'a'", '{"feature": 3}', "feature {", "name: 'x'"])
def test_file_that_is_no_schema_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Schema.from_json(written(tmp_path, text))
    assert "is not a schema" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_schema_names_the_command_that_writes_it(tmp_path: Path) -> None:
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
    values_per_interaction=st.integers(-1, 100),
    width=st.integers(0, 4096),
)


@given(st.lists(COLUMNS, max_size=4))
def test_schema_survives_json(columns: list[ColumnSchema]) -> None:
    schema = Schema(tuple(columns))
    assert Schema.from_dicts(json.loads(json.dumps(schema.to_dicts()))) == schema


def test_schema_without_nested_lists_is_read() -> None:
    column = SCHEMA.select_by_name("item_id").to_dicts()[0]
    del column["values_per_interaction"], column["width"]
    assert Schema.from_dicts([column]).columns == (SCHEMA["item_id"],)


@pytest.fixture(scope="module")
def merlin_schema() -> object:
    import pipeline.core.merlin  # noqa: F401, I001

    from merlin.schema import ColumnSchema as Column
    from merlin.schema import Schema as MerlinSchema
    from merlin.schema import Tags as MerlinTags

    domain = {"domain": {"min": 0, "max": 50}}
    item = [MerlinTags.ITEM_ID, MerlinTags.CATEGORICAL]
    return MerlinSchema(
        [
            Column("item_id", tags=item, properties=domain, dtype="int64", dims=(None, (0, 20))),
            Column("price", tags=[MerlinTags.CONTINUOUS], dtype="float32", dims=(None, (0, 20))),
            Column(
                "words",
                tags=[MerlinTags.CATEGORICAL],
                properties={"domain": {"min": 0, "max": 9}},
                dtype="int64",
                dims=(None, (0, 20), (0, 4)),
            ),
            Column(
                "labels",
                tags=[MerlinTags.CATEGORICAL],
                properties={"domain": {"min": 0, "max": 9}},
                dtype="int64",
                dims=(None, (0, 20), (0, None)),
            ),
            Column("image", tags=[MerlinTags.EMBEDDING], dtype="float32", dims=(None, (0, 20), 16)),
            Column("user", tags=[MerlinTags.EMBEDDING], dtype="float32", dims=(None, 8)),
            Column("device", tags=[MerlinTags.SESSION], dtype="int64"),
            Column(
                "bought",
                tags=[MerlinTags.TARGET, MerlinTags.BINARY_CLASSIFICATION],
                dtype="float32",
            ),
        ]
    )


def test_merlin_schema_is_read_like_the_file_that_merlin_writes(
    merlin_schema: object, tmp_path: Path
) -> None:
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    schema = Schema.from_merlin(merlin_schema)  # type: ignore[arg-type]
    metadata = TensorflowMetadata.from_merlin_schema(merlin_schema)
    metadata.to_proto_text_file(str(tmp_path), "schema.pbtxt")
    assert Schema.from_json(tmp_path / "schema.pbtxt") == schema
    assert Schema.from_json(written(tmp_path, metadata.to_json())) == schema
    assert schema.item_id.num_rows == 51
    assert (schema["item_id"].is_list, schema["item_id"].max_length) == (True, 20)
    assert schema["price"].is_float
    assert not schema["device"].is_list
    assert schema.select_by_tag(Tags.BINARY_CLASSIFICATION).column_names == ["bought"]


def test_nested_lists_and_vectors_have_their_sizes(merlin_schema: object) -> None:
    schema = Schema.from_merlin(merlin_schema)  # type: ignore[arg-type]
    assert (schema["words"].values_per_interaction, schema["words"].max_length) == (4, 20)
    assert schema["labels"].values_per_interaction == -1, "multi-valued, of unknown length"
    assert schema["item_id"].values_per_interaction == 0
    assert (schema["image"].width, schema["image"].is_list) == (16, True)
    assert (schema["image"].max_length, schema["image"].values_per_interaction) == (20, 0)
    assert (schema["user"].width, schema["user"].is_list) == (8, False)


@pytest.mark.parametrize(
    "lists",
    [
        "shape { dim { size: 0 } dim { size: 6 } dim { size: 4 } }",
        "value_counts { value_count { max: 6 } value_count { max: 4 } }",
    ],
)
def test_nested_lists_are_read_in_both_forms_of_the_proto(tmp_path: Path, lists: str) -> None:
    text = 'feature { name: "w" type: INT int_domain { max: 9 } annotation { tag: "categorical" } '
    column = Schema.from_json(written(tmp_path, text + lists + "}"))["w"]
    assert (column.max_length, column.values_per_interaction, column.is_list) == (6, 4, True)


@pytest.mark.parametrize("thing", [None, 3, [3], "item_id", {"feature": []}])
def test_object_that_is_no_merlin_schema_is_refused(thing: object) -> None:
    with pytest.raises(ConfigError, match=r"Expected a Schema or a merlin\.schema\.Schema"):
        Schema.from_merlin(thing)  # type: ignore[arg-type]


def test_columns_are_made_without_a_file() -> None:
    item = ColumnSchema.create_categorical("item_id", 100, tags=[Tags.ITEM_ID])
    assert item.num_rows == 103
    assert item.tags == {"categorical", "item", "item_id"}
    assert item.is_list
    price = ColumnSchema.create_continuous("price", is_list=False)
    assert (price.tags, price.is_float, price.is_list) == ({"continuous"}, True, False)
    image = ColumnSchema.create_embedding("image", 16)
    assert (image.tags, image.width, image.is_list) == ({"embedding"}, 16, True)
    assert Schema((price, item)).item_id is item
    with pytest.raises(ConfigError, match="num_items of x is -1"):
        ColumnSchema.create_categorical("x", -1)


def test_columns_are_removed_and_merged() -> None:
    assert SCHEMA.remove_by_tag(Tags.CATEGORICAL).column_names == ["price"]
    assert SCHEMA.remove_by_name("price").column_names == ["item_id", "device"]
    with pytest.raises(ConfigError, match="no column 'prise'"):
        SCHEMA.remove_by_name("prise")
    price = SCHEMA.select_by_name("price")
    assert (SCHEMA - price) + price == SCHEMA.select_by_name("item_id", "device", "price")
    assert SCHEMA + price == SCHEMA
    other = Schema((ColumnSchema(name="price"),))
    with pytest.raises(ConfigError, match="Both schemas have a column 'price'"):
        _ = SCHEMA + other


def test_tables_have_their_rows_and_a_width_that_grows_with_them() -> None:
    assert SCHEMA.categorical_cardinalities() == {"item_id": 51, "device": 5}
    # 51 ** 0.25 = 2.67, 5 ** 0.25 = 1.50
    assert SCHEMA.embedding_sizes() == {"item_id": 6, "device": 3}
    assert SCHEMA.embedding_sizes(multiplier=10) == {"item_id": 27, "device": 15}


def test_tags_of_merlin_are_tags() -> None:
    import pipeline.core.merlin  # noqa: F401, I001

    from merlin.schema import Tags as MerlinTags

    assert SCHEMA.select_by_tag(MerlinTags.CONTINUOUS).column_names == ["price"]


def test_columns_are_selected_by_name_and_by_tag() -> None:
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


WRITTEN = Schema(
    (
        *SCHEMA,
        ColumnSchema.create_categorical("tags", 4, max_length=6, values_per_interaction=3),
        ColumnSchema.create_categorical("topics", 4, values_per_interaction=-1),
        ColumnSchema.create_embedding("image", 5),
        ColumnSchema.create_embedding("text", 7, is_list=False),
        ColumnSchema(name="genre.1", tags=frozenset({"categorical"}), num_rows=9, value_of="genre"),
        ColumnSchema(name="purchase", tags=frozenset({"target", "binary_classification"})),
    )
)


def test_proto_text_is_read_back_alike_by_us_and_by_merlin(tmp_path: Path) -> None:
    import pipeline.core.merlin  # noqa: F401, I001
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    path = written(tmp_path, WRITTEN.to_proto_text())
    assert Schema.from_json(path) == Schema().from_proto_text(path) == WRITTEN
    metadata = TensorflowMetadata.from_proto_text_file(str(tmp_path), "schema")
    assert Schema.from_merlin(metadata.to_merlin_schema()) == WRITTEN


def test_fields_of_another_version_of_the_proto_are_ignored(tmp_path: Path) -> None:
    later = PBTXT.replace("type: FLOAT", "type: FLOAT novelty { level: 3 }")
    assert Schema.from_json(written(tmp_path, later)) == SCHEMA
    text = json.dumps({"feature": [{"name": "a", "type": "INT", "novelty": 3}], "novelty": {}})
    assert Schema.from_json(written(tmp_path, text)).column_names == ["a"]


def test_names_and_tags_may_come_in_lists() -> None:
    assert SCHEMA.select_by_name(["price", "item_id"]).column_names == ["price", "item_id"]
    assert SCHEMA.remove_by_name(["price"], "device").column_names == ["item_id"]
    assert SCHEMA.select_by_tag([Tags.CONTINUOUS, "session"]).column_names == ["price", "device"]
    assert SCHEMA.remove_by_tag(["categorical"]).column_names == ["price"]


@pytest.mark.parametrize(
    "text",
    [
        "feature { " * 50_000,
        "other { " * 50_000 + "}" * 50_000,
        'feature { name: "a" type: INT }\n' * 100_000,
        'feature { name: "a" value_count { min: ' + "9" * 500_000 + " } }",
        '{"feature":' * 50_000,
        '{"feature": [' + "9" * 500_000 + "]}",
        '{"feature": [{"name": "a", "int_domain": {"max": 1e400}}]}',
    ],
)
def test_schema_bombs_end_in_seconds_with_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "schema.pbtxt").write_text(text)
    start = time.monotonic()
    with pytest.raises(ArtifactError, match="is not a schema") as caught:
        Schema.from_json(tmp_path / "schema.pbtxt")
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
