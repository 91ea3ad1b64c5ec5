"""Every example runs whole, and its clients get what ours gets."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import Client
from pipeline.serve.triton.server import TritonServer
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
RESULTS = {
    "getting_started": ("run ", "session-knn", "sku-0"),
    "own_log": ("lines with another number of columns", "duplicated rows, dropped"),
    "custom_block_and_loss": ("run ", "session-knn"),
    "multi_task": ("training-mean", "sku-0"),
    "comparison_for_a_paper": ("sasrec (2 seeds)", "gru4rec (2 seeds)"),
    "nightly_update": ("version 1\n", "accepted: True", "version 1 is served again"),
}
"""What the output of each program has."""
CLIENTS = {
    "client.py": [sys.executable],
    "client.sh": ["sh"],
    "Client.java": ["java"],
    "client.go": ["go", "run"],
}
"""Program that runs each client."""


def test_every_example_is_run() -> None:
    assert {path.stem for path in PROGRAMS} - {"from_transformers4rec"} == set(RESULTS)
    assert {path.name for path in (EXAMPLES / "clients").iterdir()} == set(CLIENTS)


@pytest.mark.train
@pytest.mark.parametrize("name", RESULTS)
def test_program_runs_whole(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    output = capsys.readouterr().out
    for part in RESULTS[name]:
        assert part in output, output


@pytest.mark.parametrize("name", CLIENTS)
def test_client_gets_the_list_of_ours(name: str, server: TritonServer, tmp_path: Path) -> None:
    program, *arguments = CLIENTS[name]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed here")
    items = ["sku-00001", "sku-00002"]
    with Client(f"http://{server.http_url}") as client:
        expected = client.recommend([{"item_id": items}], 5).items[0].tolist()
    command = [program, *arguments, EXAMPLES / "clients" / name, f"http://{server.http_url}"]
    done = subprocess.run([*command, *items], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if name == "client.sh":
        (output,) = json.loads(done.stdout)["outputs"]
        assert output["data"] == expected
    else:
        assert done.stdout.split() == expected
    # a server without this model
    command[-1] += "/v2/models/other/infer?"
    refused = subprocess.run([*command, *items], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
