"""Rankings without what came before in the session, against loops that anyone can follow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.batch import SessionBatch
from pipeline.data.loader import RaggedBatch
from pipeline.data.schema import ColumnSchema, Schema
from pipeline.evaluation.baselines import BASELINES, fit_baseline
from pipeline.evaluation.baselines.ranking import WithoutSeen, rank_by_baseline
from pipeline.evaluation.predict import write_recommendations
from pipeline.evaluation.run import evaluate
from pipeline.evaluation.targets import prefixes, rank_targets
from pipeline.model.build import build_model
from pipeline.model.counting.sessions import incidence
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig
from pipeline.training.report.run import write_report
from pipeline.training.run import train

NUM_ITEMS = 9
SESSIONS = st.lists(st.lists(st.integers(1, NUM_ITEMS + 2), min_size=1, max_size=7), min_size=1,
                    max_size=6)  # fmt: skip
"""Some items are missing (1) or unknown (2)."""


def ragged(sessions: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(session) for session in sessions])
    values = np.array([item for session in sessions for item in session], np.int64)
    return values, np.concatenate([[0], np.cumsum(lengths)])


def prefixes_and_targets(sessions: list[list[int]], positions: str) -> list[tuple[list[int], int]]:
    """What came before each target, and the target."""
    result = []
    for session in sessions:
        places = range(1, len(session)) if positions == "all" else [len(session) - 1]
        result += [(session[:n], session[n]) for n in places if n > 0 and session[n] >= 2]
    return result


def model(name: str, masking: str) -> Any:
    torch.manual_seed(0)
    column = ColumnSchema.create_categorical("item_id", NUM_ITEMS, tags=["item_id"])
    config = ModelConfig(architecture=name, masking=masking, d_model=8, n_head=2, n_layer=1)
    return build_model(Schema((column,)), config, 3).eval()


MODELS = {"gru": model("gru", "clm"), "bert": model("bert", "mlm")}


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("name", MODELS)
@given(sessions=SESSIONS)
@settings(deadline=None, max_examples=25)
def test_model_ranks_only_items_outside_the_prefix(
    name: str, positions: Any, sessions: list[list[int]]
) -> None:
    chosen = MODELS[name]
    values, offsets = ragged(sessions)
    batch = RaggedBatch({"item_id": torch.from_numpy(values)}, {}, torch.from_numpy(offsets))
    result = rank_targets(chosen, [batch], positions, list_lengths=(4, 20), filter_seen=True)
    expected = []
    shown = np.zeros((2, NUM_ITEMS), np.int64)
    for before, target in prefixes_and_targets(sessions, positions):
        newest = torch.tensor([before[-3:]])
        window = SessionBatch({"item_id": newest}, torch.tensor([newest.size(1)]))
        scores = chosen(window)[0]
        own = scores[target] if target >= 3 else float("inf")
        others = [item for item in range(3, NUM_ITEMS + 3) if item not in before]
        by_score = sorted(others, key=lambda item: -float(scores[item].detach()))
        for row, length in enumerate((4, 20)):
            shown[row, np.array(by_score[:length], np.int64) - 3] += 1
        ahead = sum(bool(scores[item] >= own) for item in others if item != target)
        if target < 3:
            expected.append(NUM_ITEMS + 1)
        else:
            expected.append(NUM_ITEMS if target in before else ahead + 1)
    assert result.ranks.tolist() == expected
    assert result.exposure.tolist() == shown.tolist()


@pytest.mark.parametrize("name", BASELINES)
@given(training=SESSIONS, sessions=SESSIONS)
@settings(deadline=None, max_examples=25)
def test_baselines_rank_only_items_outside_the_prefix(
    name: str, training: list[list[int]], sessions: list[list[int]]
) -> None:
    baseline = fit_baseline(name, *ragged(training), NUM_ITEMS + 3)
    before = prefixes(*ragged(sessions), "all", 2)  # it scores by the newest two
    whole = prefixes(*ragged(sessions), "all", 2**31)
    seen = incidence(whole.values, whole.offsets, NUM_ITEMS + 3)
    filtered = WithoutSeen(baseline, seen)
    result = rank_by_baseline(filtered, *before, num_items=NUM_ITEMS)
    dense = np.zeros((len(before.targets), NUM_ITEMS + 3))
    for matrix, rows, numbers in baseline.scores(before.values, before.offsets):
        dense[numbers] = matrix.toarray()[rows]
    for rank, scores, (seen, target) in zip(
        result.ranks, dense, prefixes_and_targets(sessions, "all"), strict=True
    ):
        if target < 3:
            assert rank == NUM_ITEMS + 1
        elif target in seen or scores[target] == 0:
            assert rank == NUM_ITEMS
        else:
            others = [item for item in range(3, NUM_ITEMS + 3) if item not in seen]
            assert rank == sum(scores[item] >= scores[target] for item in others)


def items_listed_again(folder: Path, *, filter_seen: bool | None) -> bool:
    """Whether `predict` lists an item of the session itself."""
    out = folder / "lists.parquet"
    write_recommendations(
        folder / "run", folder / "data", "valid", out, k=5, filter_seen=filter_seen
    )
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 30
    return any(
        {(int(row["session_id"]) + i) % 9 for i in range(3)} & set(map(int, row["item_ids"]))
        for row in rows
    )


def test_filter_seen_defaults_to_the_recipe_of_the_data(tmp_path: Path) -> None:
    lines = [f"{n} " + " ".join(str((n + i) % 9) for i in range(4)) for n in range(30)]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    values = {"format": "sequences", "split": "leave-one-out", "filter_seen": True}
    recipe = Preprocess.from_dict(values, "recipe")
    preprocess(recipe, [tmp_path / "log.txt"], [], tmp_path / "data")
    chosen = TrainConfig(epochs=1, metric="mrr@10")
    facts = train(
        tmp_path / "data", ModelConfig(architecture="gru", d_model=4), chosen, tmp_path / "run"
    )
    result = evaluate(tmp_path / "run", tmp_path / "data", part="valid", cutoffs=(10,))
    assert result.filter_seen
    assert facts["valid_mrr@10"] == pytest.approx(result.results["run"]["mrr@10"])
    assert "recent-popularity" in result.results
    facts = write_report(
        tmp_path / "run", tmp_path / "data", tmp_path / "report.html", baselines=False
    )
    assert facts["evaluation"]["filter_seen"]
    assert facts["evaluation"]["positions"] == "last"
    examples = json.loads((tmp_path / "report.json").read_text())["examples"]
    for example in examples:
        recommended = {entry["item_id"] for entry in example["recommended"]}
        assert recommended
        assert not recommended & set(example["clicked"])
    assert not items_listed_again(tmp_path, filter_seen=None)
    assert items_listed_again(tmp_path, filter_seen=False)
    kept = evaluate(
        tmp_path / "run", tmp_path / "data", part="valid", cutoffs=(10,), filter_seen=False
    )
    assert not kept.filter_seen
    for name in kept.results:
        assert kept.results[name]["mrr@10"] <= result.results[name]["mrr@10"]
    assert kept.results["run"]["mrr@10"] < result.results["run"]["mrr@10"]
