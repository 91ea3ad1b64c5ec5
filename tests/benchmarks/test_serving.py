"""`python -m benchmarks serve` on a small repository, a real Triton behind it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import load
from benchmarks.__main__ import benchmark
from benchmarks.serving_text import serving_plot
from pipeline.core.errors import ConfigError
from pipeline.serve.triton.server import TritonServer
from tests.conftest import Shop


def test_the_command_measures_a_repository_beside_a_model_that_does_nothing(
    shop: Shop, server: TritonServer, tmp_path: Path
) -> None:
    words = ["serve", str(shop.repository), "--clients", "1,4", "--seconds", "0.3"]
    words += ["--against", f"grpc://{server.grpc_url}", "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(benchmark, words, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "serving.json").read_text()) == found
    other = f"grpc://{server.grpc_url}"
    assert {row["target"] for row in found["rows"]} == {
        "recommender", other, "a model that does nothing",
    }  # fmt: skip
    for row in found["rows"]:
        assert row["errors"] == {}
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["sessions_per_second"] == pytest.approx(
            row["requests_per_second"] * row["sessions"], rel=0.01
        )
    [single] = [r for r in found["rows"] if r["target"] == "recommender" and r["clients"] == 1
                and r["sessions"] == 1]  # fmt: skip
    assert single["rate"] is None
    # fewer executions than sessions: requests shared batches
    step = found["steps"]["recommender_requests_v1"]
    assert 0 < step["executions"] < step["requests"]
    assert found["steps"]["noop"]["requests"] > 0
    plot = (tmp_path / "out" / "serving.svg").read_text()
    assert plot == serving_plot(found)
    assert plot.count("<polyline") == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clients", "x"], "--clients holds 'x'"),
        (["--clients", "0"], "--clients is '0', expected whole numbers from 1"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError if "--clients" in words else Exception, match=message):
        CliRunner().invoke(
            benchmark, ["serve", *words], catch_exceptions=False, standalone_mode=False
        )


class Late(load.Connection):
    """Answers each request after some time, and refuses every fourth."""

    def __init__(self) -> None:
        self.asked = 0

    def send(self, request: bytes) -> str | None:
        import time

        time.sleep(0.02)
        self.asked += 1
        return "no" if self.asked % 4 == 0 else None

    def close(self) -> None: ...


def test_a_closed_loop_counts_answers_and_refusals_apart() -> None:
    connections = [Late(), Late()]
    found = load.closed_loop(connections, [b"x"], 0.5)
    asked = sum(connection.asked for connection in connections)
    assert len(found.latencies) + sum(found.errors.values()) == asked
    assert found.errors == {"no": sum(connection.asked // 4 for connection in connections)}
    assert np.median(found.latencies) >= 0.02


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    # one connection answers 50 a second; 200 a second are due
    found = load.open_loop([Late()], [b"x"], 0.5, 200.0)
    assert len(found.latencies) + sum(found.errors.values()) == 100
    assert found.latencies.max() > 1.0, "the last ones waited for all before them"
    assert found.facts()["p99_ms"] > 1_000
