"""The compose file without an engine: what it promises, and the parts that run by themselves.

docker/check.sh shows that it is valid; docker/smoke.sh tries it with an engine.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
import tomllib
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.cli.main import app
from pipeline.exporting.run import export
from pipeline.serve.client.client import Client
from pipeline.serve.page.server import FILES
from pipeline.serve.triton.installation import (
    build_backends,
    build_python,
    environment,
    locate_package,
)
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import ROOT, SESSION, Shop

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SETTINGS = dict(
    line.split("=", 1)
    for line in (ROOT / ".env").read_text().splitlines()
    if line and not line.startswith("#")
)
FOREIGN = {"triton-gpu", "prometheus", "grafana"}
"""Services of images that others make."""
DASHBOARD = json.loads((ROOT / "docker/grafana/dashboards/pipeline.json").read_text())
DEFAULTS = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")


def filled(text: str) -> str:
    """What compose makes of a text with nothing set."""
    return DEFAULTS.sub(lambda m: m[2] or "", text).replace("$$", "$")


def test_env_holds_every_setting_with_its_default() -> None:
    used = dict(DEFAULTS.findall(TEXT))
    assert set(used) == set(SETTINGS) - {"COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"}
    named = {"LOGS": "demo-clicks"}  # of no folder, the volume
    assert {n: d for n, d in used.items() if d != SETTINGS[n]} == named
    assert SETTINGS["COMPOSE_PROFILES"] == "cpu"


@pytest.mark.parametrize("name", SERVICES)
def test_services_run_with_least_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["profiles"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service.get("ports", ()))
    if name not in FOREIGN:
        assert service["user"] == "1000:1000"
        assert service["read_only"] is True
    else:
        assert re.search(r":v?\d+\.\d+", filled(service["image"])), "not pinned"


def test_servers_mount_models_read_only() -> None:
    for name in ("triton", "triton-gpu", "proxy-gpu"):
        assert SERVICES[name]["volumes"] == ["models:/srv/pipeline/models:ro"]


def test_requests_reach_the_stock_image_through_the_proxy_alone() -> None:
    published = {name: service.get("ports", []) for name, service in SERVICES.items()}
    ends = {name: [port.rsplit(":", 1)[1] for port in published[name]] for name in published}
    assert ends["triton"] == ["8000", "8001", "8002"]
    assert ends["triton-gpu"] == ["8002"]
    assert ends["proxy-gpu"] == ["8000", "8001"]
    assert SERVICES["proxy-gpu"]["command"].startswith("proxy triton-gpu ")
    assert " http://proxy-gpu:8000 " in SERVICES["client-gpu"]["command"]


def test_stages_wait_for_each_other_and_skip_current_outputs() -> None:
    for suffix in ("", "-gpu"):
        chain = ["demo-clicks", "preprocess", "train", "export", "triton", "client"]
        if suffix:
            chain.insert(-1, "proxy")
        for before, name in pairwise(chain):
            is_server = before in ("triton", "proxy")
            state = "service_healthy" if is_server else "service_completed_successfully"
            assert SERVICES[name + suffix]["depends_on"] == {before + suffix: {"condition": state}}
        for name in chain[:4]:
            assert "--if-needed" in SERVICES[name + suffix]["command"]
    for name, service in SERVICES.items():
        gpus = name.endswith("-gpu") and not name.startswith(("demo-clicks", "proxy", "client"))
        assert ("resources" in service.get("deploy", {})) == gpus, name


@pytest.mark.parametrize("name", sorted(set(SERVICES) - FOREIGN))
def test_commands_of_services_parse(name: str) -> None:
    if "entrypoint" in SERVICES[name]:
        assert SERVICES[name]["entrypoint"][0] == "dask"
        return
    command, *arguments = shlex.split(filled(SERVICES[name]["command"]))
    context = typer.main.get_command(app).commands[command].make_context(command, arguments)
    assert context.params


def test_image_holds_tracked_files_only() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
    sources = {s.rstrip("*") for line in copied for s in line.split()}
    assert sources == allowed
    version = re.search(r'requires = \["hatchling==(\S+)"\]', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert f"ARG HATCHLING_VERSION={version[1]}\n" in dockerfile


def test_image_holds_all_files_of_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    for source in [*wheel["packages"], *wheel["force-include"]]:
        assert f"\nCOPY {source} {source}\n" in dockerfile, source
    # what git ignores hatchling leaves out of the wheel
    folder = ROOT / "pipeline" / "serve" / "page" / "static"
    files = sorted(folder.iterdir())
    assert {path.name for path in files} == {name for name, _ in FILES.values()}
    words = ["git", "check-ignore", *map(str, files)]
    ignored = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout == ""


def test_command_for_the_stock_image_serves_in_the_triton_of_the_wheel(
    shop: Shop, tmp_path: Path
) -> None:
    """All its options are taken, calls are closed, answers come; the image has a newer Triton."""
    repository = tmp_path / "models" / "demo"
    export(shop.run, repository)
    shell, flag, script = map(filled, SERVICES["triton-gpu"]["command"])
    ports = free_ports()
    backends = {
        "--model-repository=/srv/pipeline/models": f"--model-repository={tmp_path / 'models'}",
        "exec tritonserver": f"exec {locate_package()}/tritonserver/bin/tritonserver"
        f" --http-port={ports.http} --grpc-port={ports.grpc} --metrics-port={ports.metrics}"
        " --http-address=127.0.0.1 --grpc-address=127.0.0.1 --metrics-address=127.0.0.1",
    }
    for container_path, local_path in backends.items():
        assert container_path in script
        script = script.replace(container_path, local_path)
    with tempfile.TemporaryDirectory(prefix="triton-") as scratch:
        directory = build_backends(locate_package(), Path(scratch))
        script += f" --backend-directory={directory}"
        process = subprocess.Popen(
            [shell, flag, script],
            env=environment(locate_package(), build_python(Path(scratch))),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=scratch,
        )
        try:
            ready = f"http://127.0.0.1:{ports.http}/v2/health/ready"
            deadline = time.monotonic() + 120
            while not answers(ready):
                assert process.poll() is None, process.communicate()[0].decode()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            for url in (f"http://127.0.0.1:{ports.http}", f"grpc://127.0.0.1:{ports.grpc}"):
                with Client(url) as client:
                    assert client.recommend([SESSION], 5).items.shape == (1, 5)
            for call in ("repository/index", "systemsharedmemory/status", "logging"):
                with pytest.raises(urllib.error.HTTPError, match="403"):
                    request(f"http://127.0.0.1:{ports.http}/v2/{call}", call)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.communicate(timeout=30)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def request(url: str, call: str) -> None:
    method = "POST" if call == "repository/index" else "GET"
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5):
        pass


def test_triton_exports_every_metric_of_the_dashboard_and_the_alerts(server: TritonServer) -> None:
    with Client(f"http://{server.http_url}") as client:
        client.recommend([SESSION], 5)
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=5) as response:
        text = response.read().decode()
    labels_of: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{([^}]*)\})? ", text, re.MULTILINE):
        labels_of.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    asked = [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]
    (alerts,) = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    adapter = yaml.safe_load((ROOT / "deploy/kubernetes/prometheus-adapter.yaml").read_text())
    scaling = [rule["metricsQuery"] for rule in adapter["rules"]["custom"]]
    for expression in [*asked, *(rule["expr"] for rule in alerts["rules"]), *scaling]:
        for metric in re.findall(r"nv_\w+", expression):
            assert metric in labels_of, metric
        for label in re.findall(r"by \((\w+)\)", expression):
            names = re.findall(r"nv_\w+", expression)
            labels = set().union(*(labels_of[n] for n in names))
            assert label == "step" or label in labels, expression
    # the panels recognise steps by the names of the models
    models = set(re.findall(r'nv_inference_count\{model="([^"]+)"', text))
    (pattern,) = {p for e in asked for p in re.findall(r'model=~"([^"]+)"', e)}
    pattern = pattern.replace("${model}", "recommender")
    steps = {m for m in models if re.fullmatch(pattern, m)}
    assert steps == models - {"recommender", "recommender_v1"}
    assert len(steps) == 2


def test_monitoring_services_name_each_other() -> None:
    scraped = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text())
    targets = [
        t for c in scraped["scrape_configs"] for s in c["static_configs"] for t in s["targets"]
    ]
    assert targets == ["triton:8002"]
    assert SERVICES["triton-gpu"]["networks"]["default"]["aliases"] == ["triton"]
    folder = ROOT / "docker/grafana/provisioning"
    source = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    used = {t["datasource"]["uid"] for panel in DASHBOARD["panels"] for t in panel["targets"]}
    assert used == {source["uid"]}
    provider = yaml.safe_load((folder / "dashboards/pipeline.yml").read_text())["providers"][0]
    mounts = dict(m.split(":")[:2] for m in SERVICES["grafana"]["volumes"])
    assert mounts["./docker/grafana/dashboards"] == provider["options"]["path"]
