"""`python -m benchmarks serve` on a small repository, with a real Triton."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.serving import serving_plot
from pipeline.core.errors import ConfigError
from pipeline.serve.triton.server import TritonServer
from tests.conftest import Shop


@pytest.mark.slow
def test_serve_measures_a_repository_beside_a_model_that_does_nothing(
    shop: Shop, server: TritonServer, tmp_path: Path
) -> None:
    words = ["serve", str(shop.repository), "--clients", "1,4", "--seconds", "0.3"]
    words += ["--against", f"grpc://{server.grpc_url}", "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "serving.json").read_text()) == facts
    other = f"grpc://{server.grpc_url}"
    assert {row["target"] for row in facts["rows"]} == {
        "recommender", other, "a model that does nothing",
    }  # fmt: skip
    for row in facts["rows"]:
        assert row["errors"] == {}
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["sessions_per_second"] == pytest.approx(
            row["requests_per_second"] * row["sessions"], rel=0.01
        )
    [single] = [r for r in facts["rows"] if r["target"] == "recommender" and r["clients"] == 1
                and r["sessions"] == 1]  # fmt: skip
    assert single["rate"] is None
    # fewer executions than sessions: requests shared batches
    step = facts["steps"]["recommender_requests_v1"]
    assert 0 < step["executions"] < step["requests"]
    assert facts["steps"]["noop"]["requests"] > 0
    plot = (tmp_path / "out" / "serving.svg").read_text()
    assert plot == serving_plot(facts)
    assert plot.count("<polyline") == 8  # p50 and p99 of two servers, in two loops
    assert "Open loop: latency by offered load" in plot


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clients", "x"], "--clients holds 'x'"),
        (["--clients", "0"], "--clients is '0', expected whole numbers from 1"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_invalid_arguments_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError if "--clients" in words else Exception, match=message):
        CliRunner().invoke(app, ["serve", *words], catch_exceptions=False, standalone_mode=False)
