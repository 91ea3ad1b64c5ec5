"""`preprocess` end to end: logs in, a data directory out."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ArtifactError, ConfigError, DataError
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema, Tags
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.preprocess import Preprocess

DAY = 86_400
COLUMNS = ("session_id", "item_id", "t", "brand", "price", "device")
LOG = [
    # three days; the third is the test part, the second holds only an item that training lacks
    ("s1", "a", 10, "x", 1.0, "phone"),
    ("s1", "b", 20, "y", 3.0, "phone"),
    ("s1", "a", 30, "x", 1.0, "tablet"),
    ("s2", "b", 15, "y", 3.0, None),
    ("s2", "a", 12, "x", 1.0, None),
    ("s3", "a", 40, "x", 1.0, "phone"),  # too short for training
    ("s4", "c", DAY + 5, "z", 100.0, "phone"),
    ("s4", "a", DAY + 6, "x", None, "phone"),
    ("s5", "a", 2 * DAY + 7, "x", 1.0, "phone"),
]


def recipe(**more: object) -> Preprocess:
    values: dict = {
        "timestamp": {"column": "t", "unit": "s", "features": ["hour", "elapsed"]},
        "features": [
            {"name": "brand", "kind": "categorical", "of": "item"},
            {"name": "price", "kind": "continuous", "of": "item"},
            {"name": "device", "kind": "categorical", "of": "session"},
        ],
        "max_sequence_length": 2,
        "split": {"valid": "0.5d", "test": "0.5d"},
    }
    return Preprocess.from_dict(values | more, "recipe")


def log(directory: Path, rows: list[tuple] = LOG, name: str = "log") -> Path:
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    pq.write_table(pa.table(columns, list(COLUMNS)), directory / f"{name}.parquet")
    return directory / f"{name}.parquet"


def part(data: Path, name: str) -> dict[str, list]:
    return pq.read_table(data / "sessions" / name / "part-0.parquet").to_pydict()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("a shop")
    facts = preprocess(recipe(), [log(directory)], [], directory / "data")
    return directory / "data", facts


def test_the_directory_holds_sessions_schema_state_and_manifest(shop: tuple[Path, dict]) -> None:
    data, _ = shop
    files = {p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file()}
    assert files == {
        "manifest.json",
        "report.html",
        "report.json",
        "schema.pbtxt",
        "fitted/fitted.json",
        "fitted/items.parquet",
        *(f"fitted/categories/{name}.parquet" for name in ("item_id", "brand", "device")),
        *(f"sessions/{name}/part-0.parquet" for name in ("train", "valid", "test")),
    }


def test_manifest_counts_rows_read_and_sessions_written(shop: tuple[Path, dict]) -> None:
    data, facts = shop
    assert read_manifest(data, "data") == facts
    assert facts == {
        "engine": "pandas",
        "rows": {"input": {"read": 9, "kept": 9}},
        "sessions": {
            "train": {
                "sessions": 2,
                "interactions": 5,
                "first": "1970-01-01T00:00:10Z",
                "last": "1970-01-01T00:00:30Z",
            },
            "valid": {
                "sessions": 1,
                "interactions": 2,
                "first": "1970-01-02T00:00:05Z",
                "last": "1970-01-02T00:00:06Z",
            },
            "test": {
                "sessions": 1,
                "interactions": 1,
                "first": "1970-01-03T00:00:07Z",
                "last": "1970-01-03T00:00:07Z",
            },
        },
        "left_out": {"sessions": 1, "interactions": 1},
        "catalogue_items": 2,
        "notes": [
            "Half of the sessions end by 1970-01-01T00:00:40Z. If that is wrong, correct "
            "`timestamp.unit` or `timestamp.format`; if it is right, set `timestamp.earliest`."
        ],
        "drift": {"valid": [], "test": []},
        "max_sequence_length": 2,
    }


def test_sessions_hold_indices_numbers_and_times_in_order(shop: tuple[Path, dict]) -> None:
    train = part(shop[0], "train")
    assert train["session_id"] == ["s1", "s2"]
    assert train["item_id"] == [[3, 4, 3], [3, 4]]  # a is seen three times, b twice
    assert train["brand"] == [[3, 4, 3], [3, 4]]
    assert train["device"] == [3, 1]  # that of the oldest interaction; s2 has none
    assert train["timestamp"] == [[10_000_000, 20_000_000, 30_000_000], [12_000_000, 15_000_000]]
    low, high = -0.8 / np.sqrt(1.2), 1.2 / np.sqrt(1.2)  # of 1, 3, 1, 3, 1: mean 1.8, variance 1.2
    assert np.concatenate(train["price"]).tolist() == pytest.approx([low, high, low, low, high])
    waits = np.log1p([0, 10, 10, 0, 3])
    scaled = (waits - waits.mean()) / waits.std(ddof=1)
    assert np.concatenate(train["elapsed"]).tolist() == pytest.approx(scaled.tolist(), abs=1e-6)


def test_statistics_come_from_training_sessions_alone(shop: tuple[Path, dict]) -> None:
    fitted = Fitted.read(shop[0])
    assert fitted.item.values.to_pylist() == ["a", "b"]
    assert fitted.vocabularies["brand"].values.to_pylist() == ["x", "y"]
    assert fitted.standardizations["price"].mean == pytest.approx(1.8)
    assert fitted.recipe == recipe()
    valid = part(shop[0], "valid")
    assert valid["item_id"] == [[2, 3]]
    assert valid["price"][0][1] == 0  # missing


def test_training_rows_keep_one_interaction_more_than_the_model_reads(tmp_path: Path) -> None:
    rows = [("s1", f"i{n}", n, "x", 1.0, "phone") for n in range(6)]
    rows += [("s2", f"i{n}", 9 + n, "x", 1.0, "phone") for n in range(6)]
    preprocess(recipe(split={"test": 0.5}), [log(tmp_path, rows)], [], tmp_path / "data")
    fitted = Fitted.read(tmp_path / "data")
    ids = ["", "", "", *fitted.item.values.to_pylist()]
    assert [ids[i] for i in part(tmp_path / "data", "train")["item_id"][0]] == ["i3", "i4", "i5"]
    assert len(part(tmp_path / "data", "test")["item_id"][0]) == 6  # evaluation cuts for itself


def test_the_schema_describes_what_was_written(shop: tuple[Path, dict]) -> None:
    data, _ = shop
    schema = Schema.from_json(data / "schema.pbtxt")
    stored = pq.read_schema(data / "sessions" / "train" / "part-0.parquet")
    assert sorted(schema.column_names) == sorted(stored.names)
    assert schema.item_id.name == "item_id"
    assert schema.item_id.num_rows == 3 + 2
    assert schema["brand"].num_rows == 3 + 2
    assert schema["device"].num_rows == 3 + 2
    tagged = {tag: sorted(schema.select_by_tag(tag).column_names) for tag in Tags}
    assert tagged[Tags.CATEGORICAL] == ["brand", "device", "item_id"]
    assert tagged[Tags.CONTINUOUS] == ["elapsed", "hour_cos", "hour_sin", "price"]
    assert tagged[Tags.ITEM] == ["brand", "item_id", "price"]
    assert tagged[Tags.SESSION] == ["device", "session_id"]
    assert tagged[Tags.TIME] == ["timestamp"]
    for column in schema:
        kind = stored.field(column.name).type
        assert column.is_list == pa.types.is_list(kind)
        assert column.max_length == (3 if column.is_list else 0)
        value = kind.value_type if column.is_list else kind
        assert column.is_float == pa.types.is_floating(value)


def test_tags_stand_in_one_order(shop: tuple[Path, dict]) -> None:
    # Merlin keeps them in a set, which each process walks in an order of its own
    proto = text_format.Parse((shop[0] / "schema.pbtxt").read_text(), schema_pb2.Schema())
    tags = [list(feature.annotation.tag) for feature in proto.feature]
    assert tags[0] == ["categorical", "id", "item"]
    assert tags == [sorted(each) for each in tags]


def test_merlin_reads_the_schema_with_the_types_of_the_files(shop: tuple[Path, dict]) -> None:
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    metadata = TensorflowMetadata.from_proto_text_file(str(shop[0]), "schema.pbtxt")
    stored = pq.read_schema(shop[0] / "sessions" / "train" / "part-0.parquet")
    for column in metadata.to_merlin_schema():
        kind = stored.field(column.name).type
        value = kind.value_type if column.is_list else kind
        if not pa.types.is_string(value):
            assert column.dtype.to_numpy == value.to_pandas_dtype(), column.name
        assert column.is_ragged == column.is_list


def test_no_file_holds_a_pickle_or_a_path_of_this_machine(shop: tuple[Path, dict]) -> None:
    data, _ = shop
    for file in (p for p in data.rglob("*") if p.is_file()):
        assert file.suffix in (".html", ".json", ".pbtxt", ".parquet"), file
        content = file.read_bytes()
        for trace in (
            str(data.parent),
            str(Path.cwd()),
            str(Path.home()),
            tempfile.gettempdir(),
            "a shop",
        ):
            assert trace.encode() not in content, (file, trace)
        if file.suffix == ".parquet":
            assert content.startswith(b"PAR1")
            assert not pq.read_schema(file).metadata  # pandas' notes, for one
        else:
            assert content.decode("utf-8").replace("\n", "").isprintable()


def test_the_same_log_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    # ties in count, ties in time
    random = np.random.default_rng(0)
    rows = [
        (f"s{random.integers(30)}", f"i{random.integers(40)}", int(random.integers(50)), "x", 1.0,
         "phone")
        for _ in range(300)
    ]  # fmt: skip
    file = log(tmp_path, rows)
    manifests = []
    for name in ("first", "second", "first"):
        preprocess(recipe(split={"valid": 0.1}), [file], [], tmp_path / name)
        manifests.append((tmp_path / name / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1] == manifests[2]


def test_nothing_is_written_beside_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = log(tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")  # NVTabular likes to write `categories/` here
    preprocess(recipe(), [file], [], tmp_path / "out" / "data")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["data"]


def test_test_sessions_may_be_a_log_of_their_own(tmp_path: Path) -> None:
    train = [(n, 10 * n % 30, n, "x", 1.0, "phone") for n in (1, 1, 2, 2)]
    test = [("9", "10", 9, "x", 1.0, "phone"), ("9", "q", 10, "w", 1.0, "phone")]
    files = log(tmp_path, train, "train"), log(tmp_path, test, "test")
    facts = preprocess(recipe(split={}), [files[0]], [files[1]], tmp_path / "data")
    assert facts["rows"] == {
        "input": {"read": 4, "kept": 4, "counted": {"duplicated rows, kept": 2}},
        "test": {
            "read": 2,
            "kept": 2,
            "counted": {"values of item_id that are no integer, as all that are known": 1},
        },
    }
    sessions = part(tmp_path / "data", "test")
    assert sessions["session_id"] == [9]  # read as the type that training has
    assert sessions["item_id"] == [[3, 2]]
    assert sessions["brand"] == [[3, 2]]


def test_rare_items_have_no_index_of_their_own(tmp_path: Path) -> None:
    facts = preprocess(recipe(min_item_count=3), [log(tmp_path)], [], tmp_path / "data")
    assert facts["catalogue_items"] == 1
    assert facts["sessions"]["train"]["interactions"] == 5
    assert part(tmp_path / "data", "train")["item_id"] == [[3, 2, 3], [3, 2]]


def test_column_may_be_missing_in_training_only(tmp_path: Path) -> None:
    rows = [(s, i, t, None if s < "s4" else brand, *more) for s, i, t, brand, *more in LOG]
    preprocess(recipe(), [log(tmp_path, rows)], [], tmp_path / "data")
    assert part(tmp_path / "data", "train")["brand"] == [[1, 1, 1], [1, 1]]
    assert part(tmp_path / "data", "valid")["brand"] == [[2, 2]]
    assert Schema.from_json(tmp_path / "data" / "schema.pbtxt")["brand"].num_rows == 3


def test_a_log_without_an_item_to_learn_is_refused(tmp_path: Path) -> None:
    file = log(tmp_path)
    with pytest.raises(DataError, match="none is seen 4 times or more in 5 interactions"):
        preprocess(recipe(min_item_count=4), [file], [], tmp_path / "data")
    empty = [(session, None, *rest) for session, _, *rest in LOG]
    with pytest.raises(DataError, match="No item for training"):
        preprocess(recipe(), [log(tmp_path, empty, "empty")], [], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_recipe_without_time_goes_by_the_order_of_the_rows(tmp_path: Path) -> None:
    facts = preprocess(recipe(timestamp=None, split={"test": 0.2}), [log(tmp_path)], [],
                       tmp_path / "data")  # fmt: skip
    assert part(tmp_path / "data", "train")["timestamp"] == [[0, 1, 2], [3, 4], [6, 7]]
    assert part(tmp_path / "data", "train")["session_id"] == ["s1", "s2", "s4"]
    assert facts["sessions"]["train"]["first"] is None


def test_settings_that_contradict_each_other_are_refused_before_reading(tmp_path: Path) -> None:
    none = tmp_path / "none.parquet"
    with pytest.raises(ConfigError, match="Both --test and `split"):
        preprocess(recipe(), [none], [none], tmp_path / "data")
    with pytest.raises(ConfigError, match="is a span of time but the recipe has no"):
        preprocess(recipe(timestamp=None), [none], [], tmp_path / "data")


def test_an_error_leaves_what_was_there_before(tmp_path: Path) -> None:
    preprocess(recipe(), [log(tmp_path)], [], tmp_path / "data")
    before = read_manifest(tmp_path / "data", "data")
    with pytest.raises(DataError):
        preprocess(recipe(item="product"), [log(tmp_path)], [], tmp_path / "data")
    assert read_manifest(tmp_path / "data", "data") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "log.parquet"]


def test_foreign_files_at_the_target_are_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(ArtifactError, match="left alone"):
        preprocess(recipe(), [tmp_path / "none.parquet"], [], tmp_path / "thesis")


def test_sessions_one_a_line_with_a_test_file_of_prefixes_and_targets(tmp_path: Path) -> None:
    # the files of SR-GNN: oldest line first; a test line is a session so far, a tab, what came next
    lines = ["1 2", "2 3 1", "3 1", "1 2 3", "2 1"]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "test.txt").write_text("2 3\t1\n2\t3\n")
    chosen = recipe(
        format="sequences", session_first=False, timestamp=None, features=[], split={"valid": 0.4}
    )
    data = tmp_path / "data"
    facts = preprocess(chosen, [tmp_path / "train.txt"], [tmp_path / "test.txt"], data)
    assert facts["rows"] == {"input": {"read": 12, "kept": 12}, "test": {"read": 5, "kept": 5}}
    items = Fitted.read(data).item.values.to_pylist()

    def ids(name: str) -> list[list[int]]:
        return [[items[i - 3] for i in session] for session in part(data, name)["item_id"]]

    assert sorted(ids("train")) == [[1, 2], [2, 3, 1], [3, 1]]
    assert sorted(ids("valid")) == [[1, 2, 3], [2, 1]], "the newest lines"
    assert sorted(ids("test")) == [[2, 3], [2, 3, 1]], "the target is the last item"


def test_shards_without_a_training_session_are_processed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ids in the order of time: the last parts are all test, and hold neither text nor number
    rows = [
        (number, f"i{number % 7}", 60 * number + step, "x" if number < 40 else None, 1.0, "phone")
        for number in range(60)
        for step in range(2)
    ]
    chosen = recipe(split={"test": 0.5}, max_sequence_length=5)
    preprocess(chosen, [log(tmp_path, rows)], [], tmp_path / "whole")
    monkeypatch.setattr(spill, "SHARD_ROWS", 8)
    monkeypatch.setattr(spill, "_STEP", 2)
    preprocess(chosen, [tmp_path / "log.parquet"], [], tmp_path / "parts")
    for name in ("train", "test"):
        whole, parts = ((tmp_path / d / "sessions" / name) for d in ("whole", "parts"))
        assert pq.read_table(whole).equals(pq.read_table(parts))


def test_item_values_are_the_newest_in_training(shop: tuple[Path, dict]) -> None:
    data, _ = shop
    items = Fitted.read(data).items
    assert items is not None
    assert items.to_pydict() == {
        "item_id": ["a", "b"],
        "brand": ["x", "y"],
        "price": [1.0, 3.0],
    }


@pytest.mark.parametrize("rows", [3, 1_000])
def test_newest_present_value_of_an_item_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(spill, "SHARD_ROWS", rows)
    monkeypatch.setattr(spill, "_STEP", 1)
    table = [
        ("s2", "a", 10, "old", 1.0, None),
        ("s2", "b", 20, None, 2.0, None),
        ("s3", "a", 30, "new", 3.0, None),
        ("s3", "b", 30, None, None, None),
        ("s1", "a", 20, "older", 5.0, None),
        ("s1", "a", 40, None, None, None),
    ]
    preprocess(recipe(split={}), [log(tmp_path, table)], [], tmp_path / "data")
    items = Fitted.read(tmp_path / "data").items
    assert items is not None
    assert items.to_pydict() == {
        "item_id": ["a", "b"], "brand": ["new", None], "price": [3.0, 2.0]
    }  # fmt: skip
