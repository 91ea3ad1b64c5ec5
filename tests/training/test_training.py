"""The loader, the Trainer and the run."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.loader import SessionLoader
from pipeline.evaluation.run import evaluate
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.split import Split
from pipeline.recipe.train import TrainConfig
from pipeline.training.batches import Batches, even_shares
from pipeline.training.run import train
from tests.conftest import Shop

FEATURES = ["item_id", "price", "device"]


def make_loader(shop: Shop, part: str, batch_size: int, shuffle: bool = False) -> SessionLoader:
    return SessionLoader(
        shop.data, part, item="item_id", features=FEATURES, batch_size=batch_size, shuffle=shuffle
    )


def test_loader_yields_the_sessions_of_the_files(shop: Shop) -> None:
    table = pq.read_table(shop.data / "sessions" / "valid")
    items, prices, devices = [], [], []
    for batch in make_loader(shop, "valid", 50):
        parts = zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)
        for first, last in parts:
            items.append(batch.sequences["item_id"][first:last].tolist())
            prices.append(batch.sequences["price"][first:last].tolist())
        devices += batch.sessions["device"].tolist()
    assert items == table["item_id"].to_pylist()
    assert prices == table["price"].to_pylist()
    assert devices == table["device"].to_pylist()


def test_epoch_has_every_session_once_in_a_new_order(shop: Shop) -> None:
    batches = Batches(make_loader(shop, "train", 64 * 4, shuffle=True), 64, seed=0)
    passes = []
    for _ in range(2):
        rows = []
        count = 0
        for batch in batches:
            count += 1
            ids, lengths = batch["features"]["item_id"], batch["lengths"]
            assert ids.shape[1] == int(lengths.max()), "no column of padding alone"
            rows += [tuple(row[:n].tolist()) for row, n in zip(ids, lengths, strict=True)]
        assert count == len(batches)
        passes.append(rows)
    stored = pq.read_table(shop.data / "sessions" / "train")["item_id"].to_pylist()
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(map(tuple, stored))
    assert passes[0] != passes[1]


def test_batch_windows_are_padded_parts_of_sessions(shop: Shop) -> None:
    batch = next(iter(make_loader(shop, "valid", 50)))
    lengths = batch.lengths
    rows = torch.tensor([3, 1, 3])
    starts = torch.tensor([0, 0, 1])
    stops = torch.stack([lengths[3], torch.tensor(1), lengths[3]])
    window = batch.window(rows, starts, stops)
    assert window.lengths.tolist() == (stops - starts).tolist()
    first = int(batch.offsets[3])
    items = batch.sequences["item_id"]
    length = int(lengths[3])
    assert window.features["item_id"][0, :length].tolist() == items[first : first + length].tolist()
    assert window.features["item_id"][2, : length - 1].tolist() == (
        items[first + 1 : first + length].tolist()
    )
    assert window.features["item_id"][1, 1:].sum() == 0
    assert window.features["device"].tolist() == batch.sessions["device"][rows].tolist()


def test_run_learns_and_beats_popularity(shop: Shop) -> None:
    facts = read_manifest(shop.run, "run")
    lines = [json.loads(line) for line in (shop.run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    best = max(line["eval_ndcg@20"] for line in lines if "eval_ndcg@20" in line)
    assert facts["valid_ndcg@20"] == best
    results = evaluate(shop.run, shop.data, cutoffs=(20,)).results
    assert results["run"]["recall@20"] > results["popularity"]["recall@20"]
    # popularity shows everybody the same 20 of the 200 items
    assert results["popularity"]["coverage@20"] == 0.1
    assert results["popularity"]["popularity_bias@20"] > results["run"]["popularity_bias@20"] > 0
    assert set(results) == {
        "run",
        *("popularity", "recent-popularity", "co-visitation", "sequential-rules", "session-knn"),
    }


def test_run_has_the_weights_of_its_best_epoch(shop: Shop) -> None:
    facts = read_manifest(shop.run, "run")
    again = evaluate(shop.run, shop.data, part="valid", cutoffs=(20,), baselines=False)
    assert again.results["run"]["ndcg@20"] == pytest.approx(facts["valid_ndcg@20"], abs=1e-6)


def test_seed_determines_the_weights(shop: Shop, tmp_path: Path) -> None:
    model = ModelConfig(d_model=8, n_head=2, n_layer=1)
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(shop.data, model, TrainConfig(epochs=1, seed=seed), tmp_path / name)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize(("architecture", "masking"), [("xlnet", "mlm"), ("xlnet", "clm")])
def test_xlnet_trains_and_evaluates(
    shop: Shop, tmp_path: Path, architecture: str, masking: str
) -> None:
    model = ModelConfig(architecture=architecture, masking=masking, d_model=16, n_head=2, n_layer=1)
    train(shop.data, model, TrainConfig(epochs=1), tmp_path / "run")
    for positions in ("all", "last"):
        result = evaluate(
            tmp_path / "run",
            shop.data,
            positions=positions,
            baselines=False,  # type: ignore[arg-type]
        )
        assert 0 <= result.results["run"]["recall@20"] <= 1
        assert result.targets > 0


def test_patience_stops_training(shop: Shop, tmp_path: Path) -> None:
    config = TrainConfig(epochs=6, patience=1, learning_rate=1e-9, warmup_ratio=0)
    facts = train(shop.data, ModelConfig(d_model=8, n_head=2, n_layer=1), config, tmp_path / "run")
    assert facts["epochs"] < 6


def test_evaluation_refuses_another_catalogue(shop: Shop, tmp_path: Path) -> None:
    recipe = shop.recipe.preprocess.model_copy(update={"min_item_count": 10})
    preprocess(recipe, [shop.clicks], [], tmp_path / "other")
    with pytest.raises(ArtifactError, match="was trained on another catalogue"):
        evaluate(shop.run, tmp_path / "other")


def test_missing_part_is_named(shop: Shop, tmp_path: Path) -> None:
    recipe = shop.recipe.preprocess.model_copy(update={"split": Split()})
    preprocess(recipe, [shop.clicks], [], tmp_path / "whole")
    config = ModelConfig(d_model=8, n_head=2, n_layer=1)
    train(tmp_path / "whole", config, TrainConfig(epochs=1), tmp_path / "run")
    with pytest.raises(ArtifactError, match="has no test sessions, it has: train"):
        evaluate(tmp_path / "run", tmp_path / "whole")


def test_evaluation_refuses_other_features_of_the_same_items(shop: Shop, tmp_path: Path) -> None:
    features = tuple(
        feature.model_copy(update={"column": "action"}) if feature.name == "category" else feature
        for feature in shop.recipe.preprocess.features
    )
    recipe = shop.recipe.preprocess.model_copy(update={"features": features})
    preprocess(recipe, [shop.clicks], [], tmp_path / "other")
    with pytest.raises(ArtifactError, match="was trained on other features"):
        evaluate(shop.run, tmp_path / "other")


def test_diverged_training_leaves_no_run(shop: Shop, tmp_path: Path) -> None:
    config = ModelConfig(d_model=8, n_head=2, n_layer=1, temperature=1e-40)
    with pytest.raises(ConfigError, match="Training diverged: weights are not finite"):
        train(shop.data, config, TrainConfig(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_sessions_without_targets_are_skipped(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [f"{s},{i},{100 * s + i}" for s in range(8) for i in range(3)] + ["99,1,9999"]
    log.write_text("session_id,item_id,t\n" + "\n".join(rows) + "\n")
    recipe = Preprocess(timestamp={"column": "t", "unit": "s"}, split={"valid": 0.1})  # type: ignore[arg-type]
    preprocess(recipe, [log], [], tmp_path / "data")
    config = ModelConfig(d_model=8, n_head=2, n_layer=1)
    facts = train(tmp_path / "data", config, TrainConfig(epochs=1), tmp_path / "run")
    assert "best_epoch" not in facts


def test_feature_can_be_named_type(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [f"{s},{i},{i % 2}" for s in range(8) for i in range(3)]
    log.write_text("session_id,item_id,type\n" + "\n".join(rows) + "\n")
    recipe = Preprocess(features=({"name": "type", "kind": "categorical"},))  # type: ignore[arg-type]
    preprocess(recipe, [log], [], tmp_path / "data")
    config = ModelConfig(d_model=8, n_head=2, n_layer=1)
    train(tmp_path / "data", config, TrainConfig(epochs=1), tmp_path / "run")


def test_session_feature_does_not_leak_its_target(tmp_path: Path) -> None:
    """The item itself as a feature of the session: at best it repeats the first item."""
    log = tmp_path / "log.csv"
    random = np.random.default_rng(0)
    rows = [f"{s},{random.integers(9)},{10 * s + i}" for s in range(300) for i in range(3)]
    log.write_text("session_id,item_id,t\n" + "\n".join(rows) + "\n")
    recipe = Preprocess(
        timestamp={"column": "t", "unit": "s"},  # type: ignore[arg-type]
        features=({"name": "g", "column": "item_id", "kind": "categorical", "of": "session"},),  # type: ignore[arg-type]
        split={"test": 0.3},  # type: ignore[arg-type]
    )
    preprocess(recipe, [log], [], tmp_path / "data")
    config = ModelConfig(d_model=16, n_head=2, n_layer=1)
    train(tmp_path / "data", config, TrainConfig(epochs=15, learning_rate=0.01), tmp_path / "run")
    result = evaluate(tmp_path / "run", tmp_path / "data", positions="last", cutoffs=(1,))
    assert result.results["run"]["recall@1"] < 0.35  # 1 in 9 is chance, the leak gave .92


@pytest.mark.gpu
def test_training_uses_an_available_gpu(shop: Shop, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    facts = train(
        shop.data,
        ModelConfig(d_model=8, n_head=2, n_layer=1),
        TrainConfig(epochs=1),
        tmp_path / "run",
    )
    assert facts["device"].startswith("cuda")
    result = evaluate(tmp_path / "run", shop.data, baselines=False)
    assert np.isfinite(result.results["run"]["recall@20"])


@given(weights=st.lists(st.integers(1, 60), min_size=1, max_size=300), mean=st.integers(1, 50))
def test_even_shares_are_nonempty_and_cover_all_sessions(weights: list[int], mean: int) -> None:
    weights.sort()
    sizes = even_shares(weights, mean)
    assert sum(sizes) == len(weights)
    assert len(sizes) == -(-len(weights) // mean)
    assert min(sizes) >= 1


def test_even_shares_balance_interactions() -> None:
    assert even_shares([2] * 8 + [8] * 2, 5) == [8, 2]
