"""Recipes: every key and value is checked, and errors say what to write instead."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.core.config import parse_yaml
from pipeline.core.errors import ConfigError
from pipeline.recipe.choices import ARCHITECTURES
from pipeline.recipe.features import (
    ColumnBucket,
    ColumnCategory,
    ColumnNumber,
    Feature,
    OperatorBucket,
    OperatorCategory,
    OperatorNumber,
    TargetEncodedFeature,
)
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.train import TrainConfig, batch_size_for
from tests.conftest import ROOT

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def refusal(values: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_dict(values, "shop.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("shop.yaml: ")
    return message


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_committed_recipe_loads(file: Path) -> None:
    recipe = Recipe.load(file)
    assert recipe.preprocess.session
    assert recipe.preprocess.item


@pytest.mark.parametrize(
    ("values", "key", "suggestion"),
    [
        ({"preproces": {}}, "preproces", "preprocess"),
        ({"train": {"epoch": 1}}, "train.epoch", "epochs"),
        ({"preprocess": {"split": {"tset": "2d"}}}, "preprocess.split.tset", "test"),
        (
            {"preprocess": {"timestamp": {"column": "t", "units": "s"}}},
            "preprocess.timestamp.units",
            "unit",
        ),
        (
            {"preprocess": {"features": [{"name": "a", "kind": "categorical", "colum": "b"}]}},
            "preprocess.features.0.colum",
            "column",
        ),
        (
            {"preprocess": {"features": [{}, {"name": "a", "min_cuont": 3}]}},
            "preprocess.features.1.min_cuont",
            "min_count",
        ),
    ],
)
def test_misspelt_key_is_an_error_that_suggests_the_right_one(
    values: dict, key: str, suggestion: str
) -> None:
    if key.startswith("preprocess.features.1"):  # the first feature is fine
        values["preprocess"]["features"][0] = {"name": "b", "kind": "categorical"}
        values["preprocess"]["features"][1]["kind"] = "categorical"
    message = refusal(values)
    assert f"unknown key `{key}`" in message
    assert f"did you mean `{suggestion}`?" in message


def test_key_without_a_similar_one_lists_all_keys() -> None:
    message = refusal({"train": {"zzz": 1}})
    assert "unknown key `train.zzz`; known here: epochs, batch_size" in message


@given(section=st.sampled_from(["preprocess", "model", "train"]), key=st.text(min_size=1))
def test_unknown_key_is_refused_in_every_section(section: str, key: str) -> None:
    config = {"preprocess": Preprocess, "model": ModelConfig, "train": TrainConfig}[section]
    if key not in config.model_fields:
        with pytest.raises(ConfigError, match="unknown key"):
            Recipe.from_dict({section: {key: 1}}, "shop.yaml")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"train": {"epochs": 0}},
            "`train.epochs` is 0: expected 1 or more.",
        ),
        ({"train": {"learning_rate": float("nan")}}, "`train.learning_rate` is nan"),
        ({"train": {"epochs": "many"}}, "`train.epochs` is 'many'"),
        ({"preprocess": None}, "`preprocess` is None: expected a section with keys: "),
        ({"preprocess": {"session": 5}}, "`preprocess.session` is 5: expected text."),
        ({"preprocess": {"features": 3}}, "`preprocess.features` is 3: expected a list."),
        (
            {"preprocess": {"timestamp": "time"}},
            "`preprocess.timestamp` is 'time': expected a section with keys: column, unit",
        ),
        (
            {"preprocess": {"features": [{"name": "a", "kind": "x"}]}},
            "`preprocess.features.0.kind` is 'x': expected 'categorical' or 'continuous'.",
        ),
        ({"preprocess": {"min_item_count": 1.5}}, "is 1.5: expected a whole number."),
        ({"preprocess": {"max_sequence_length": "ten"}}, "is 'ten': expected a whole number."),
        ({"train": {"learning_rate": "fast"}}, "is 'fast': expected a number."),
        ({"model": {"weight_tying": "perhaps"}}, "is 'perhaps': expected true or false."),
        ({"model": {"dropout": 1}}, "`model.dropout` is 1: expected less than 1"),
        ({"preprocess": {"features": [{"name": "a"}]}}, "`preprocess.features.0.kind` is missing"),
        ({"preprocess": {"split": {"test": "2w"}}}, "expected days (`2d`), hours (`6h`)"),
        ({"preprocess": {"split": {"test": 1.0}}}, "a fraction between 0 and 1"),
        ({"preprocess": {"split": {"test": "0d"}}}, "expected days"),
        ({"preprocess": {"delimiter": "a" * 9}}, "`preprocess.delimiter` is 'aaaaaaaaa'"),
        ({"model": {"d_model": 10, "n_head": 3}}, "`n_head` 3 does not divide `d_model` 10"),
        (
            {"model": {"architecture": "gpt2", "masking": "mlm"}},
            "gpt2 works with clm, not with mlm",
        ),
        ({"preprocess": {"timestamp": {"column": "t", "features": ["hours"]}}}, "'hour'"),
        ({"preprocess": {"timestamp": {"column": "t", "features": ["hour"] * 2}}}, "twice"),
        ({"preprocess": {"format": "sequences", "timestamp": {"column": "t"}}}, "item ids alone"),
        ({"preprocess": {"delimiter": '"'}}, "ASCII characters, no quote and no line end"),
        ({"preprocess": {"delimiter": "\n"}}, "ASCII characters"),
        ({"preprocess": {"delimiter": "§"}}, "ASCII characters"),
        ({"model": {"temperature": float("inf")}}, "`model.temperature` is inf"),
        ({"model": {"architecture": "xlnet", "d_model": 9, "n_head": 3}}, "an even `d_model`"),
        ({"train": {"seed": -1}}, "`train.seed` is -1"),
    ],
)
def test_wrong_value_is_named_with_what_was_expected(values: dict, expected: str) -> None:
    assert expected in refusal(values)


def feature(name: str, **more: object) -> dict:
    return {"preprocess": {"features": [{"name": name, "kind": "categorical", **more}]}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (feature("item_id"), "a meaning of its own"),
        (feature("length"), "a meaning of its own"),
        (feature("encoded_x"), "a meaning of its own"),
        (feature("embedding"), "a meaning of its own"),
        (feature("candidates"), "a meaning of its own"),
        (feature("../x"), "a letter, then letters, digits and underscores"),
        (feature("brand__0"), "two underscores"),
        (feature("brand_"), "one at the end"),
        (feature("price", log=True), "`log` is for continuous"),
        (feature("price", kind="continuous", min_count=2), "`min_count` is for categorical"),
        (feature("price", smoothing=3), "`smoothing` is for features with `mean_of`"),
        (feature("price", operator="Round"), "`preprocess.features.0.inputs` is missing"),
        (feature("price", mean_of="x"), "`mean_of` is for continuous features"),
        (feature("tags", separator=","), "`values_per_interaction` of 2 or more"),
    ],
)
def test_feature_that_cannot_be_served_is_refused(values: dict, expected: str) -> None:
    assert expected in refusal(values)


FEATURES = [
    ({}, ColumnCategory),
    ({"table": True, "of": "item"}, ColumnCategory),
    ({"buckets": [1, 2.5], "min_count": 2}, ColumnBucket),
    ({"kind": "continuous", "log": True}, ColumnNumber),
    ({"kind": "continuous", "mean_of": "price", "folds": 3}, TargetEncodedFeature),
    ({"operator": "Split", "inputs": {"tags": "text"}, "hash_buckets": 4}, OperatorCategory),
    ({"operator": "Round", "inputs": {"price": "number"}, "buckets": [1]}, OperatorBucket),
    ({"kind": "continuous", "operator": "Clip", "inputs": {"p": "number"}}, OperatorNumber),
]


@pytest.mark.parametrize(("keys", "expected"), FEATURES, ids=str)
def test_dump_of_a_feature_has_the_keys_of_all_kinds_and_loads_again(
    keys: dict, expected: type[Feature]
) -> None:
    values = feature("brand", **keys)["preprocess"]
    values |= {"item_table": {"file": "items.csv"}} if keys.get("table") else {}
    recipe = Preprocess.from_dict(values, "shop.yaml")
    assert type(recipe.features[0]) is expected
    dump = recipe.model_dump(mode="json")
    assert ", ".join(dump["features"][0]) == (
        "name, column, kind, of, log, buckets, mean_of, smoothing, folds, operator, inputs, "
        "expression, table, min_count, hash_buckets, values_per_interaction, separator"
    )
    assert Preprocess.from_dict(json.loads(json.dumps(dump)), "fitted.json") == recipe


def test_two_features_of_one_name_are_refused() -> None:
    pair = [{"name": "a", "kind": "categorical"}, {"name": "a", "kind": "continuous"}]
    assert "two features are named 'a'" in refusal({"preprocess": {"features": pair}})
    clash = feature("hour_sin")
    clash["preprocess"]["timestamp"] = {"column": "t", "features": ["hour"]}
    assert "'hour_sin' is the name of a time feature" in refusal(clash)


def test_section_is_frozen_and_keyword_only() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.epochs = 3
    with pytest.raises(TypeError):
        TrainConfig(3)


def written(directory: Path, text: str) -> Path:
    file = directory / "shop.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_overrides_apply_in_turn_over_what_the_file_says(tmp_path: Path) -> None:
    file = written(tmp_path, "train: {epochs: 3, seed: 1}\n")
    recipe = Recipe.load(
        file,
        (
            "train.epochs=5",
            "train.epochs=7",
            "train.learning_rate=1e-3",
            "model.n_layer=1",  # a section that the file does not have
            "preprocess.features=[{name: brand, kind: categorical}]",
            "preprocess.session=a=b",
        ),
    )
    assert recipe.train.epochs == 7
    assert recipe.train.seed == 1
    assert recipe.train.learning_rate == 0.001
    assert recipe.model.n_layer == 1
    assert [f.name for f in recipe.preprocess.features] == ["brand"]
    assert recipe.preprocess.session == "a=b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "not of the form section.key=value"),
        ("=3", "not of the form section.key=value"),
        ("train.epochs.more=3", "'epochs' is not a section"),
        ("train.epochs=[1", "is not a YAML value"),
        ("train.epoch=3", "did you mean `epochs`?"),
        ("train.epochs=", "`train.epochs` is None"),
    ],
)
def test_override_that_cannot_be_applied_is_refused(
    tmp_path: Path, override: str, expected: str
) -> None:
    file = written(tmp_path, "train: {epochs: 3}\n")
    with pytest.raises(ConfigError) as caught:
        Recipe.load(file, (override,))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no mapping"),
        ("- a\n", "holds no mapping"),
        ("train: [1\n", "is not valid YAML"),
        ("train: !!python/object/apply:os.system [echo]\n", "is not valid YAML"),
    ],
)
def test_file_that_is_no_yaml_mapping_is_refused_in_one_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.load(written(tmp_path, text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_path_that_is_no_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist. Expected a recipe in YAML"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        Recipe.load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        Recipe.load(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_recipe_of_the_configs_loads(file: Path) -> None:
    Recipe.load(file)


def test_section_with_no_key_has_all_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "preprocess: {session: s}\nmodel:\ntrain:\n")
    assert Recipe.load(file).model == ModelConfig()
    recipe = Recipe.load(file, ("model.n_layer=1", "train.epochs=3"))
    assert (recipe.model.n_layer, recipe.train.epochs) == (1, 3)


def test_temperature_follows_from_the_kind_of_score() -> None:
    assert ModelConfig().temperature == 0.07
    assert ModelConfig(normalize=False).temperature == 1.0
    assert ModelConfig(temperature=0.1).temperature == 0.1
    dumped = ModelConfig(normalize=False).model_dump(mode="json")
    assert dumped["temperature"] == 1.0
    assert ModelConfig.model_validate(dumped) == ModelConfig(normalize=False)


def test_default_item_vectors_give_way_to_pretrained_and_shared_tables() -> None:
    table = {"pretrained": [{"file": "v.parquet", "use": "table"}]}
    added = {"pretrained": [{"file": "v.parquet"}]}
    shared = {"shared_tables": [["item_id", "basket"]]}
    vectors = [ModelConfig.model_validate(v).item_vectors for v in ({}, added, table, shared)]
    assert vectors == ["co-visitation", "co-visitation", "random", "random"]
    with pytest.raises(ConfigError, match="`item_vectors` and `pretrained` both initialize"):
        Recipe.from_dict({"model": {**table, "item_vectors": "co-visitation"}}, "recipe")


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_every_architecture_and_masking_takes_the_other_defaults(architecture: str) -> None:
    model_type = "llama" if architecture == "huggingface" else None
    for masking in ARCHITECTURES[architecture]:
        model = {"architecture": architecture, "masking": masking, "model_type": model_type}
        assert ModelConfig.model_validate(model).d_model == 96


def test_batch_leaves_a_small_log_enough_steps() -> None:
    sessions = (1, 764, 2_362, 6_562, 13_629, 17_794, 1_000_000)
    assert [batch_size_for(n) for n in sessions] == [8, 8, 16, 32, 64, 128, 128]
    assert TrainConfig().for_sessions(764).batch_size == 8
    assert TrainConfig(batch_size=128).for_sessions(764).batch_size == 128


def test_unknown_metric_is_refused_with_the_recipe() -> None:
    with pytest.raises(ConfigError, match="`metric` is 'hitrate@20', expected one of recall@K"):
        TrainConfig.from_dict({"metric": "hitrate@20"}, "recipe.yaml")
    assert TrainConfig.from_dict({"metric": "loss"}, "recipe.yaml").metric == "loss"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preprocess: {item: no}", "YAML reads yes and no without quotes as true and false"),
        ("preprocess: {split: {valid: 2020-01-01}}", "is 2020-01-01: expected days"),
        ("preprocess: {session_gap: 2020-01-01}", "is 2020-01-01: expected minutes"),
        ("train: {epochs: 1}\nmodel: {}\ntrain: {}", "`train` is in line 1 and again in line 3"),
        ("train: {epochs: 1, epochs: 2}", "`epochs` is in line 1 and again in line 1"),
        ("preprocess: {timestamp: {column: t, format: '%H'}}", "the year, the month and the day"),
        ("preprocess: {timestamp: {column: t, format: '%d.%m.%Y', unit: s}}", "leave out `unit`"),
        ("preprocess: {order: [step]}", "needs a `timestamp`"),
    ],
)
def test_a_value_that_yaml_reads_otherwise_is_explained(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        Recipe.load(tmp_path / "r.yaml")
    assert words in str(error.value)


BOMBS = {
    "aliases of aliases": "a0: &a0 [x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "merges of merges": "a0: &a0 {x0: 1}\n"
    + "".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}\n" for n in range(1, 40)),
    "nested lists": "a: " + "[" * 5_000,
    "nested keys": "\n".join(" " * n + "a:" for n in range(400)),
    "nested one level too deep": "a: " + "[" * 50 + "]" * 50,
    "an alias in itself": "a: &a [*a]",
    "many values": "a: [" + "1, " * 60_000 + "]",
    "a large file": "a: " + "x" * (1 << 18),
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_recipe_that_costs_the_machine_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(text, encoding="utf-8")
    begin = time.process_time()
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "levels" in message or "bytes" in message or "inside the value" in message
    assert time.process_time() - begin < 5


def test_a_setting_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a YAML value"):
        Recipe.load(None, ("model.options=" + "[" * 1_200,))


def test_aliases_of_a_usual_recipe_are_read(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(
        "model: {d_model: &width 32}\n"
        "train: &train {epochs: 3}\n"
        "preprocess: {session: s, item: i}\n"
    )
    assert Recipe.load(path).model.d_model == 32
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\n")["b"] == {"x": 1, "y": 2}
    assert parse_yaml("") is None
