"""Several values an interaction and hashed ones, from the log to an answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.core.columns import FIRST_ITEM, NULL, OUT_OF_VOCABULARY, bucket_of
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.batch import SessionBatch
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema
from pipeline.exporting.run import export
from pipeline.in_process import open_run
from pipeline.model.build import build_inputs
from pipeline.model.model_files import load_model
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.client import Client
from pipeline.serve.client.tensors import _join
from pipeline.serve.run import running_server
from pipeline.serve.runtime.lookups import MultiValuedLookup, lookup_of
from pipeline.serve.triton.ports import free_ports
from pipeline.training.run import train

# isort: split
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

TAGS = {"name": "tags", "kind": "categorical", "of": "item", "values_per_interaction": 3}


def recipe(*features: dict[str, Any], **more: Any) -> Preprocess:
    return Preprocess.from_dict({"session": "s", "item": "i", "features": features, **more}, "test")


def log(folder: Path, columns: dict[str, Any]) -> Path:
    path = folder / "log.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def training(data: Path) -> pd.DataFrame:
    return pq.read_table(data / "sessions" / "train").to_pandas()


def made(folder: Path, columns: dict[str, Any], chosen: Preprocess, name: str = "data") -> Path:
    preprocess(chosen, [log(folder, columns)], [], folder / name)
    return folder / name


@pytest.mark.parametrize("part_rows", [spill.SHARD_ROWS, 3])
def test_multi_valued_columns_share_a_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    monkeypatch.setattr(spill, "SHARD_ROWS", part_rows)
    texts = ["a|b", " a ", None, "", "b|c|a|d", "||a"]
    columns = {"s": [1, 1, 2, 2, 3, 3], "i": list("uvwuvw"), "tags": texts}
    data = made(tmp_path, columns, recipe(TAGS))
    vocabulary = Fitted.read(data).vocabularies["tags"].values.to_pylist()
    assert vocabulary == ["a", "b", "c"]  # the fourth value of a row is not read
    a, b, c = (FIRST_ITEM + n for n in range(3))
    sessions = training(data)
    assert [list(v) for v in sessions["tags_1"]] == [[a, a], [NULL, NULL], [b, a]]
    assert [list(v) for v in sessions["tags_2"]] == [[b, 0], [0, 0], [c, 0]]
    assert [list(v) for v in sessions["tags_3"]] == [[0, 0], [0, 0], [a, 0]]


@pytest.mark.parametrize("base", [None, "base"])
def test_vocabulary_does_not_depend_on_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str | None
) -> None:
    texts = [f"t{n % 7}|t{n % 3}" if n % 4 else None for n in range(60)]
    columns = {"s": [n // 3 for n in range(60)], "i": [n % 5 for n in range(60)], "tags": texts}
    path = log(tmp_path, columns)
    start = None if base is None else tmp_path / base
    if start is not None:
        preprocess(recipe(TAGS), [log(tmp_path, {k: v[:9] for k, v in columns.items()})], [], start)
        path = log(tmp_path, columns)
    preprocess(recipe(TAGS), [path], [], tmp_path / "one", base=start)
    monkeypatch.setattr(spill, "SHARD_ROWS", 4)
    monkeypatch.setattr(spill, "_STEP", 2)
    monkeypatch.setattr("pipeline.preprocessing.statistics._BUFFER_ROWS", 1)
    preprocess(recipe(TAGS), [path], [], tmp_path / "many", base=start)
    one, many = (Fitted.read(tmp_path / name).vocabularies for name in ("one", "many"))
    assert one.keys() == many.keys()
    for name, vocabulary in one.items():
        assert vocabulary.values.to_pylist() == many[name].values.to_pylist()


def test_lists_of_parquet_are_read_as_their_text(tmp_path: Path) -> None:
    lists = [["a", "b"], ["a"], None, [], ["b", None, "c"], [" ", "a"]]
    texts = ["a|b", "a", None, "", "b|c", "a"]
    sessions = {"s": [1, 1, 2, 2, 3, 3], "i": list("uvwuvw")}
    as_lists = made(tmp_path, {**sessions, "tags": lists}, recipe(TAGS), "lists")
    as_texts = made(tmp_path, {**sessions, "tags": texts}, recipe(TAGS), "texts")
    assert training(as_lists).to_json() == training(as_texts).to_json()


def test_an_element_of_a_list_is_one_tag_whatever_is_in_it(tmp_path: Path) -> None:
    lists = [["a|b", "a"], ["a|b"], ["b"], ["a"], ["b"], ["a|b"]]
    sessions = {"s": [1, 1, 2, 2, 3, 3], "i": list("uvwuvw")}
    fitted = Fitted.read(made(tmp_path, {**sessions, "tags": lists}, recipe(TAGS), "lists"))
    assert sorted(fitted.vocabularies["tags"].values.to_pylist()) == ["a", "a|b", "b"]
    lookup = MultiValuedLookup(lookup_of([b"a|b", b"a", b"b"]), "|", ["tags_1", "tags_2"])
    sent = _join(["a|b", "b"], "|")
    assert lookup(np.array([sent.encode()], object)).tolist() == [[3, 5]]


def test_rows_of_whole_sessions_hold_lists_of_lists(tmp_path: Path) -> None:
    whole = {
        "s": [1, 3],
        "i": [["u", "v"], ["v", "w"]],
        "tags": [[[7, 8], [7]], [None, [8, 7, 9]]],
    }
    flat = {
        "s": [1, 1, 3, 3],
        "i": list("uvvw"),
        "tags": ["7|8", "7", None, "8|7|9"],
    }
    one = made(tmp_path, whole, recipe(TAGS), "whole")
    other = made(tmp_path, flat, recipe(TAGS), "flat")
    assert Fitted.read(one).vocabularies["tags"].type == "int64"
    assert training(one).to_json() == training(other).to_json()


def test_a_list_column_of_one_value_is_still_an_error(tmp_path: Path) -> None:
    columns = {"s": [1, 1], "i": ["u", "v"], "tags": [["a"], ["b"]]}
    with pytest.raises(DataError, match="list column"):
        made(tmp_path, columns, recipe({"name": "tags", "kind": "categorical"}))


def test_side_table_holds_multi_valued_features(tmp_path: Path) -> None:
    table = tmp_path / "items.csv"
    table.write_text("i,tags\nu,a|b\nv,b\n")
    joined = recipe({**TAGS, "table": True}, item_table={"file": str(table)})
    sessions = {"s": [1, 1, 2, 2], "i": list("uvuw")}
    columns = {**sessions, "tags": ["a|b", "b", "a|b", None]}
    one, other = made(tmp_path, sessions, joined, "one"), made(tmp_path, columns, recipe(TAGS), "o")
    assert training(one).to_json() == training(other).to_json()


def test_schema_names_the_feature_of_each_column(tmp_path: Path) -> None:
    columns = {"s": [1, 1], "i": ["u", "v"], "tags": ["a|b", "c"]}
    data = made(tmp_path, columns, recipe(TAGS))
    schema = Schema.from_json(data / "schema.pbtxt")
    assert {c.name: c.value_of for c in schema if c.value_of} == dict.fromkeys(
        ["tags_1", "tags_2", "tags_3"], "tags"
    )
    merlin = TensorflowMetadata.from_proto_text_file(str(data)).to_merlin_schema()
    assert merlin["tags_2"].int_domain.max == schema["tags_2"].num_rows - 1
    assert Schema.from_merlin(merlin)["tags_2"].value_of == "tags"


def test_model_averages_the_embeddings_of_present_values(tmp_path: Path) -> None:
    columns = {"s": [1, 1], "i": ["u", "v"], "tags": ["a|b", "c"]}
    schema = Schema.from_json(made(tmp_path, columns, recipe(TAGS)) / "schema.pbtxt")
    model = Recipe.from_dict({"model": {"embedding_dims": {"tags": 6}}}, "test").model
    inputs = build_inputs(schema, model, 4, {})
    assert inputs.feature_names == ["item_id", "tags_1", "tags_2", "tags_3"]
    table = inputs.table("tags").weight
    assert table.shape == (FIRST_ITEM + 3, 6)
    zeros = torch.zeros(1, 2, dtype=torch.int64)
    features = {"item_id": zeros + 3, "tags_1": torch.tensor([[4, 5]]), "tags_2": zeros + 5}
    features |= {"tags_3": zeros, "tags_2": torch.tensor([[5, 0]])}
    batch = inputs._stacked(SessionBatch(features, torch.tensor([2])).read(inputs._axes))
    part = inputs._embed(batch.features)["tags"]
    assert torch.allclose(part[0, 0], (table[4] + table[5]) / 2)
    assert torch.allclose(part[0, 1], table[5])


def test_values_without_an_index_of_their_own_share_buckets(tmp_path: Path) -> None:
    brands = ["big"] * 4 + ["x", "y", "z", None]
    columns = {"s": [1, 1, 2, 2, 3, 3, 4, 4], "i": list("uvuvuvuv"), "brand": brands}
    feature = {"name": "brand", "kind": "categorical", "min_count": 2, "hash_buckets": 5}
    data = made(tmp_path, columns, recipe(feature))
    vocabulary = Fitted.read(data).vocabularies["brand"]
    assert (vocabulary.values.to_pylist(), vocabulary.num_rows) == (["big"], FIRST_ITEM + 5 + 1)
    assert Schema.from_json(data / "schema.pbtxt")["brand"].num_rows == FIRST_ITEM + 5 + 1
    indices = [index for row in training(data)["brand"] for index in row]
    shared = [bucket_of(text, 5) for text in "xyz"]
    assert indices == [FIRST_ITEM + 5] * 4 + shared + [NULL]
    assert all(FIRST_ITEM <= index < FIRST_ITEM + 5 for index in shared)


def test_a_number_is_hashed_as_its_text(tmp_path: Path) -> None:
    feature = {"name": "brand", "kind": "categorical", "min_count": 2, "hash_buckets": 100}
    sessions = {"s": [1, 1, 2, 2], "i": list("uvuv")}
    numbers = made(tmp_path, {**sessions, "brand": [7, 7, 8, -9]}, recipe(feature), "numbers")
    texts = made(tmp_path, {**sessions, "brand": ["7", "7", "8", "-9"]}, recipe(feature), "texts")
    assert training(numbers).to_json() == training(texts).to_json()


def test_known_values_keep_their_index_behind_the_buckets(tmp_path: Path) -> None:
    feature = {"name": "brand", "kind": "categorical", "hash_buckets": 4}
    first = {"s": [1, 1, 2, 2], "i": list("uvuv"), "brand": list("aabb")}
    base = made(tmp_path, first, recipe(feature), "base")
    more = {"s": [3, 3, 4, 4], "i": list("uvuv"), "brand": list("ccab")}
    path = log(tmp_path, more)
    preprocess(recipe(feature), [path], [], tmp_path / "next", base=base)
    values = Fitted.read(tmp_path / "next").vocabularies["brand"].values.to_pylist()
    assert values == ["a", "b", "c"]
    assert [list(v) for v in training(tmp_path / "next")["brand"]] == [[9, 9], [7, 8]]
    with pytest.raises(ConfigError, match="features"):
        preprocess(
            recipe({**feature, "hash_buckets": 5}), [path], [], tmp_path / "other", base=base
        )


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({"kind": "continuous", "values_per_interaction": 2}, "categorical"),
        ({"kind": "continuous", "hash_buckets": 2}, "categorical"),
        ({"kind": "categorical", "separator": ";"}, "values_per_interaction"),
        ({"kind": "categorical", "buckets": [1], "values_per_interaction": 2}, "without `buckets`"),
        ({"kind": "categorical", "values_per_interaction": 65}, "64"),
        ({"kind": "categorical", "separator": "", "values_per_interaction": 2}, "character"),
    ],
)
def test_what_makes_no_sense_is_refused(feature: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe({"name": "tags", **feature})


def test_column_name_of_a_multi_valued_feature_is_refused() -> None:
    with pytest.raises(ConfigError, match="tags_2"):
        recipe(TAGS, {"name": "tags_2", "kind": "categorical"})


def test_a_server_a_run_and_the_data_agree(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    items = random.integers(40, size=900)
    tags = ["|".join(f"t{n % k}" for k in (3, 5, 7)[: n % 4]) or None for n in range(40)]
    columns = {
        "s": np.repeat(np.arange(180), 5),
        "i": items,
        "tags": [tags[n] for n in items],
        "maker": [f"m{n % 11}" if n % 5 else None for n in items],
        "mood": ["|".join(random.choice(["x", "y", "z"], n % 3)) for n in range(900)],
    }
    chosen = {
        "features": [
            TAGS,
            {"name": "maker", "kind": "categorical", "min_count": 90, "hash_buckets": 3},
            {"name": "mood", "kind": "categorical", "values_per_interaction": 2},
        ],
        "split": {"test": 0.2},
        "max_sequence_length": 4,
    }
    settings = {
        "preprocess": {"session": "s", "item": "i", **chosen},
        "model": {"d_model": 16, "n_head": 2, "n_layer": 1, "embedding_dims": {"tags": 8}},
        "train": {"epochs": 1},
    }
    whole = Recipe.from_dict(settings, "test")
    data, run = made(tmp_path, columns, whole.preprocess), tmp_path / "run"
    train(data, whole.model, whole.train, run)
    assert load_model(run).inputs.multi_valued["tags"] == ("tags_1", "tags_2", "tags_3")
    export(run, tmp_path / "repository")
    asked = [
        {"item_id": [3, 4], "mood": [["x", "y"], None], "maker": ["m3", "new"]},
        {"item_id": [5, 999], "mood": ["y", "z|x"], "maker": ["other", "m1"]},
        {"item_id": [7]},
        {"item_id": [7], "tags": [["t1", "t2"]]},
    ]
    ports = free_ports()
    with (
        open_run(run) as local,
        running_server(tmp_path / "repository", ports=ports) as server,
        Client(f"grpc://{server.grpc_url}") as client,
    ):
        ours, theirs = local.recommend(asked, 5), client.recommend(asked, 5)
        assert ours.items.tolist() == theirs.items.tolist()
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        # what is not sent of the item is what the log has of it
        unsent = client.recommend([asked[2]], 5)
        answer = client.recommend([{**asked[2], "tags": [tags[7]]}], 5)
        assert answer.scores == pytest.approx(unsent.scores, abs=1e-4)
        for tags_of_one in (np.array(["t1", "t2"]), {"t1", "t2"}, pd.Series(["t1", None, "t2"])):
            same = client.recommend([{**asked[3], "tags": [tags_of_one]}], 5)
            assert same.scores == pytest.approx(theirs.scores[3:], abs=1e-4)
        swapped = client.recommend([{**asked[3], "tags": ["t2|t1"]}], 5)
        assert swapped.scores == pytest.approx(theirs.scores[3:], abs=1e-4)
        assert theirs.scores[2] != pytest.approx(theirs.scores[3], abs=1e-4)
        # the log itself, as a file of lists
        part = {name: list(values[:10]) for name, values in columns.items()}
        part["tags"] = [t and t.split("|") for t in part["tags"]]
        records = [list(asker.recommend_log([log(tmp_path, part)], 5)) for asker in (local, client)]
        ids = [
            [[e["item_id"] for e in r["recommendations"]] for r in answers] for answers in records
        ]
        assert ids[0] == ids[1]


def test_the_out_of_vocabulary_index_is_for_columns_without_buckets(tmp_path: Path) -> None:
    columns = {"s": [1, 1, 2, 2], "i": list("uvuv"), "tags": ["a|a", "a", "rare", "a|other"]}
    data = made(tmp_path, columns, recipe({**TAGS, "min_count": 2}))
    sessions = training(data)
    assert [list(v) for v in sessions["tags_1"]] == [[3, 3], [OUT_OF_VOCABULARY, 3]]
    assert [list(v) for v in sessions["tags_2"]] == [[3, 0], [0, OUT_OF_VOCABULARY]]
