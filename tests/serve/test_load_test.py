"""Load test of a server: real requests, counts of both loops, and settings that cannot be."""

import json
import time
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, ServingError
from pipeline.reports.charts import line_chart
from pipeline.reports.load_plot import load_plot
from pipeline.serve.load_test import RequestShape, load_test, measure
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import Shop

SVG = "{http://www.w3.org/2000/svg}"
LEFT = line_chart("", "", "", {"": [(0, 0)]}).left  # type: ignore[union-attr]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("with_repository", [True, False])
def test_random_requests_are_answered_by_a_server_with_and_without_its_tables(
    shop: Shop, server: TritonServer, protocol: str, with_repository: bool
) -> None:
    address = server.http_url if protocol == "http" else server.grpc_url
    repository: Path | None = shop.repository if with_repository else None
    result = load_test(
        f"{protocol}://{address}",
        repository,
        clients=2,
        seconds=0.5,
        shape=RequestShape(sessions=3, interactions=4, k=7),
    )
    facts = result.to_dict()
    assert facts["errors"] == {}
    assert facts["requests"] == len(result.latencies_seconds) > 2
    assert 0 < facts["p50_ms"] <= facts["p95_ms"] <= facts["p99_ms"]
    assert facts["sessions_per_second"] == pytest.approx(3 * result.requests_per_second)


def test_missing_server_is_one_line() -> None:
    with pytest.raises(ServingError, match="No server answers at"):
        load_test(f"grpc://127.0.0.1:{free_ports().grpc}")


def loads() -> list[dict[str, Any]]:
    quantiles = {"p50_ms": 2.0, "p95_ms": 3.0, "p99_ms": 4.0}
    closed = [{"rate": None, "clients": clients, **quantiles} for clients in (2, 4)]
    opened = [{"rate": rate, "clients": 32, **quantiles} for rate in (50.0, 100.0)]
    return closed + opened


def test_plot_shows_both_loops_by_offered_load_from_zero() -> None:
    text = load_plot("<b> & shop", {"a<i>": loads()})
    tree = ElementTree.fromstring(text)  # noqa: S314  our own text
    texts = ["".join(element.itertext()) for element in tree.iter(f"{SVG}text")]
    assert texts[0] == "<b> & shop"
    assert texts.count("a<i>, p50") == texts.count("a<i>, p99") == 2
    for label in (
        "Open loop: latency by offered load",
        "offered requests a second, at random moments",
        "latency from when a request was due, ms",
        "Closed loop: latency by number of clients",
        "clients, each sending its next request after the answer",
        "latency, ms",
    ):
        assert texts.count(label) == 1
    tooltips = [element.text for element in tree.iter(f"{SVG}title")]
    assert "a<i>, p99: 4 at 100" in tooltips
    assert "a<i>, p50: 2 at 4" in tooltips
    assert texts.count("0") == 4, "both axes of both panels begin at 0"
    # the point of half the load is in the middle between the corner and the last one
    points = [line.get("points", "").split() for line in tree.iter(f"{SVG}polyline")]
    assert len(points) == 4
    for line in points:
        first, last = (float(point.split(",")[0]) for point in line)
        assert first - LEFT == pytest.approx((last - LEFT) / 2, abs=0.1)
    only_closed = load_plot("shop", {"a": loads()[:2]})
    assert "Open loop" not in only_closed
    assert only_closed.count("<polyline") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "load.png"], r"ends in \.svg"),
        (["--plot", "load.svg", "--rate", "5"], "Leave out --rate"),
        (["--plot", "nowhere/load.svg"], "nowhere is no folder"),
    ],
)
def test_plot_of_another_kind_is_refused_before_anything_is_sent(
    words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(
            app, ["load-test", "http://127.0.0.1:9", *words],
            catch_exceptions=False, standalone_mode=False,
        )  # fmt: skip


def test_plot_is_written_after_loads_of_both_loops(server: TritonServer, tmp_path: Path) -> None:
    words = [f"grpc://{server.grpc_url}", "--clients", "1,2", "--seconds", "0.3", "--json"]
    words += ["--plot", str(tmp_path / "load.svg")]
    result = CliRunner().invoke(app, ["load-test", *words], catch_exceptions=False)
    loads = json.loads(result.stdout)["loads"]
    assert [load["rate"] is None for load in loads] == [True] * 2 + [False] * 4
    highest = max(load["requests_per_second"] for load in loads[:2])
    assert [load["rate"] for load in loads[2:]] == pytest.approx(
        [share * highest for share in (0.25, 0.5, 0.8, 0.95)], abs=0.1
    )
    text = (tmp_path / "load.svg").read_text()
    assert "recommender: latency of requests of one session by load" in text
    assert text.count("<circle") == 12


class SlowClient:
    """Responds to each request after 20 ms, to every fourth with an error."""

    def __init__(self) -> None:
        self.num_requests = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None: ...

    def send(self, request: dict[str, Any]) -> None:
        time.sleep(0.02)
        self.num_requests += 1
        if self.num_requests % 4 == 0:
            raise ServingError("no")


def test_closed_loop_counts_answers_and_errors_apart() -> None:
    clients: list[SlowClient] = []

    def connect() -> Any:
        clients.append(SlowClient())
        return clients[-1]

    result = measure(connect, 2, [{}], 0.5)
    sent = sum(client.num_requests - 1 for client in clients)  # the first opens the connection
    assert len(clients) == 2
    assert len(result.latencies_seconds) + sum(result.errors.values()) == sent
    assert result.errors == {"no": sum(client.num_requests // 4 for client in clients)}
    assert np.median(result.latencies_seconds) >= 0.02


def test_open_loop_latency_begins_when_a_request_is_due() -> None:
    # one client gets 50 answers a second; 200 a second are due
    connect: Any = SlowClient
    result = measure(connect, 1, [{}], 0.5, 200.0)
    assert len(result.latencies_seconds) + sum(result.errors.values()) == 100
    assert result.latencies_seconds.max() > 1.0, "the last ones wait for all before them"
    assert np.quantile(result.latencies_seconds, 0.99) > 1.0
