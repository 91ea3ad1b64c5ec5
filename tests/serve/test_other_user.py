"""An exported repository, copied and read-only, served by a user who may write nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.serve.client.client import Client
from tests.conftest import ROOT, SESSION, Shop

NOBODY = 65534


def as_nobody() -> list[str]:
    """What runs a command as another user, who can write none of our files.

    Where this Python stands below a folder of root's own, that user may still read everything.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can become another user, and this is none")
    tool = shutil.which("setpriv")
    if tool is None:
        pytest.skip("`setpriv` of util-linux, which changes the user, is not here")
    plain = [tool, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    reading = [*plain, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    # one Python starts another, as serving does
    inner = "import tritonclient.grpc"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    probe = [sys.executable, "-c", outer]
    subprocess.run(probe, check=True, timeout=120)  # what fails for everybody is no reason to skip
    for command in (plain, reading):
        if subprocess.run([*command, *probe], capture_output=True, timeout=120).returncode == 0:
            return command
    pytest.skip("another user can neither read this Python nor be given the right to read it")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Folder that other users may enter; those of pytest are closed."""
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_copy_that_is_read_only_is_served_by_another_user(shop: Shop, open_folder: Path) -> None:
    prefix = as_nobody()
    copied = open_folder / "a copy"
    shutil.copytree(shop.repository, copied)
    for path in (*copied.rglob("*"), copied):
        path.chmod(0o555 if path.is_dir() else 0o444)
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    command = [sys.executable, "-m", "pipeline", "serve", str(copied), "--json"]
    for port in ("--http-port", "--grpc-port", "--metrics-port"):
        command += [port, "0"]
    environment = {"TMPDIR": str(home), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    serve = subprocess.Popen(
        [*prefix, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert serve.stdout is not None
    try:
        line = serve.stdout.readline()
        if line:
            facts = json.loads(line)
            assert Path(f"/proc/{serve.pid}").stat().st_uid == NOBODY
            for url in (facts["http"], facts["grpc"]):
                with Client(url) as client:
                    assert client.recommend([SESSION], 4).items.shape == (1, 4)
    finally:
        serve.send_signal(signal.SIGTERM)
        _, errors = serve.communicate(timeout=60)
    assert line, errors
    assert serve.returncode == 0, errors
    assert not list(copied.rglob("__pycache__"))
    assert {path.stat().st_uid for path in copied.rglob("*")} == {0}
    assert not list(home.glob("triton-*"))
