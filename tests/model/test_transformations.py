"""Noise before features are embedded, and dropout after."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model import SessionBatch
from pipeline.model.inputs.transformations import (
    StochasticSharedEmbeddings,
    StochasticSwapNoise,
    TabularDropout,
)


def distinct(lengths: list[int]) -> SessionBatch:
    """Each real value of a feature occurs once in the batch, and in no other feature."""
    width = max(lengths)
    inside = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    count = len(lengths) * width
    numbers = torch.arange(1, count + 1).reshape(len(lengths), width)
    return SessionBatch(
        {
            "item_id": numbers * inside,
            "price": (numbers + 1000) * 1.0 * inside,
            "words": torch.stack([numbers + 2000, numbers + 3000], -1) * inside.unsqueeze(-1),
            "device": torch.arange(len(lengths)) + 4000,
            "user": torch.rand(len(lengths), 1, 2),
        },
        torch.tensor(lengths),
    )


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_swap_noise_takes_real_values_of_the_same_feature(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    batch = distinct(lengths)
    result = StochasticSwapNoise(0.5).train()(batch)
    assert torch.equal(result.lengths, batch.lengths)
    for name, before in batch.features.items():
        after = result.features[name]
        real = torch.arange(max(lengths)) < batch.lengths.unsqueeze(1)
        if name in ("device", "user"):
            real = torch.ones(before.shape[: before.dim() - 1 or 1], dtype=torch.bool)
        values = {tuple(v.flatten().tolist()) for v in before[real]}
        assert {tuple(v.flatten().tolist()) for v in after[real]} <= values
        assert not bool(after[~real].any()), "padding stays padding"


def test_swap_noise_replaces_the_share_that_was_asked_for_and_always_by_another() -> None:
    torch.manual_seed(0)
    batch = distinct([50] * 100)
    for chance in (0.0, 0.3, 1.0):
        result = StochasticSwapNoise(chance).train()(batch)
        for name in ("item_id", "price", "words"):
            changed = result.features[name] != batch.features[name]
            assert float(changed.float().mean()) == pytest.approx(chance, abs=0.03)
        both = result.features["words"][..., 1] - result.features["words"][..., 0]
        assert both.unique().tolist() == [1000], "values of an interaction move together"
    items = result.features["item_id"] - batch.features["item_id"]
    prices = result.features["price"] - batch.features["price"]
    assert not torch.equal(items.float(), prices), "each feature on its own"


def test_two_sessions_can_only_swap_with_each_other() -> None:
    torch.manual_seed(0)
    batch = distinct([1, 1])
    for _ in range(20):
        result = StochasticSwapNoise(1.0).train()(batch)
        for name, values in batch.features.items():
            assert torch.equal(result.features[name], values.flip(0))


def test_shared_embeddings_noise_draws_known_indices_evenly() -> None:
    torch.manual_seed(0)
    noise = StochasticSharedEmbeddings(0.5)
    noise.build({"item_id": 7, "none": 3})
    ids = torch.tensor([1, 2, 0, 5]).repeat(2500, 4)
    batch = SessionBatch({"item_id": ids, "none": ids.clamp(max=2)}, torch.full((2500,), 16))
    result = noise.train()(batch)
    assert torch.equal(result.features["none"], batch.features["none"]), "it has nothing to draw"
    after = result.features["item_id"]
    assert not bool(after[ids == 0].any())
    assert float((after[ids == 1] != 1).float().mean()) == pytest.approx(0.5, abs=0.02)
    shares = after[(ids == 1) & (after != 1)].bincount().float() / int((after[ids == 1] != 1).sum())
    assert shares.tolist() == pytest.approx([0, 0, 0, 0.25, 0.25, 0.25, 0.25], abs=0.02)


def test_dropout_leaves_out_numbers_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    result = TabularDropout(0.25).train()({"a": torch.ones(100, 10, 10)})["a"]
    assert result.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float((result == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
