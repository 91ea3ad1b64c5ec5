"""A run beside the baselines: what `evaluate` says, and that its parts agree."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY
from pipeline.core.errors import ConfigError
from pipeline.evaluation.baselines import BASELINES
from pipeline.evaluation.metrics import METRICS, Ranked
from pipeline.evaluation.run import evaluate, gains_of
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


ON_REQUEST = (
    *("novelty", "serendipity", "diversity", "miscalibration"),
    *("debiased_recall", "debiased_ndcg", "debiased_mrr"),
)


def test_metrics_on_request_come_with_intervals(shop: Shop) -> None:
    evaluation = evaluate(
        shop.run, shop.data, cutoffs=(5, 20), metrics=("all", "diversity:category")
    )
    names = {f"{name}@{k}" for name in (*ON_REQUEST, "diversity:category") for k in (5, 20)}
    for model, values in evaluation.results.items():
        assert names < set(values)
        margins = evaluation.margins[model]
        # the same list for all has no interval of its novelty
        assert all(margins[name] for name in names) or "popularity" in model
    popular, run = evaluation.results["popularity"], evaluation.results["run"]
    novelties = [values["novelty@20"] or 0 for values in (popular, run)]
    assert novelties[0] < novelties[1], "popular items are in many sessions"
    assert evaluation.differences["miscalibration@5"].baseline != "popularity"
    text = str(evaluation)
    assert "diversity:category@20" in text
    assert "serendipity: gain of a hit" in text
    assert f"  {run['serendipity@20']:.6f} ±." in text, "with digits enough for its interval"
    json.dumps(evaluation.to_dict(), allow_nan=False)


def test_default_table_is_without_metrics_on_request(shop: Shop, result: dict[str, Any]) -> None:
    assert not [name for name in result["results"]["run"] if name.split("@")[0] in ON_REQUEST]
    with_metrics = evaluate(shop.run, shop.data, cutoffs=(5, 20), metrics=("novelty",)).to_dict()
    for model, values in result["results"].items():
        own = with_metrics["results"][model]
        assert {name: own[name] for name in values} == values


def test_metrics_that_do_not_exist_are_refused_with_those_that_do(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="'novelly' on request, expected all, novelty"):
        evaluate(shop.run, shop.data, metrics=("novelly",))
    with pytest.raises(ConfigError, match="diversity:category"):
        evaluate(shop.run, shop.data, metrics=("diversity:action",))


def test_report_and_command_line_have_the_requested_metrics(shop: Shop, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = [
        str(shop.run),
        "--data",
        str(shop.data),
        "--metrics",
        "novelty, debiased,serendipity",
    ]
    done = CliRunner().invoke(
        app, ["report", *arguments, "--out", str(page), "--cutoffs", "5", "--no-baselines"]
    )
    assert done.exit_code == 0, done.output
    assert "<th>novelty@5</th><th>debiased_recall@5</th>" in page.read_text()
    values = json.loads(page.with_suffix(".json").read_text())["evaluation"]["results"]["run"]
    assert f"<td>{values['serendipity@5']:.6f} <span" in page.read_text()
    done = CliRunner().invoke(app, ["evaluate", *arguments, "--no-baselines", "--json"])
    assert "debiased_mrr@20" in json.loads(done.stdout)["margins"]["run"]


def test_unknown_targets_are_missed_by_lists_that_hold_the_catalogue() -> None:
    targets = np.array([FIRST_ITEM, OUT_OF_VOCABULARY])
    ranked = Ranked(np.array([2, 3]), targets, np.zeros((1, 2)))  # of two items
    assert gains_of(ranked, (20,), None)["recall@20"].tolist() == [1, 0]
