"""Training with steps of fixed shapes, as on a GPU, and with compiled ones, on the CPU."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
    set_shares,
    static_batch,
    step_shapes,
)
from pipeline.training.compilation import Loss, compiled
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


@pytest.mark.parametrize("masking", ["clm", "mlm"])
def test_shares_of_a_step_are_those_of_its_targets(shop: Shop, masking: str) -> None:
    model = small_model(shop, architecture="xlnet", masking=masking)
    _, static = static_pair(shop, model, shares=3)
    samples = list(islice(static, 3))
    empty = {**samples[0], "share": torch.zeros(())}
    with NoSynchronization():
        set_shares(model, [*samples, empty], num_processes=2)
    # clm does not predict the first interaction of a session
    targets = [
        int(sample["lengths"].sum()) - (masking == "clm") * int((sample["lengths"] > 0).sum())
        for sample in samples
    ]
    assert empty["share"] == 0
    shares = [float(sample["share"]) for sample in samples]
    assert shares == pytest.approx([2 * number / sum(targets) for number in targets])


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


OPTIMIZERS: list[dict[str, Any]] = [
    {},
    {"loss": "sampled-softmax", "num_negatives": 9, "table_optimizer": "lazy-adamw"},
    {"loss": "bpr", "num_negatives": 9, "table_optimizer": "rowwise-adamw"},
]
ACCUMULATED: dict[str, Any] = {"gradient_accumulation_steps": 2}


def trainer(
    data: Path,
    out: Path,
    settings: dict[str, Any],
    callbacks: list[TrainerCallback] | None = None,
    **model: str,
) -> Trainer:
    config = TrainConfig.from_dict({"epochs": 1, "batch_size": 32, **settings}, "train")
    model_config = ModelConfig.from_dict({**SMALL, **model}, "model")
    built = build_model(Data.open(data).schema, model_config, 20, config)
    return Trainer(
        built,
        config,
        train_loader=training_loader(data, built, config, Processes()),
        valid_loader=None,
        log_path=out / "log.jsonl",
        callbacks=callbacks,
    )


@pytest.mark.parametrize("settings", [*OPTIMIZERS, ACCUMULATED], ids=str)
def test_a_whole_step_does_not_wait_for_the_device(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Forward, backward, clipping, optimizer, learning rate and gradients set to zero."""
    monkeypatch.setattr(huggingface, "prefers_whole_masks", lambda _: True)
    monkeypatch.setattr(trainer_module, "prefers_static_steps", lambda _: True)
    watch = NoSyncInSteps()
    try:
        trainer(clicks, tmp_path, settings, [watch]).train()
    except RuntimeError:
        watch.on_step_end()  # or the mode would stay for other tests
        raise
    assert watch.steps > 1


class WatchedGraphs:
    """Backend of `torch.compile` that runs graphs as they are and forbids to wait for the device.

    `shapes` are those of the batches, `graphs` the number of graphs.
    """

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            with NoSynchronization():
                return graph(*arguments)

        return run

    def compiler(self, step: Loss) -> Loss:
        graph = compiled(step, backend=self)

        def call(batch: SessionBatch) -> torch.Tensor:
            assert batch.most_interactions is not None
            self.shapes.add((*batch.features["item_id"].shape, batch.most_interactions))
            return graph(batch)

        return call


# Each takes seconds, to trace a step of each shape.
STEPS = [
    pytest.param(
        *body.split("-"), settings, marks=() if fast else pytest.mark.slow, id=f"{body}-{number}"
    )
    for body, numbers, fast in [
        ("sasrec-clm", (0, 1), True),
        ("gpt2-clm", (0,), True),
        ("hstu-clm", (0,), True),
        ("gru-clm", (0,), True),
        ("sasrec-clm", (2,), False),
        ("xlnet-clm", (0,), False),
        ("xlnet-mlm", (0,), False),
        ("xlnet-plm", (0,), False),
        ("xlnet-rtd", (0,), False),
        ("bert-clm", (0,), False),
        ("bert-mlm", (0,), False),
        ("bert-rtd", (0,), False),
    ]
    for number, settings in enumerate(OPTIMIZERS)
    if number in numbers
]


@pytest.mark.parametrize(("architecture", "masking", "settings"), STEPS)
def test_a_whole_step_is_one_graph_while_the_learning_rate_changes(
    clicks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    masking: str,
    settings: dict[str, Any],
) -> None:
    """Forward, loss, backward, clipping and optimizer, in 100 steps of mixed lengths."""
    torch._dynamo.reset()
    monkeypatch.setattr(huggingface, "prefers_whole_masks", lambda _: True)
    watched = WatchedGraphs()
    monkeypatch.setattr(trainer_module, "take_compiler", lambda _: watched.compiler)
    arguments = {"max_steps": 100, "logging_steps": 1, "lr_scheduler_type": "cosine"}
    settings = {**settings, "batch_size": 48, "epochs": 50, "arguments": arguments}
    trainer(clicks, tmp_path, settings, architecture=architecture, masking=masking).train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert len(set(rates)) == 100
    assert len({width for _, width, _ in watched.shapes}) > 1
    assert watched.graphs == len(watched.shapes)


@pytest.mark.parametrize(
    ("backend", "settings", "bf16"),
    [
        ("eager", {}, False),
        pytest.param("eager", {}, True, marks=pytest.mark.slow),
        pytest.param("eager", ACCUMULATED, False, marks=pytest.mark.slow),
        pytest.param("inductor", {}, False, marks=pytest.mark.slow),
    ],
    ids=["eager", "bf16", "accumulated", "inductor"],
)
def test_compiled_training_is_that_of_the_packed_form(
    clicks: Path, tmp_path: Path, backend: str, settings: dict[str, Any], bf16: bool
) -> None:
    torch._dynamo.reset()
    model = ModelConfig.from_dict(SMALL, "model")
    facts = []
    for name, arguments in (("packed", {}), ("compiled", {"torch_compile_backend": backend})):
        arguments = {**arguments, "bf16": bf16, "use_cpu": True}
        config = TrainConfig(epochs=2, batch_size=32, arguments=arguments, **settings)
        facts.append(train(clicks, model, config, tmp_path / name))
    tolerance = 1e-2 if bf16 else 1e-4
    assert facts[1]["train_loss"] == pytest.approx(facts[0]["train_loss"], rel=tolerance)
    assert facts[1]["valid_ndcg@20"] == pytest.approx(facts[0]["valid_ndcg@20"], rel=10 * tolerance)
