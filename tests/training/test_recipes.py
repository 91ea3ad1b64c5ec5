"""Settings of the model and of training, from a recipe through training, evaluation and export."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.config import Config
from pipeline.core.errors import ConfigError, DataError, InputWarning
from pipeline.data.batch import SessionBatch
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema
from pipeline.data.sessions import read_interactions
from pipeline.evaluation.recommender import Recommender
from pipeline.evaluation.run import evaluate
from pipeline.exporting.run import export
from pipeline.model.build import build_model
from pipeline.model.model_files import load_model
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.training.run import train
from pipeline.training.training_statistics import training_statistics
from tests.conftest import ROOT, Shop

SMALL = {"d_model": 16, "n_head": 2, "n_layer": 1}


def recipe(model: dict[str, Any], **training: Any) -> Recipe:
    values = {
        "model": {**SMALL, **model},
        "train": {"epochs": 1, "learning_rate": 0.003, **training},
    }
    return Recipe.from_dict(values, "recipe")


def trained(shop: Shop, directory: Path, chosen: Recipe) -> Path:
    train(shop.data, chosen.model, chosen.train, directory / "run")
    return directory / "run"


def vectors_of(shop: Shop, path: Path, width: int = 6) -> np.ndarray:
    """A file of vectors for all items of the shop but the last."""
    ids = Fitted.read(shop.data).item.values[:-1]
    matrix = np.random.default_rng(0).normal(size=(len(ids), width)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), width)
    pq.write_table(pa.table({"sku": ids, "vector": vectors}), path)
    return matrix


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"architecture": "sasrec"}, {"loss": "gbce", "negatives": "uniform"}),
        ({"architecture": "gru"}, {"loss": "bpr-max", "negatives": "popularity"}),
        ({"architecture": "hstu"}, {"loss": "sampled-softmax", "negatives": "in-batch"}),
        (
            {
                "architecture": "core",
                "normalize": True,
                "temperature": 0.07,
                "item_dropout": 0.1,
                "item_vectors": "co-visitation",
            },
            {},
        ),
        ({"architecture": "bert", "masking": "mlm", "feature_layer_norm": True}, {}),
        ({"architecture": "electra", "masking": "rtd"}, {}),
        ({"architecture": "xlnet", "masking": "plm", "swap_noise": 0.1}, {}),
        (
            {
                "architecture": "huggingface",
                "model_type": "llama",
                "options": {"rms_norm_eps": 1e-5},
            },
            {},
        ),
        (
            {
                "aggregation": "element-wise-sum-item-multi",
                "continuous_projection": 16,
                "feature_dropout": 0.1,
                "shared_embedding_noise": 0.01,
            },
            {"label_smoothing": 0.1},
        ),
        (
            {"shared_tables": [["category", "action"]]},
            {"weights": {"feature": "device", "values": {"phone": 2.0}}},
        ),
        (
            {
                "mlp": [24],
                "towers": [{"architecture": "gru"}, {"architecture": "sasrec", "n_head": 2}],
                "task_mlp": [20],
                "continuous_projection": [12, 8],
                "embedding_deviation": 0.02,
            },
            {},
        ),
        ({"continuous_soft_embeddings": True, "infer_embedding_sizes": True, "item_dim": 8}, {}),
        (
            {
                "architecture": "sasrec",
                "members": [{}, {"architecture": "gru", "d_model": 12, "dropout": 0.1}],
                "targets": [{"feature": "device", "kind": "binary", "positive": ["phone"]}],
            },
            {
                "half_life": "1d",
                "weights": {"feature": "action", "values": {"cart": 2.0}},
                "metric": "loss",
            },
        ),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values() if isinstance(v, str)) or None,
)
def test_recipe_trains_evaluates_and_exports(
    shop: Shop, tmp_path: Path, model: dict[str, Any], training: dict[str, Any]
) -> None:
    run = trained(shop, tmp_path, recipe(model, **training))
    result = evaluate(run, shop.data, baselines=False, cutoffs=(20,))
    assert 0 < result.results["run"]["recall@20"] <= 1
    assert export(run, tmp_path / "repository").largest_score_difference < 1e-4


def test_vectors_of_a_file_are_a_feature_and_are_saved(shop: Shop, tmp_path: Path) -> None:
    matrix = vectors_of(shop, tmp_path / "vectors.parquet")
    vectors = {"file": str(tmp_path / "vectors.parquet"), "output_dim": 4, "layer_norm": True}
    run = trained(shop, tmp_path, recipe({"pretrained": [vectors]}))
    (tmp_path / "vectors.parquet").unlink()  # a run does without it
    model = load_model(run)
    table = model.inputs.pretrained_table("item_id").weight
    assert np.allclose(table[3:-1].detach(), matrix), "they were not to be trained"
    assert torch.allclose(table[-1], table[3:-1].mean(0), atol=1e-6), "the mean for one not there"
    assert not bool(table[:3].any())
    assert len(next(iter(Recommender.open(run).recommend(shop.data, "test", 5))).items) > 0
    assert export(run, tmp_path / "repository").largest_score_difference < 1e-4


@pytest.mark.parametrize("trainable", [True, False])
def test_vectors_of_a_file_initialize_the_item_table(
    shop: Shop, tmp_path: Path, trainable: bool
) -> None:
    matrix = vectors_of(shop, tmp_path / "vectors.parquet", 16)
    vectors = {"file": str(tmp_path / "vectors.parquet"), "use": "table", "trainable": trainable}
    table = load_model(trained(shop, tmp_path, recipe({"pretrained": [vectors]}))).inputs.item_table
    kept = np.allclose(table.weight[3:-1].detach(), matrix)
    assert kept != trainable


def test_second_target_is_predicted_and_not_an_input(shop: Shop, tmp_path: Path) -> None:
    chosen = recipe(
        {
            "targets": [
                {"feature": "action", "kind": "binary", "positive": ["cart"], "weight": 0.5},
                {"feature": "device", "kind": "binary", "positive": ["phone"]},
                {"feature": "price", "kind": "regression", "weight": 0.1},
            ]
        }
    )
    run = trained(shop, tmp_path, chosen)
    model = load_model(run)
    assert "item_id" in model.inputs.feature_names
    assert not {"action", "device", "price"} & set(model.inputs.feature_names)
    assert len(model.head.all_tasks) == 4
    assert model.head.task_weights == [1.0, 0.5, 1.0, 0.1]
    export(run, tmp_path / "repository")
    from pipeline.exporting.triton_config import read_config

    asked = {tensor.name for tensor in read_config(tmp_path / "repository" / "recommender").input}
    assert "category" in asked
    assert not {"action", "device", "price"} & asked


def test_labels_and_weights_are_tables_by_index(shop: Shop) -> None:
    fitted = Fitted.read(shop.data)
    chosen = recipe(
        {"targets": [{"feature": "action", "kind": "binary", "positive": ["cart"]}]},
        weights={"feature": "category", "values": {"category-01": 3}, "default": 0.5},
        loss="gbce",
        negatives="popularity",
    )
    statistics = training_statistics(shop.data, fitted, chosen.model, chosen.train)
    actions = fitted.vocabularies["action"].values.to_pylist()
    labels = statistics.labels["action"]
    assert isinstance(labels, torch.Tensor)
    assert labels[[0, 2]].tolist() == [0, 0]
    assert math.isnan(labels[1]), "a missing value has no label"
    assert labels[3:].tolist() == [float(a == "cart") for a in actions]
    categories = fitted.vocabularies["category"].values.to_pylist()
    assert statistics.weights is not None
    assert statistics.weights[3:].tolist() == [3 if c == "category-01" else 0.5 for c in categories]
    assert statistics.item_counts is not None
    items = read_interactions(shop.data, "train").values
    assert int(statistics.item_counts.sum()) == (items >= FIRST_ITEM).sum() > 0


def test_numbers_that_a_target_lacks_are_counted(tmp_path: Path) -> None:
    rows = [f"{n % 20},{n % 5},{n},{'' if n % 4 == 0 else n % 7}" for n in range(200)]
    (tmp_path / "log.csv").write_text("s,i,t,price\n" + "\n".join(rows), encoding="utf-8")
    values = {
        "preprocess": {
            "session": "s",
            "item": "i",
            "timestamp": {"column": "t", "unit": "s", "earliest": "1970-01-01"},
            "features": [{"name": "price", "kind": "continuous"}],
        },
        "model": {"targets": [{"feature": "price", "kind": "regression"}]},
    }
    chosen = Recipe.from_dict(values, "test")
    preprocess(chosen.preprocess, [tmp_path / "log.csv"], [], tmp_path / "data")
    fitted = Fitted.read(tmp_path / "data")
    with pytest.warns(InputWarning, match="'price' is missing, or exactly its mean, in 50 of 200"):
        training_statistics(tmp_path / "data", fitted, chosen.model, chosen.train)


def test_target_weight_halves_with_every_half_life(shop: Shop) -> None:
    chosen = recipe(
        {}, half_life="6h", weights={"feature": "action", "values": {"cart": 3.0}, "default": 1.0}
    )
    fitted = Fitted.read(shop.data)
    statistics = training_statistics(shop.data, fitted, chosen.model, chosen.train)
    assert statistics.newest is not None
    schema = Schema.from_json(shop.data / "schema.pbtxt")
    model = build_model(schema, chosen.model, 10, chosen.train, statistics)
    weigh = model.head.next_item_task().weights
    assert weigh is not None
    assert {"timestamp", "action"} <= {*model.training_columns}
    hours = torch.tensor([[0.0, 6.0, 3.0, 24.0]])
    cart = fitted.vocabularies["action"].values.to_pylist().index("cart") + 3
    batch = SessionBatch(
        {
            "timestamp": statistics.newest - (hours * 3.6e9).to(torch.int64),
            "action": torch.tensor([[0, cart, 0, cart]]),
        },
        torch.tensor([4]),
    )
    expected = torch.tensor([[1.0, 3 * 0.5, 0.5**0.5, 3 * 0.5**4]])
    assert torch.allclose(weigh(batch), expected.double(), atol=1e-6)


def test_half_life_without_timestamps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("u1 a b c d\nu2 b c a d\n")
    settings = Preprocess.from_dict({"format": "sequences"}, "recipe")
    preprocess(settings, [tmp_path / "log.txt"], [], tmp_path / "data")
    chosen = recipe({}, half_life="2d")
    with pytest.raises(ConfigError, match="has no `timestamp`"):
        train(tmp_path / "data", chosen.model, chosen.train, tmp_path / "run")


def test_weights_change_the_scores(shop: Shop, tmp_path: Path) -> None:
    weighted = {"feature": "action", "values": {"view": 0.0}, "default": 1.0}
    plain, other = tmp_path / "plain", tmp_path / "weighted"
    one = load_model(trained(shop, plain, recipe({})))
    two = load_model(trained(shop, other, recipe({}, weights=weighted)))
    assert not torch.equal(one.inputs.item_table.weight, two.inputs.item_table.weight)


@pytest.mark.parametrize(
    ("model", "training", "words"),
    [
        ({"pretrained": [{"file": "nowhere.parquet"}]}, {}, "nowhere.parquet"),
        (
            {"pretrained": [{"file": "x.parquet", "feature": "price"}]},
            {},
            "not a categorical feature",
        ),
        ({"embedding_dims": {"brnad": 3}}, {}, "no column 'brnad'"),
        (
            {"targets": [{"feature": "actoin", "kind": "regression"}]},
            {},
            "no column 'actoin' of numbers",
        ),
        ({"targets": [{"feature": "action", "kind": "regression"}]}, {}, "is categorical"),
        (
            {"targets": [{"feature": "action", "kind": "binary", "positive": ["buy"]}]},
            {},
            "never is 'buy' in the training data. It is: view",
        ),
        ({}, {"weights": {"feature": "price", "values": {"3": 2}}}, "not a categorical feature"),
        ({}, {"weights": {"feature": "action", "values": {"vew": 2}}}, "never is 'vew'"),
        (
            {},
            {"weights": {"feature": "action", "values": {"view": 0}, "default": 0}},
            "every value of 'action' in training has weight 0",
        ),
        ({"shared_tables": [["item_id", "price"]]}, {}, "price"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_by_name(
    shop: Shop, tmp_path: Path, model: dict[str, Any], training: dict[str, Any], words: str
) -> None:
    chosen = recipe(model, **training)
    with pytest.raises((ConfigError, DataError)) as error:
        train(shop.data, chosen.model, chosen.train, tmp_path / "run")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"architecture": "grpt2"}, "did you mean `gpt2`"),
        ({"architecture": "huggingface"}, "it needs one"),
        ({"architecture": "gru", "options": {"a": 1}}, "not for gru"),
        ({"masking": "plm"}, "sasrec works with clm, not with plm, which works with xlnet"),
        (
            {"masking": "mlm", "architecture": "bert", "train_on_last_item_seq_only": True},
            "for clm",
        ),
        ({"targets": [{"feature": "x", "kind": "binary"}]}, "needs `positive`"),
        ({"targets": [{"feature": "item_id", "kind": "regression"}]}, "next item's"),
        ({"pretrained": [{"file": "x", "use": "table", "output_dim": 3}]}, "are for `use: input`"),
        ({"towers": [{"architecture": "bert"}, {"architecture": "gr"}]}, "no architecture 'gr'"),
        (
            {"towers": [{"architecture": "longformer"}]},
            "longformer works with mlm, rtd, not with clm",
        ),
        ({"mlp": [0]}, "1 or more"),
        ({"pretrained": [{"file": "a"}, {"file": "b"}]}, "twice for the same use"),
        ({"item_dim": 3, "embedding_dims": {"item_id": 4}}, "keep one"),
        ({"train_loss": 1}, "unknown key `model.train_loss`"),
    ],
)
def test_invalid_settings_are_refused_in_the_recipe(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        Recipe.from_dict({"model": section}, "recipe.yaml")
    assert words in str(error.value)


def test_unknown_loss_is_refused_in_the_recipe() -> None:
    for values, words in (
        ({"loss": "bpr-mx"}, "did you mean `bpr-max`"),
        ({"half_life": "2 days"}, "`half_life` is '2 days', expected days"),
        ({"loss": "bpr", "label_smoothing": 0.1}, "is for cross-entropy"),
        ({"weights": {"feature": "a", "values": {"b": -1}}}, "0 or more"),
        ({"weights": {"feature": "a", "values": {}}}, "train.weights.values"),
    ):
        with pytest.raises(ConfigError) as error:
            Recipe.from_dict({"train": values}, "recipe.yaml")
        assert words in str(error.value)


def test_every_setting_has_a_docstring() -> None:
    for section in (Recipe, *(f.annotation for f in Recipe.model_fields.values())):
        assert issubclass(section, Config)  # type: ignore[arg-type]
        if section is not Recipe:
            missing = [n for n, f in section.model_fields.items() if not f.description]  # type: ignore[union-attr]
            assert missing == []


def test_schema_is_readable_by_merlin(shop: Shop) -> None:
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    import pipeline.core.merlin  # noqa: F401

    text = (shop.data / "schema.pbtxt").read_text()
    theirs = TensorflowMetadata.from_proto_text(text).to_merlin_schema()
    ours = Schema.from_json(shop.data / "schema.pbtxt")
    same = Schema.from_merlin(theirs)
    assert same.column_names == ours.column_names
    for one, two in zip(same, ours, strict=True):
        assert (one.num_rows, one.is_list, one.tags >= {"categorical"}) == (
            two.num_rows,
            two.is_list,
            two.tags >= {"categorical"},
        )
    assert ROOT.is_dir()
