"""Metrics by columns of the data, against the raw log."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError
from pipeline.evaluation.column_groups import _by_category, _by_number
from pipeline.evaluation.result import Evaluation
from pipeline.evaluation.run import evaluate
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.training.run import train
from tests.conftest import Shop
from tests.training.test_recipes import recipe

COLUMNS = ("category", "action", "device", "price", "item_id", "elapsed")


@pytest.fixture(scope="module")
def evaluation(shop: Shop) -> Evaluation:
    return evaluate(shop.run, shop.data, cutoffs=(5,), baselines=False, by=COLUMNS)


def raw_targets(shop: Shop, evaluation: Evaluation) -> pd.DataFrame:
    """Rows of the raw log that are targets, with their rank by the run."""
    log = pd.read_csv(shop.clicks).sort_values("time", kind="stable")
    log["position"] = log.groupby("session").cumcount()
    log["session_id"] = log.session.astype(str)
    assert evaluation.ranks is not None
    return evaluation.ranks.to_pandas().merge(log, on=["session_id", "position"])


@pytest.mark.parametrize("column", ["category", "action", "device"])
def test_groups_of_categories_are_those_of_the_log(
    shop: Shop, evaluation: Evaluation, column: str
) -> None:
    rows = raw_targets(shop, evaluation)
    assert len(rows) == evaluation.targets
    if column == "device":  # of a session: that of its oldest interaction
        log = pd.read_csv(shop.clicks).sort_values("time", kind="stable")
        rows[column] = rows.session.map(log.groupby("session")[column].first())
    if column == "category":  # of an item: the newest of training, or of the row
        assert rows.groupby("item_id")[column].nunique().max() == 1
    groups = {group.group: group for group in evaluation.breakdowns[column]}
    values = rows[column].fillna("missing").astype(str)
    assert {
        name: group.targets for name, group in groups.items()
    } == values.value_counts().to_dict()
    for name, group in groups.items():
        own = rows[values == name]
        assert group.results["run"]["recall@5"] == pytest.approx((own["run"] <= 5).mean())
        assert group.sessions == own.session_id.nunique()
    counts = [group.targets for group in evaluation.breakdowns[column]]
    assert counts == sorted(counts, reverse=True)


def test_groups_of_numbers_are_in_the_units_of_the_log(shop: Shop, evaluation: Evaluation) -> None:
    groups = evaluation.breakdowns["price"]
    assert len(groups) == 4
    assert sum(group.targets for group in groups) == evaluation.targets
    bound = float(groups[0].group.removeprefix("up to "))
    prices = raw_targets(shop, evaluation).price
    assert (prices <= bound * 1.001).sum() == pytest.approx(groups[0].targets, abs=2)
    seconds = [float(group.group.split()[-1]) for group in evaluation.breakdowns["elapsed"][:3]]
    assert 1 < seconds[0] < seconds[2] < 86_400


def test_items_beyond_the_most_frequent_ones_share_a_group(evaluation: Evaluation) -> None:
    groups = evaluation.breakdowns["item_id"]
    assert len(groups) == 21
    assert groups[-1].group.endswith(" others")
    assert sum(group.targets for group in groups) == evaluation.targets


def test_table_of_a_column_is_printed_without_the_usual_groups(
    shop: Shop, evaluation: Evaluation
) -> None:
    text = str(evaluation)
    assert "recall@5 by category" in text
    assert "by interactions before the target" not in text
    assert "by interactions before the target" in evaluation.to_text(breakdown=True)
    arguments = [str(shop.run), "--data", str(shop.data), "--no-baselines"]
    done = CliRunner().invoke(app, ["evaluate", *arguments, "--by", "category, device", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["by"] == ["category", "device"]
    assert list(facts["breakdowns"])[:2] == ["category", "device"]


def test_a_column_that_the_data_lack_is_refused(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="no column 'categori': did you mean `category`"):
        evaluate(shop.run, shop.data, by=("categori",))


def test_buckets_tags_and_a_column_with_the_name_of_usual_groups(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    rows = [
        (session, chance.integers(150), chance.choice(["a|b", "b", ""]), chance.integers(0, 100))
        for session in range(80)
        for _ in range(4)
    ]
    frame = pd.DataFrame(rows, columns=["session_id", "item_id", "tags", "target"])
    frame.to_csv(tmp_path / "log.csv", index=False)
    features = [
        {"name": "tags", "kind": "categorical", "values_per_interaction": 2},
        {"name": "target", "kind": "categorical", "buckets": [10, 50]},
    ]
    settings = {"split": {"test": 0.5}, "features": features}
    preprocess(
        Preprocess.from_dict(settings, "test"), [tmp_path / "log.csv"], [], tmp_path / "data"
    )
    chosen = recipe({"architecture": "gru"})
    train(tmp_path / "data", chosen.model, chosen.train, tmp_path / "run")
    result = evaluate(tmp_path / "run", tmp_path / "data", by=("tags", "target"))
    tags = {group.group: group.targets for group in result.breakdowns["tags"]}
    assert set(tags) == {"a", "b", "missing"}
    assert tags["b"] > tags["a"], "a|b is in the groups of both"
    assert "target" in result.breakdowns, "some targets are unknown"
    assert result.by == ("tags", "target (column)")
    buckets = {group.group for group in result.breakdowns[result.by[1]]}
    assert buckets == {"below 10", "10 to below 50", "50 or more"}


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_every_category_is_in_one_group(indices: list[int]) -> None:
    values = np.array(indices)[:, np.newaxis]
    groups = _by_category(values, str)
    members = np.sum([np.zeros(len(values)), *(group.members for group in groups)], axis=0)
    assert np.array_equal(members, values[:, 0] > 0)
    assert len(groups) <= 21


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60))
def test_every_number_is_in_one_group(numbers: list[float]) -> None:
    groups = _by_number(np.array(numbers))
    assert np.array_equal(
        np.sum([group.members for group in groups], axis=0), np.ones(len(numbers))
    )
    assert all(group.members.any() for group in groups)
    assert len(groups) <= 4
