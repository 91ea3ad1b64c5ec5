"""`pipeline size`: estimates by the measured coefficients, and what the command prints."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError
from pipeline.model.ops.catalogue_cross_entropy import MOST_KEPT_BYTES
from pipeline.sizing.estimate import (
    BUSY_SHARE,
    KEPT_SCORE_BYTES,
    QUANTITIES,
    Load,
    Shape,
    coefficients,
    estimate,
    predict,
)

ROOT = Path(__file__).resolve().parents[2]
SHAPE: dict[str, Any] = {"architecture": "sasrec", "items": 100_000, "d_model": 64}
LOAD = Load(rate=100, sessions=1_280_000, epochs=10, hours=8)


def test_table_has_a_coefficient_for_every_term_and_none_is_negative() -> None:
    table = coefficients()
    for quantity, terms in QUANTITIES.items():
        for architecture in table["architectures"]:
            names = terms(Shape(**SHAPE | {"architecture": architecture}))
            assert names.keys() <= table["coefficients"][quantity].keys()
        assert min(table["coefficients"][quantity].values()) >= 0


def test_errors_of_the_table_are_those_of_its_points() -> None:
    table = coefficients()
    for quantity, of_kind in table["coefficients"].items():
        for kind, is_held_out in (("fitted", False), ("held_out", True)):
            ratios = [
                predict(quantity, Shape(**point["shape"]), of_kind) / point[quantity]
                for point in table["points"]
                if quantity in point and point["held_out"] == is_held_out
            ]
            assert len(ratios) >= 2
            worst = max(max(ratio, 1 / ratio) for ratio in ratios)
            assert table["worst_ratios"][quantity][kind] == pytest.approx(worst, abs=0.006)
            assert worst < 2, (quantity, kind)


def test_machine_of_the_table_names_no_host() -> None:
    assert coefficients()["machine"].keys() == {"processor", "cores", "python"}


def test_estimate_is_the_sum_of_terms() -> None:
    values: dict[str, dict[str, float]] = {
        "training_seconds": {"score": 1e-9, "score_product": 1e-11},
        "training_bytes": {"process": 2**30, "parameters": 4.0},
        "serving_seconds": {"request:sasrec": 0.001, "item": 1e-8},
        "serving_bytes": {"process": 2**29},
    }
    shape = Shape(**SHAPE)
    zero = {
        quantity: dict.fromkeys(terms(shape), 0.0) | values[quantity]
        for quantity, terms in QUANTITIES.items()
    }
    result = estimate(shape, LOAD, {"architectures": ["sasrec"], "coefficients": zero})
    targets = 128 * 4  # each interaction of a session but the first
    assert result.step_seconds == pytest.approx(targets * 100_000 * (1e-9 + 64e-11))
    assert result.epoch_hours == pytest.approx(10_000 * result.step_seconds / 3600)
    assert result.training_cores == 1
    parameters = 100_000 * 64 + 2 * 12 * 64**2
    assert result.training_gib == pytest.approx(1 + 16 * parameters / 2**30)
    assert result.request_ms == pytest.approx(2.0)
    assert result.requests_per_core == pytest.approx(500)
    assert result.serving_cores == 1  # .2 of a core's time, which may be .6
    assert result.serving_gib == 0.5
    busy = Load(rate=1_000, sessions=1_280_000, epochs=1_000, hours=1)
    result = estimate(shape, busy, {"architectures": ["sasrec"], "coefficients": zero})
    assert result.serving_cores == 4  # 2 seconds of work a second, divided by .6
    assert BUSY_SHARE == 0.6
    assert result.training_cores == pytest.approx(1_000 * result.epoch_hours, abs=1)


def test_scores_beyond_the_limit_of_the_cross_entropy_are_computed_again() -> None:
    assert KEPT_SCORE_BYTES == MOST_KEPT_BYTES
    kept, again = Shape(**SHAPE), Shape(**SHAPE | {"items": 1_000_000})
    assert (kept.keeps_scores, again.keeps_scores) == (True, False)
    assert QUANTITIES["training_bytes"](kept)["scores"] == 4 * 512 * 100_000
    assert QUANTITIES["training_bytes"](again)["scores"] == 0
    assert QUANTITIES["training_seconds"](again)["score_again"] == 512 * 1_000_000 * 64


def test_masked_items_are_the_targets_of_mlm() -> None:
    assert Shape(**SHAPE | {"architecture": "xlnet"}, length=10).targets == pytest.approx(256)
    assert Shape(**SHAPE, length=10).targets == 128 * 9
    assert Shape(**SHAPE, length=1).targets == 128


@pytest.mark.parametrize("change", [{"items": 1_000_000}, {"d_model": 128}, {"n_layer": 4}])
def test_larger_models_need_more(change: dict[str, int]) -> None:
    smaller, larger = estimate(Shape(**SHAPE), LOAD), estimate(Shape(**SHAPE | change), LOAD)
    for name in ("step_seconds", "training_gib", "request_ms", "serving_gib"):
        assert getattr(larger, name) >= getattr(smaller, name)
    assert larger.step_seconds > smaller.step_seconds


def run(*words: str) -> str:
    runner = CliRunner()
    result = runner.invoke(app, ["size", *words], catch_exceptions=False, standalone_mode=False)
    return result.stdout


def test_command_prints_the_estimate_its_error_and_its_machine() -> None:
    words = ["--items", "1e5", "--d-model", "64", "--rate", "500", "--sessions-per-day", "2e5"]
    text, facts = run(*words), json.loads(run(*words, "--json"))
    load = Load(rate=500, sessions=6_000_000, epochs=10, hours=8)
    expected = estimate(Shape(**SHAPE), load).to_dict()
    assert {name: facts[name] for name in expected} == pytest.approx(expected)
    assert f"training  {expected['training_gib']:.1f} GiB and " in text
    assert "for 10 epochs of 6,000,000 sessions in 8 h" in text
    assert "for 500 requests/s" in text
    assert f"an epoch takes {expected['epoch_hours']:.2f} h, a step" in text
    shop = ["--items", "2000", "--rate", "50", "--sessions-per-day", "300"]
    epoch_hours = json.loads(run(*shop, "--json"))["epoch_hours"]
    assert f"an epoch takes {3600 * epoch_hours:.3g} s, a step" in run(*shop)
    longer = [*shop, "--days", "3000"]
    epoch_hours = json.loads(run(*longer, "--json"))["epoch_hours"]
    assert f"an epoch takes {60 * epoch_hours:.3g} min, a step" in run(*longer)
    table = coefficients()
    assert "For CPUs alone." in text
    assert table["machine"]["processor"] in text
    assert f"at commit {table['commit']}" in text
    assert f"time of a step {table['worst_ratios']['training_seconds']['held_out']:.2f}" in text
    assert facts["device"] == "cpu"
    assert facts["beyond_measured"] == []
    assert "Beyond what was measured" not in text
    beyond = run("--items", "1e8", "--rate", "1")
    assert "Beyond what was measured, so less sure: items 1e+08 (measured 1,000 to " in beyond


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--items", "0", "--rate", "1"], "--items is 0, expected a number from 1e-06"),
        (["--items", "inf", "--rate", "1"], "--items is inf"),
        (["--items", "10", "--rate", "nan"], "--rate is nan"),
        (["--items", "10", "--rate", "1", "--hours", "-1"], "--hours is -1"),
        (["--items", "10", "--rate", "1", "--length", "1e308"], "--length is 1e"),
        (["--items", "10", "--rate", "1", "--architecture", "hstu"], "only sasrec, gru"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*words)
