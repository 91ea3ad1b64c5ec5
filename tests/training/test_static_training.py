"""Training with steps of fixed shapes, as on a GPU, and with compiled ones, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import TrainerCallback

from pipeline.data.batch import SessionBatch
from pipeline.data.directory import Data
from pipeline.data.loader import RaggedBatch, SessionLoader
from pipeline.model.build import build_model
from pipeline.model.encoders import huggingface
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training import trainer as trainer_module
from pipeline.training.batches import (
    Batches,
    even_shares,
    longest_session,
    static_batch,
    step_shapes,
)
from pipeline.training.compilation import compiled
from pipeline.training.distributed.processes import Processes
from pipeline.training.pools import Pools, StepShapes, joined
from pipeline.training.run import train, training_loader
from pipeline.training.trainer import Trainer
from tests.conftest import Shop
from tests.model.synchronization import NoSynchronization
from tests.training.small_data import small_data

SMALL: dict[str, Any] = {
    "d_model": 8, "n_head": 2, "n_layer": 1, "dropout": 0.0, "feature_dropout": 0.0
}  # fmt: skip


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("clicks"))


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200),
    mean=st.floats(1, 400),
    longest=st.sampled_from([40, 60, None]),
)
def test_a_batch_fits_its_shape(lengths: list[int], mean: float, longest: int | None) -> None:
    shape = StepShapes(mean, 2_000, longest).of(torch.tensor(lengths))
    assert shape.rows >= len(lengths)
    assert shape.width >= max(lengths)
    assert shape.most_interactions >= sum(lengths)
    assert shape.most_interactions <= shape.rows * shape.width


@pytest.mark.parametrize("batch_size", [128, 1024])
def test_steps_of_a_training_have_one_shape_for_each_width(batch_size: int) -> None:
    generator = np.random.default_rng(0)
    shapes = StepShapes(5.0 * batch_size, 16 * batch_size, 21)
    seen = set()
    positions = interactions = 0
    for _ in range(12):
        lengths = np.minimum(1 + generator.geometric(1 / 4, 16 * batch_size), 21)
        lengths = np.sort(lengths)
        sizes = even_shares(lengths.tolist(), batch_size)
        for part in np.split(lengths, np.cumsum(sizes)[:-1]):
            shape = shapes.of(torch.from_numpy(part))
            seen.add(shape)
            positions += shape.most_interactions
            interactions += int(part.sum())
    assert len(seen) == len({shape.width for shape in seen}) <= 5
    assert positions < 1.2 * interactions  # slots of clm


def static_pair(shop: Shop, model: Any, **settings: Any) -> tuple[Batches, Batches]:
    """Packed and static batches of the same training."""
    loaders = [
        SessionLoader(
            shop.data, "train", item="item_id", features=["item_id", "price", "device"],
            batch_size=512, shuffle=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    shapes = step_shapes(loaders[0], 32, longest_session(model))
    packed = Batches(loaders[0], 32, 0, **settings)
    return packed, Batches(loaders[1], 32, 0, shapes=shapes, **settings)


def small_model(shop: Shop, **settings: Any) -> Any:
    config = ModelConfig.from_dict({**SMALL, **settings}, "model")
    data = Data.open(shop.data)
    return build_model(data.schema, config, 20, TrainConfig())


def test_static_batches_hold_the_sessions_of_the_packed_ones(shop: Shop) -> None:
    packed, static = static_pair(shop, small_model(shop))
    for plain, padded in zip(packed, static, strict=True):
        number, width = plain["features"]["item_id"].shape
        assert plain["most_interactions"] is None
        assert padded["most_interactions"] >= int(plain["lengths"].sum())
        assert torch.equal(padded["lengths"][:number], plain["lengths"])
        assert not padded["lengths"][number:].any()
        for name in ("item_id", "price"):
            values = padded["features"][name]
            assert torch.equal(values[:number, :width], plain["features"][name])
            assert not values[number:].any()
            assert not values[:, width:].any()
        assert torch.equal(padded["features"]["device"][:number], plain["features"]["device"])


def test_a_share_without_sessions_has_a_shape_of_the_others(shop: Shop) -> None:
    _, static = static_pair(shop, small_model(shop), shares=2, own=range(1), num_steps=40)
    *_, last = static
    assert last["share"] == 0
    assert last["most_interactions"] is not None


def test_long_sessions_are_cut_to_the_newest_interactions() -> None:
    shapes = StepShapes(40.0, 16, 5)
    ragged = RaggedBatch({"item_id": torch.arange(3, 13)}, {}, torch.tensor([0, 8, 10]))
    batch = static_batch(ragged, torch.tensor([0, 1]), torch.tensor([8, 2]), shapes)
    assert batch.lengths[:2].tolist() == [5, 2]
    assert batch.features["item_id"][:2].tolist() == [[6, 7, 8, 9, 10], [11, 12, 0, 0, 0]]


def test_resident_sessions_come_once_a_pass_in_a_new_order(shop: Shop) -> None:
    loader = static_pair(shop, small_model(shop))[0].loader
    whole = joined(list(loader))
    pools = Pools(loader, torch.device("cpu"), seed=3)
    orders = []
    for epoch in (0, 1, 0):
        rows = []
        for pool in pools._resident_pools(epoch):
            assert torch.equal(pool.sessions.lengths[pool.rows], pool.lengths)
            assert len(pool.rows) <= loader.batch_size
            rows.append(pool.rows)
        orders.append(torch.cat(rows))
    assert torch.equal(orders[0].sort().values, torch.arange(loader.num_sessions))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    assert len(whole.sequences["item_id"]) == loader.num_interactions


def test_no_recompilation_over_a_hundred_batches(shop: Shop) -> None:
    torch._dynamo.reset()
    model = small_model(shop, architecture="sasrec").train()
    data = training_loader(shop.data, model, TrainConfig(batch_size=32), Processes())
    static = Batches(data, 32, 0, shapes=step_shapes(data, 32, longest_session(model)))
    graphs = CompileCounterWithBackend("eager")
    loss = compiled(model.loss, backend=graphs)
    widths, count = set(), 0
    while count < 100:
        for batch in static:
            assert loss(SessionBatch(**batch)).isfinite()
            widths.add(batch["features"]["item_id"].size(1))
            count += 1
    assert len(widths) > 1
    assert graphs.frame_count <= len(widths)


class NoSyncInSteps(TrainerCallback):
    """Forbids to wait for the device between the beginning and the end of a step."""

    def __init__(self) -> None:
        self.mode = NoSynchronization()
        self.steps = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.mode.__enter__()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.steps += 1

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.mode.__exit__(None, None, None)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "sampled-softmax", "num_negatives": 9, "table_optimizer": "lazy-adamw"},
        {"loss": "bpr", "num_negatives": 9, "table_optimizer": "rowwise-adamw"},
    ],
    ids=str,
)
def test_a_whole_step_does_not_wait_for_the_device(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Forward, backward, clipping, optimizer, learning rate and gradients set to zero."""
    monkeypatch.setattr(huggingface, "prefers_whole_masks", lambda _: True)
    monkeypatch.setattr(trainer_module, "take_compiler", lambda _: lambda loss: loss)
    config = TrainConfig.from_dict({"epochs": 1, "batch_size": 32, **settings}, "train")
    model = build_model(Data.open(clicks).schema, ModelConfig.from_dict(SMALL, "model"), 20, config)
    watch = NoSyncInSteps()
    Trainer(
        model,
        config,
        train_loader=training_loader(clicks, model, config, Processes()),
        valid_loader=None,
        log_path=tmp_path / "log.jsonl",
        callbacks=[watch],
    ).train()
    assert watch.steps > 1


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_is_that_of_the_packed_form(
    clicks: Path, tmp_path: Path, backend: str
) -> None:
    torch._dynamo.reset()
    model = ModelConfig.from_dict(SMALL, "model")
    facts = []
    for name, arguments in (("packed", {}), ("compiled", {"torch_compile_backend": backend})):
        config = TrainConfig(epochs=2, batch_size=32, arguments=arguments)
        facts.append(train(clicks, model, config, tmp_path / name))
    assert facts[1]["train_loss"] == pytest.approx(facts[0]["train_loss"], rel=1e-4)
    assert facts[1]["valid_ndcg@20"] == pytest.approx(facts[0]["valid_ndcg@20"], rel=1e-3)
