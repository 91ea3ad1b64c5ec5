"""A run beside the baselines: what `evaluate` says, and that its parts agree."""

import json
from typing import Any

import pytest

from pipeline.evaluation.baselines import BASELINES
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.run import evaluate
from tests.conftest import Shop


@pytest.fixture(scope="module")
def result(shop: Shop) -> dict[str, Any]:
    return evaluate(shop.run, shop.data, cutoffs=(5, 20)).to_dict()


def test_every_ranking_metric_of_every_model_has_a_margin(result: dict[str, Any]) -> None:
    names = {f"{metric}@{cutoff}" for metric in METRICS for cutoff in (5, 20)}
    assert list(result["results"]) == ["run", *BASELINES]
    for model, margins in result["margins"].items():
        assert set(margins) == names
        assert names < set(result["results"][model])
        assert all(0 < margin < 0.3 for margin in margins.values())
    json.dumps(result, allow_nan=False)


def test_the_difference_is_from_the_best_baseline_and_surer_than_both(
    result: dict[str, Any],
) -> None:
    for metric, difference in result["differences"].items():
        others = {name: result["results"][name][metric] for name in BASELINES}
        assert difference["baseline"] == max(others, key=lambda name: others[name])
        assert difference["difference"] == pytest.approx(
            result["results"]["run"][metric] - max(others.values()), abs=1e-9
        )
        margins = [result["margins"][name][metric] for name in ("run", difference["baseline"])]
        # the models are right about the same targets, so that their difference varies less
        assert 0 < difference["margin"] < sum(margins)


def test_the_mean_over_groups_is_the_mean_over_all(result: dict[str, Any]) -> None:
    assert {"interactions before the target", "hour of the day (UTC)"} < set(result["breakdowns"])
    for by, groups in result["breakdowns"].items():
        total = sum(group["targets"] for group in groups)
        assert len(groups) > 1
        if total < result["targets"]:
            assert by in ("popularity of the target", "known target")
            continue
        for model, metrics in result["results"].items():
            mean = sum(g["targets"] * g["results"][model]["ndcg@20"] for g in groups) / total
            assert mean == pytest.approx(metrics["ndcg@20"], abs=1e-9)


def test_the_last_positions_are_one_target_a_session(shop: Shop) -> None:
    result = evaluate(shop.run, shop.data, positions="last", baselines=False).to_dict()
    assert result["targets"] <= result["sessions"]
    assert list(result["results"]) == ["run"]
    assert result["differences"] == {}
    assert result["cost"]["sessions_per_second"] > 0
    assert result["cost"]["peak_memory_mb"] > 50
