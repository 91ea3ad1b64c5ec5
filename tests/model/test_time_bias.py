"""HSTU's bias by the time between two interactions."""

from pathlib import Path
from typing import Any

import onnxruntime
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import Data, Recipe, Run, evaluate, export, predict, train
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ConfigError
from pipeline.exporting.onnx_model import OnnxModel, compare_onnx, write_onnx
from pipeline.exporting.torchscript import InferenceModel, prove_parity, trace
from pipeline.model import ColumnSchema, Model, Schema, SessionBatch
from pipeline.model.architectures.hstu import HSTUEncoder
from pipeline.model.build import build_model
from pipeline.recipe.model import ModelConfig
from tests.conftest import Shop
from tests.model.test_invariants import cut, largest

L, V = 8, 40
ITEM = ColumnSchema.create_categorical("item_id", V - 1, tags=["item_id"])
ELAPSED = ColumnSchema.create_continuous("elapsed", is_list=True)
BIASED: dict[str, Any] = {"architecture": "hstu", "options": {"time_bias": True}}


def make_model() -> Model:
    """Random weights, of which those of the times are large."""
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, n_head=2, item_vectors="random", **BIASED)
    model = build_model(Schema((ITEM, ELAPSED)), config, L)
    encoder_of(model).set_units(6.0, 2.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3)
            if name.endswith(".time"):
                parameter.normal_()
    return model.eval()


def encoder_of(model: Model) -> HSTUEncoder:
    return next(module for module in model.modules() if isinstance(module, HSTUEncoder))


def sessions(lengths: list[int], seed: int) -> SessionBatch:
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    inside = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    items = torch.randint(3, V, inside.shape, generator=generator) * inside
    elapsed = torch.randn(inside.shape, generator=generator) * inside
    return SessionBatch({"item_id": items, "elapsed": elapsed}, torch.tensor(lengths))


def test_buckets_are_powers_of_two_of_the_seconds_between() -> None:
    model = make_model()
    encoder = encoder_of(model)
    encoder.set_units(1.5, 2.0)
    seconds = torch.tensor([[9.0, 1.0, 2.0, 1e9, 4.0]])  # the first is before the session
    standardized = (seconds.log1p() - 1.5) / 2.0
    buckets = encoder._buckets(standardized)
    assert buckets is not None
    between = buckets[0].exp2() - 1
    # rows are the later interactions; after 30 years, four seconds are four seconds
    assert torch.allclose(between[2, :3], torch.tensor([3.0, 2.0, 0.0]), atol=1e-4)
    assert torch.allclose(between[4, 3:], torch.tensor([4.0, 0.0]), atol=1e-4)
    layer: Any = encoder.layers[0]
    with torch.no_grad():
        layer.time.copy_(torch.arange(33.0))
        bias = layer._time_bias(buckets)
    assert torch.allclose(bias[:, 0], buckets, atol=1e-5), "between the values of two buckets"


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 2 * L), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_evaluating_a_session_is_predicting_it_without_its_last_item(
    lengths: list[int], seed: int
) -> None:
    model, batch = make_model(), sessions(lengths, seed)
    with torch.no_grad():
        result = model.at_targets(batch)
        scores = model.scores(result.hidden)
        for row, length in enumerate(lengths):
            last = (result.rows == row) & result.is_last
            predicted = model(cut(batch, row, 0, length - 1, padding=3))
            assert largest(predicted, scores[last]) < 1e-5


def test_later_times_change_no_hidden_state_and_earlier_ones_do() -> None:
    model, batch = make_model(), sessions([L, L], 1)
    encoder = encoder_of(model)
    embeddings = torch.randn(2, L, 16)
    elapsed = batch.features["elapsed"]
    changed = elapsed.clone()
    changed[:, 5] += 2
    with torch.no_grad():
        before, after = (encoder(embeddings, batch.lengths, None, e) for e in (elapsed, changed))
        without = encoder(embeddings, batch.lengths, None)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(2).min() > 1e-4
    assert (before - without).abs().max() > 1e-2
    weights = model.attention_weights(batch)[0]
    assert weights.shape == (2, 2, L, L)


def test_static_form_of_a_batch_has_the_same_loss_and_gradient() -> None:
    model, batch = make_model(), sessions([3, L, 5], 2)
    gradients = []
    for form in (batch, batch._replace(most_interactions=40)):
        model.zero_grad()
        model.loss(form).backward()
        layer: Any = encoder_of(model).layers[0]
        gradients.append(layer.time.grad.clone())
    assert gradients[0].abs().max() > 1e-4
    assert torch.allclose(*gradients, atol=1e-6)


def test_exported_forms_equal_the_model(tmp_path: Path) -> None:
    served = InferenceModel(make_model(), ["item_id", "elapsed"], set())
    assert prove_parity(served, trace(served, L), L) < 1e-4
    exported = OnnxModel(served, max_k=V)
    write_onnx(served, exported, L, tmp_path / "model.onnx")
    difference = compare_onnx(served, exported, tmp_path / "model.onnx", L)
    assert difference is not None
    assert difference < 1e-4
    names = {t.name for t in onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()}
    assert names == {"item_id", "elapsed", "k"}


def test_recipe_goes_from_training_to_lists(shop: Shop, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(
        shop.recipe.model_dump(mode="json")
        | {"model": {"d_model": 16, "n_head": 2, "n_layer": 1, **BIASED}, "train": {"epochs": 1}},
        "test",
    )
    data = Data.open(shop.data)
    run = train(recipe, data, out=tmp_path / "run")
    encoder = encoder_of(Run.open(tmp_path / "run").model)
    statistics = data.fitted.standardizations["elapsed"]
    assert torch.allclose(
        encoder.units, torch.tensor([statistics.mean, statistics.deviation]).float()
    )
    layer: Any = encoder.layers[0]
    assert layer.time.abs().max() > 0, "it is learned"
    assert evaluate(run, data, baselines=False).to_dict()
    export(run, out=tmp_path / "repository")
    facts = read_manifest(tmp_path / "repository", "repository")
    assert facts["largest_score_difference"] < 1e-4
    _compare_raw_sessions(shop, run, tmp_path / "lists.parquet")


def _compare_raw_sessions(shop: Shop, run: Run, path: Path) -> None:
    """Lists of raw sessions, whose times the server's encoder reads, against those of predict."""
    predict(run, shop.data, part="test", k=5, out=path)
    offline = pd.read_parquet(path).set_index("session_id").head(40)
    log = pd.read_csv(shop.clicks)
    raw = log[log["session"].isin(offline.index)]
    assert raw["session"].nunique() == 40
    online = run.recommend(raw, k=5)
    for name, rows in online.groupby("session"):
        expected = offline.loc[name]
        assert rows["score"].to_numpy() == pytest.approx(expected["scores"], abs=1e-4)


def test_missing_feature_and_other_options_are_refused() -> None:
    config = ModelConfig(d_model=16, n_head=2, item_vectors="random", **BIASED)
    with pytest.raises(ConfigError, match="needs the feature 'elapsed'"):
        build_model(Schema((ITEM,)), config, L)
    for options in ({"time_bias": 3}, {"buckets": 3}):
        with pytest.raises(ValueError, match="`options` of hstu are `time_bias"):
            ModelConfig(architecture="hstu", options=options)
