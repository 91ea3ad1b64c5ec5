"""Ranks in chunks of the catalogue, against a table of all scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.evaluation import ranking
from pipeline.evaluation.ranking import Seen, rank_in_catalogue


def dense_ranks(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N, V) scores, (N,) targets -> (N,) ranks: 1 + other items whose score is not below.

    A negative target has rank V + 1.
    """
    target_scores = scores.gather(1, targets.clamp(min=0).unsqueeze(1))  # (N, 1)
    return torch.where(targets >= 0, (~(scores < target_scores)).sum(1), scores.size(1) + 1)


def twins(num_items: int, width: int, seed: int) -> torch.Tensor:
    """(V, E) of which about half are copies of others: their scores are ties."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(num_items, width, generator=generator)
    copies = torch.randint(num_items, (num_items,), generator=generator)
    return torch.where(torch.rand(num_items, 1, generator=generator) < 0.5, items[copies], items)


@settings(max_examples=40, deadline=None)
@given(
    num_items=st.integers(1, 90),
    num_targets=st.integers(0, 40),
    chunk=st.integers(1, 32),
    scores=st.sampled_from([1, 64, 1 << 19]),
    list_length=st.integers(0, 95),
    seed=st.integers(0, 10_000),
    on_cpu=st.booleans(),
)
def test_ranks_and_lists_are_those_of_a_table_of_all_scores(
    num_items: int,
    num_targets: int,
    chunk: int,
    scores: int,
    list_length: int,
    seed: int,
    on_cpu: bool,
) -> None:
    items = twins(num_items, 8, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    # whole numbers: sums are the same in any order, so that ties are ties in both
    items, queries = items.mul(4).round(), torch.randn(num_targets, 8, generator=generator)
    queries = queries.mul(4).round()
    targets = torch.randint(-1, num_items, (num_targets,), generator=generator)
    table = queries @ items.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ranking._WIDTHS, "cpu", chunk)
        patch.setitem(ranking._SCORES, "cpu", scores)
        patch.setattr(ranking, "_on_cpu", lambda _: on_cpu)
        ranked = rank_in_catalogue(queries, items, targets, list_length)
    assert torch.equal(ranked.ranks, dense_ranks(table, targets))
    longest = min(list_length, num_items)
    assert ranked.best.shape == (num_targets, longest)
    assert torch.equal(table.gather(1, ranked.best), table.topk(longest).values)
    assert all(len(set(row)) == longest for row in ranked.best.tolist())


@settings(max_examples=40, deadline=None)
@given(
    num_items=st.integers(1, 60),
    num_targets=st.integers(0, 30),
    chunk=st.integers(1, 32),
    scores=st.sampled_from([1, 64, 1 << 19]),
    list_length=st.integers(0, 65),
    seed=st.integers(0, 10_000),
    on_cpu=st.booleans(),
)
def test_seen_items_are_behind_every_target(
    num_items: int,
    num_targets: int,
    chunk: int,
    scores: int,
    list_length: int,
    seed: int,
    on_cpu: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    items = twins(num_items, 8, seed).mul(4).round()
    queries = torch.randn(num_targets, 8, generator=generator).mul(4).round()
    targets = torch.randint(-1, num_items, (num_targets,), generator=generator)
    stretch = torch.randint(-2, num_items, (40,), generator=generator)
    starts = torch.randint(0, 40, (num_targets,), generator=generator)
    stops = (starts + torch.randint(0, 20, (num_targets,), generator=generator)).clamp(max=40)
    table = queries @ items.T
    for row, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        for item in stretch[start:stop].tolist():
            if item >= 0:
                table[row, item] = float("-inf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ranking._WIDTHS, "cpu", chunk)
        patch.setitem(ranking._SCORES, "cpu", scores)
        patch.setattr(ranking, "_on_cpu", lambda _: on_cpu)
        seen = Seen(stretch, starts, stops)
        ranked = rank_in_catalogue(queries, items, targets, list_length, seen=seen)
    assert torch.equal(ranked.ranks, dense_ranks(table, targets))
    best = table.topk(min(list_length, num_items)).values
    assert torch.equal(ranked.best < 0, best.isneginf())
    shown = table.gather(1, ranked.best.clamp(min=0)).masked_fill(ranked.best < 0, float("-inf"))
    assert torch.equal(shown, best)


@pytest.mark.parametrize("width", [64, 96, 100, 128])
def test_an_item_with_the_same_vector_as_the_target_is_ahead_of_it_in_every_chunk(
    width: int,
) -> None:
    items = twins(7_000, width, seed=width)  # four chunks
    queries = torch.randn(300, width, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(0, 6_900, 23)
    ranked = rank_in_catalogue(queries, items, targets).ranks
    scores = queries.double() @ items.double().T
    own = scores.gather(1, targets.unsqueeze(1))
    better, not_worse = (scores > own + 1e-4).sum(1), (scores >= own - 1e-4).sum(1)
    _, kinds, of_each = items.unique(dim=0, return_inverse=True, return_counts=True)
    assert of_each.max() > 2
    assert (ranked >= better + of_each[kinds[targets]]).all()
    assert (ranked <= not_worse).all()


def test_nan_scores_are_ahead_of_every_target() -> None:
    items = torch.arange(12.0).unsqueeze(1)
    items[[2, 9]] = float("nan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ranking._WIDTHS, "cpu", 5)
        ranked = rank_in_catalogue(torch.ones(3, 1), items, torch.tensor([11, 0, 2]), 2)
    assert ranked.ranks.tolist() == [3, 12, 12]


def test_memory_does_not_grow_with_the_catalogue_times_the_targets() -> None:
    queries, items = torch.randn(2_000, 4), torch.randn(50_000, 4)
    with torch.profiler.profile(profile_memory=True) as profile:
        rank_in_catalogue(queries, items, torch.arange(2_000))
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 4 * ranking._SCORES["cpu"]  # 400 MB as one table


@pytest.mark.parametrize("list_length", [0, 20])
def test_ranking_on_a_gpu_waits_for_no_chunk(
    monkeypatch: pytest.MonkeyPatch, list_length: int
) -> None:
    """Fake tensors raise an exception where an operator needs a value from the device."""
    monkeypatch.setattr(ranking, "device_chunk_bytes", lambda _: 2**29)
    with FakeTensorMode():
        queries = torch.empty(1_024, 64, device="cuda")
        items = torch.empty(1_000_000, 64, device="cuda")
        targets = torch.empty(1_024, dtype=torch.int64, device="cuda")
        ranked = rank_in_catalogue(queries, items, targets, list_length)
    assert ranked.ranks.shape == (1_024,)
    assert ranked.best.shape == (1_024, list_length)
    assert ranked.ranks.device.type == ranked.best.device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("list_length", [0, 20])
def test_ranks_and_lists_of_a_gpu_are_those_of_a_cpu(list_length: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    generator = torch.Generator().manual_seed(0)
    # whole numbers: sums are the same in any order
    items = torch.randint(-9, 10, (70_000, 16), generator=generator).float()  # three chunks
    queries = torch.randint(-9, 10, (300, 16), generator=generator).float()
    targets = torch.randint(-1, 70_000, (300,), generator=generator)
    seen = Seen(
        torch.randint(-1, 70_000, (3_000,), generator=generator),
        torch.arange(300) * 10,
        torch.arange(300) * 10 + 9,
    )
    expected = rank_in_catalogue(queries, items, targets, list_length, seen=seen)
    ranked = rank_in_catalogue(
        *(part.cuda() for part in (queries, items, targets)),
        list_length,
        seen=Seen(*(part.cuda() for part in seen)),
    )
    assert torch.equal(ranked.ranks.cpu(), expected.ranks)
    scores = queries @ items.T
    assert torch.equal(scores.gather(1, ranked.best.cpu()), scores.gather(1, expected.best))
