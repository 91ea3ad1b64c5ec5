"""Table and arguments of `python -m benchmarks sharding`."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from benchmarks import sharding as sharding_module
from benchmarks.__main__ import app
from benchmarks.sharding import Plan, measure_sharding, sharding_text
from pipeline.core.errors import ConfigError
from tests.conftest import ROOT

MACHINE = {"processor": "P", "cores": 2, "load": 0.1, "system": "Linux", "python": "3.11"}


def test_forms_that_cannot_run_are_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"exact, own": 5.0, "exact, whole": 5.0, "sampled, own": 4.0, "sampled, whole": 4.1}
    monkeypatch.setattr(sharding_module, "HAS_TORCHREC", False)
    monkeypatch.setattr(sharding_module, "_available_bytes", lambda: 2**30)
    monkeypatch.setattr(
        sharding_module,
        "_turn",
        lambda form, _plan, _items: [
            {
                "step_seconds": 0.5 if "own" in form else 1.0,
                "processor_seconds": 0.25 * (rank + 1) if "own" in form else 0.75,
                "peak_bytes": 2**20 * (rank + 1),
                "losses": [losses[form]],
            }
            for rank in range(2)
        ],
    )
    result = measure_sharding(Plan(items=(1_000_000,), targets=1_024, turns=2))
    lines = sharding_text({"machine": MACHINE} | result).splitlines()
    assert "exact, own 2 1.00 0.5 1.00 2" in [" ".join(line.split()) for line in lines]
    assert "exact, whole 1 0.50 0.75 1.50 2" in [" ".join(line.split()) for line in lines]
    assert "scores of 1,024 targets take 15 GiB, 1 GiB are free" in " ".join(lines)
    assert "left out: torchrec is not installed" in " ".join(lines)
    assert "exact: first losses agree, largest difference 0e+00" in lines
    assert "sampled: first losses DIFFER, largest difference 2e-02" in lines


def test_odd_number_of_targets_is_refused() -> None:
    shown = CliRunner().invoke(app, ["sharding", "--targets", "63"])
    assert isinstance(shown.exception, ConfigError)
    assert "--targets is 63" in str(shown.exception)


@pytest.mark.slow
def test_every_form_trains_and_ends_with_the_loss_of_its_kind() -> None:
    sizes = "--items 301 --targets 64 --d-model 8 --turns 1"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "sharding", *sizes.split(), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,  # a process that waits for a thread of its group waits for ever
    )
    assert done.returncode == 0, done.stderr
    [table] = json.loads(done.stdout)["tables"]
    forms = {row["form"] for row in table["rows"]} | set(table["left_out"])
    assert {"exact, own", "exact, whole", "sampled, own", "sampled, whole"} <= forms
    assert max(table["loss_differences"].values()) < 1e-5
