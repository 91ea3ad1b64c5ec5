"""Metrics of docs/reference/prometheus.md, compared with those of a server and with their users."""

import json
import re
import urllib.error
import urllib.request

import pytest
import yaml

from pipeline.core.errors import ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.triton.server import TritonServer
from tests.conftest import ROOT, SESSION

PAGE = (ROOT / "docs" / "reference" / "prometheus.md").read_text(encoding="utf-8")
ROWS = {
    name: (kind, {label for label in labels.split(", ") if label})
    for name, kind, labels in re.findall(
        r"^\| `(nv_\w+)` \| (\w+) \| ([\w, ]*?) ?\| ", PAGE, re.MULTILINE
    )
}
"""Type and labels by name."""
QUERIES = re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"][0]["rules"]
ADAPTER = yaml.safe_load((ROOT / "deploy/kubernetes/prometheus-adapter.yaml").read_text())


def metrics_of(server: TritonServer) -> str:
    """Text at the address for Prometheus."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=5) as response:
        return str(response.read().decode())


def failures(text: str) -> int:
    """Failures of the ensemble, of all reasons."""
    pattern = r'^nv_inference_request_failure\{model="recommender",.*\} (\d+)$'
    return sum(map(int, re.findall(pattern, text, re.MULTILINE)))


def test_server_has_every_metric_of_the_page(server: TritonServer) -> None:
    assert len(ROWS) >= 15
    with Client(f"http://{server.http_url}") as client:
        client.recommend([SESSION], 5)
    text = metrics_of(server)
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    for name, (kind, labels) in ROWS.items():
        assert types[name] == kind, name
        samples = re.findall(rf"^{name}(?:\{{(.*)\}})? ", text, re.MULTILINE)
        assert samples, name
        for sample in samples:
            assert set(re.findall(r'(\w+)="', sample)) == labels, name


def test_failed_request_counts_twice(server: TritonServer) -> None:
    """As the page says, and the limit of the alert supposes."""
    before = failures(metrics_of(server))
    with Client(f"http://{server.http_url}") as client:
        for _ in range(3):
            with pytest.raises(ServingError, match="k is 1000"):
                client.recommend([SESSION], 1000)
    assert failures(metrics_of(server)) - before == 6


def test_proxy_has_no_metrics(server: TritonServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://{server.http_url}/metrics", timeout=5)


def test_alerts_queries_and_dashboard_use_metrics_of_the_page() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/pipeline.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [v["query"] for v in dashboard["templating"]["list"]]
    scaling = [rule["metricsQuery"] for rule in ADAPTER["rules"]["custom"]]
    expressions = [*QUERIES, *asked, *scaling, *(rule["expr"] for rule in RULES)]
    assert len(QUERIES) >= 9
    used = set(re.findall(r"nv_\w+", " ".join([*expressions, json.dumps(variables)])))
    assert used <= set(ROWS)
    assert all("nv_" in expression or "up{" in expression for expression in expressions)


def test_page_has_every_alert_and_the_name_that_scales() -> None:
    section = PAGE.partition("\n## Alerts and scaling\n")[2].partition("\n## ")[0]
    alerts = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert alerts == [rule["alert"] for rule in RULES]
    (name,) = [rule["name"]["as"] for rule in ADAPTER["rules"]["custom"]]
    assert f"`{name}`" in section
    assert f"{{name: {name}}}" in (ROOT / "deploy/kubernetes/scaling.yaml").read_text()
