"""Ranks of targets, against numbers that a reader can work out and against slow programs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.loader import RaggedBatch
from pipeline.evaluation.targets import evaluation_windows, prefixes, rank_targets
from pipeline.model import ColumnSchema, Model, Schema, SessionBatch
from pipeline.model.build import build_model
from pipeline.recipe.model import ModelConfig

L, V = 4, 30
SCHEMA = Schema(
    (
        ColumnSchema(
            name="item_id", tags=frozenset({"categorical", "item_id"}), num_rows=V, is_list=True
        ),
    )
)
SESSIONS = st.lists(st.lists(st.integers(1, V - 1), min_size=1, max_size=11), max_size=6)


def make_model(architecture: str, masking: str) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(architecture=architecture, masking=masking, d_model=8, n_head=2, n_layer=1)
    return build_model(SCHEMA, config, L).eval()


MODELS = {
    "gpt2": make_model("gpt2", "clm"),
    "xlnet-mlm": make_model("xlnet", "mlm"),
}


def ragged(sessions: list[list[int]]) -> RaggedBatch:
    values = torch.tensor([item for session in sessions for item in session], dtype=torch.int64)
    offsets = torch.tensor([0, *np.cumsum([len(s) for s in sessions])], dtype=torch.int64)
    return RaggedBatch({"item_id": values}, {}, offsets)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=25, deadline=None)
@given(sessions=SESSIONS)
def test_rank_of_a_target_equals_that_of_a_prediction_from_its_prefix(
    name: str, positions: str, sessions: list[list[int]]
) -> None:
    model = MODELS[name]
    ranked = rank_targets(model, [ragged(sessions)], positions, batch_size=3)  # type: ignore[arg-type]
    expected, targets = [], []
    for session in sessions:
        ends = range(1, len(session)) if positions == "all" else [len(session) - 1]
        for end in ends:
            target = session[end]
            if end < 1 or target < 2:
                continue
            before = torch.tensor([session[max(0, end - L) : end]])
            with torch.no_grad():
                scores = model(SessionBatch({"item_id": before}, torch.tensor([before.size(1)])))
            others = scores[0, 3:] >= scores[0, target] - 1e-5
            lowest = int((scores[0, 3:] > scores[0, target] + 1e-5).sum()) + 1
            expected.append((lowest, int(others.sum())) if target > 2 else (V - 2, V - 2))
            targets.append(target)
    assert ranked.targets.tolist() == targets
    for rank, (low, high) in zip(ranked.ranks.tolist(), expected, strict=True):
        assert low <= rank <= high


@given(sessions=SESSIONS, longest=st.integers(1, 5), positions=st.sampled_from(["all", "last"]))
def test_baselines_see_the_targets_of_the_model_in_the_same_order(
    sessions: list[list[int]], longest: int, positions: str
) -> None:
    values = np.array([item for s in sessions for item in s], np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sessions])]).astype(np.int64)
    before_targets = prefixes(values, offsets, positions, longest)  # type: ignore[arg-type]
    expected = []
    for session in sessions:
        ends = range(1, len(session)) if positions == "all" else [len(session) - 1]
        expected += [
            (session[max(0, end - longest) : end], session[end])
            for end in ends
            if end >= 1 and session[end] >= 2
        ]
    assert before_targets.targets.tolist() == [target for _, target in expected]
    for row, (prefix, _) in enumerate(expected):
        assert (
            before_targets.values[
                before_targets.offsets[row] : before_targets.offsets[row + 1]
            ].tolist()
            == prefix
        )


@given(
    lengths=st.lists(st.integers(1, 15), max_size=5),
    longest=st.integers(1, 6),
    causal=st.booleans(),
)
def test_every_interaction_but_the_first_is_a_target_once(
    lengths: list[int], longest: int, causal: bool
) -> None:
    windows = evaluation_windows(torch.tensor(lengths), longest, "all", causal=causal)
    seen = []
    for row, start, stop, every in zip(*(part.tolist() for part in windows), strict=True):
        assert stop - start <= longest + 1
        seen += [(row, end) for end in (range(start + 1, stop) if every else [stop - 1])]
    assert seen == [(row, end) for row, length in enumerate(lengths) for end in range(1, length)]


def test_ties_count_against_the_target() -> None:
    model = make_model("gpt2", "clm")
    with torch.no_grad():
        # every item has the same score, in whatever order a processor sums up its products
        model.inputs.item_table.weight[3:] = 0
        model.inputs.item_table.weight[3:, 0] = 0.1
    ranked = rank_targets(model, [ragged([[4, 5]])], "all")
    assert ranked.ranks.tolist() == [V - 3]


def test_nan_scores_are_no_hit() -> None:
    model = make_model("gpt2", "clm")
    with torch.no_grad():
        model.inputs.item_table.weight[3:] = float("nan")
    ranked = rank_targets(model, [ragged([[4, 5]])], "all")
    assert ranked.ranks.tolist() == [V - 3]
