"""`python -m benchmarks sizing`: the fit, its error, a training step, and the documentation."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from benchmarks.processes import environment, python_path
from benchmarks.sizing import coefficient_table, fit, sizing_markdown, worst_ratios
from pipeline.sizing.estimate import QUANTITIES, Shape, coefficients, predict
from tests.conftest import ROOT

SIZES = [
    (1_000, 32, 1, 64, 10), (1_000, 32, 1, 512, 10), (1_000, 128, 2, 128, 20),
    (1_000, 64, 4, 128, 20), (1_000, 64, 2, 32, 50), (20_000, 64, 2, 128, 10),
    (100_000, 32, 2, 64, 10), (200_000, 64, 1, 128, 5), (400_000, 64, 1, 128, 5),
    (50_000, 96, 2, 128, 10),
]  # fmt: skip
TABLE = {
    "step": 0.006, "optimizer": 1e-9, "score": 3e-9, "score_product": 8e-11, "score_again": 3e-11,
    "interaction:sasrec": 8e-8, "layer:sasrec": 2e-10, "attention:sasrec": 8e-10,
}  # fmt: skip


def points() -> list[dict]:
    names = ("items", "d_model", "n_layer", "batch_size", "length")
    shapes = [
        Shape(architecture="sasrec", **dict(zip(names, sizes, strict=True))) for sizes in SIZES
    ]
    return [
        {
            "shape": asdict(shape),
            "held_out": number == len(shapes) - 1,
            "training_seconds": predict("training_seconds", shape, TABLE),
        }
        for number, shape in enumerate(shapes)
    ]


def test_fit_recovers_the_coefficients_of_exact_points() -> None:
    assert fit("training_seconds", points()) == pytest.approx(TABLE, rel=0.01)


def test_held_out_points_are_not_fitted_but_judged() -> None:
    measured = points()
    measured[-1]["training_seconds"] *= 3
    table = fit("training_seconds", measured)
    assert table == pytest.approx(TABLE, rel=0.01)
    assert worst_ratios("training_seconds", measured, table) == {"fitted": 1.0, "held_out": 3.0}


def test_coefficients_are_the_fit_of_the_points_beside_them() -> None:
    table = coefficients()
    again = coefficient_table(table["machine"], table["points"])
    for quantity in QUANTITIES:
        assert again["coefficients"][quantity] == pytest.approx(
            table["coefficients"][quantity], rel=1e-3, abs=1e-15
        )
    assert again["worst_ratios"] == table["worst_ratios"]


def test_documentation_has_the_tables_of_the_command() -> None:
    text = (ROOT / "docs" / "how-to" / "sizing.md").read_text(encoding="utf-8")
    assert sizing_markdown(coefficients()) in text


@pytest.mark.slow
def test_step_of_a_small_shape_is_measured() -> None:
    shape = Shape(architecture="gru", items=100, d_model=8, n_layer=1, batch_size=4, length=3)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sizing", json.dumps(asdict(shape))],
        env=environment("default") | {"PYTHONPATH": python_path()},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    assert 0 < measured["training_seconds"] < 10
    assert 2**28 < measured["training_bytes"] < 2**33
