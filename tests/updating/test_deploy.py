"""Examples in deploy/: they parse, and so does the command in them."""

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
import yaml

from pipeline.cli.main import app
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
DAY = re.compile(r"\$\((date [^()]*)\)")


def days(line: str) -> list[str]:
    """Output of each command that gives a day, run by the system's own `date`."""
    commands = [shlex.split(words) for words in DAY.findall(line)]
    return [subprocess.run(c, check=True, capture_output=True, text=True).stdout for c in commands]


def check_command(line: str) -> None:
    """The line runs `pipeline update` with options that it has, on the logs of two days."""
    dates = days(line)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d\n", date) for date in dates)
    assert dates[0] < dates[1]
    words = shlex.split(DAY.sub("DAY", line))
    first = words.index("pipeline")
    assert words[first + 1] == "update"
    update = typer.main.get_command(app).commands["update"]  # type: ignore[attr-defined]
    values = update.make_context("update", words[first + 2 :]).params
    assert values["folder"] == Path("shop")
    assert values["recipe"] == Path("shop.yaml")
    assert values["logs"] == ["logs/DAY.csv.gz"] * 2
    assert values["unless_worse"] == "ndcg@20:0.005"


def test_line_of_cron_runs_an_update() -> None:
    lines = (DEPLOY / "cron" / "pipeline-update").read_text(encoding="utf-8").splitlines()
    [job] = [line for line in lines if re.match(r"[0-9*]", line)]
    *when, user, command = job.split(maxsplit=6)
    assert (when, user) == (["10", "3", "*", "*", "*"], "pipeline")
    assert not re.search(r"(?<!\\)%", command), "cron ends a command at a %"
    check_command(command.replace(r"\%", "%").split(" && ")[1])


def read_unit(name: str) -> configparser.RawConfigParser:
    """A unit of systemd; keys keep their case."""
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / name)
    return unit


def test_unit_of_systemd_serves_a_repository_with_keys() -> None:
    unit = read_unit("pipeline-serve.service")
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "pipeline"
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    values = command.make_context("serve", words[1:]).params
    assert values["repository"] == Path("repository")
    assert values["host"] == "0.0.0.0"  # noqa: S104
    assert values["key_file"] == Path("keys.txt")
    assert unit["Service"]["KillMode"] == "mixed"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_unit_and_timer_of_systemd_run_an_update() -> None:
    units = {kind: read_unit(f"pipeline-update.{kind}") for kind in ("service", "timer")}
    command = units["service"]["Service"]["ExecStart"]
    assert not re.search(r"(?<!%)%(?!%)", command.replace("%%", "")), "% begins a specifier"
    program, option, script = shlex.split(command)
    assert (program, option) == ("/bin/bash", "-c")
    check_command(
        script.replace("%%", "%").replace("$$", "$").replace('"2 days ago"', "'2 days ago'")
    )
    assert units["service"]["Service"]["RestartPreventExitStatus"].split() == ["2", "3"]
    assert units["service"]["Service"]["NoNewPrivileges"] == "yes"
    assert units["timer"]["Install"]["WantedBy"] == "timers.target"


def resources() -> list[dict[str, Any]]:
    """What `kubectl apply -k deploy/kubernetes` makes."""
    folder = DEPLOY / "kubernetes"
    files = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [r for name in files for r in yaml.safe_load_all((folder / name).read_text())]


def pods() -> list[dict[str, Any]]:
    """Pod specifications, with the labels of the pods."""
    specifications = []
    for resource in resources():
        spec = resource["spec"].get("jobTemplate", resource)["spec"]
        if "template" in spec:
            specifications.append(spec["template"]["spec"] | spec["template"]["metadata"])
    return specifications


def test_pods_of_kubernetes_run_with_least_privileges() -> None:
    assert len(pods()) == 2
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 1000)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_server_of_kubernetes_serves_what_the_update_exports() -> None:
    (server,) = [c for p in pods() for c in p["containers"] if c["name"] == "triton"]
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    values = serve.make_context("serve", list(server["args"][1:])).params
    assert values["repository"] == Path("repository")
    (mount,) = [m for m in server["volumeMounts"] if m["name"] == "shop"]
    assert mount["subPath"] == "shop"  # of `update --from shop`
    assert mount["readOnly"] is True


def test_resources_of_kubernetes_select_pods_that_exist() -> None:
    labels = [pod["labels"] for pod in pods()]
    by_kind = {(r["kind"], r["metadata"]["name"]): r["spec"] for r in resources()}
    assert by_kind["Service", "recommender"]["selector"] in labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert by_kind[kind, "recommender"]["selector"]["matchLabels"] in labels
    policies = [spec for (kind, _), spec in by_kind.items() if kind == "NetworkPolicy"]
    assert sorted(p["podSelector"]["matchLabels"]["app"] for p in policies) == sorted(
        label["app"] for label in labels
    )
    scaler = by_kind["HorizontalPodAutoscaler", "recommender"]
    adapter = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())
    names = [rule["name"]["as"] for rule in adapter["rules"]["custom"]]
    assert [m["pods"]["metric"]["name"] for m in scaler["metrics"]] == names


def test_cron_job_of_kubernetes_runs_an_update() -> None:
    (job,) = [r for r in resources() if r["kind"] == "CronJob"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    job_spec = job["spec"]["jobTemplate"]["spec"]
    pod = job_spec["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"] == ["bash", "-c"]
    check_command(container["args"][0])
    [rule] = job_spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never"  # a pod failure policy needs it


def test_exit_code_of_a_refusal_reaches_the_shell() -> None:
    code = (
        "import typer\n"
        "from pipeline.cli.console import run_app\n"
        "from pipeline.cli.update import STAYS\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def refuse() -> None:\n"
        "    raise typer.Exit(STAYS)\n"
        "run_app(app)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 3
