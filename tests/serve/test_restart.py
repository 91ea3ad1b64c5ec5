"""A Triton that a signal ends comes back, a bounded number of times, and never after a stop."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.core.errors import ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import ROOT, SESSION, Shop
from tests.serve.double import DOUBLE_MODEL, add_double
from tests.serve.test_soak import model_processes
from tests.serve.test_triton import (
    READY_SECONDS,
    arguments_of,
    regions,
    wait_for,
)


def processes(name: str) -> list[int]:
    """Triton, its supervisor and its instances, all of whose command lines name the server."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name.encode() in path.read_bytes():
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return pids


def assert_nothing_is_left(name: str, temporary: Path) -> None:
    assert wait_for(lambda: not processes(name), timeout_seconds=5)
    assert not regions(name)
    assert not list(temporary.iterdir())


def restarted(server: TritonServer, before: int) -> int:
    """The new process id."""
    assert wait_for(lambda: server.pid != before and server._is_ready(), READY_SECONDS)
    return server.pid


@pytest.mark.slow
def test_server_without_a_proxy_recovers_from_a_shape_of_terabytes(
    shop: Shop, tmp_path: Path, temporary: Path
) -> None:
    log = tmp_path / "triton.log"
    own = tmp_path / "repository"  # the other one may be served beside this
    shutil.copytree(shop.repository, own)
    command = [sys.executable, "-m", "pipeline", "serve", str(own), "--no-proxy", "--json"]
    for port in ("--http-port", "--grpc-port", "--metrics-port"):
        command += [port, "0"]
    serve = subprocess.Popen(
        [*command, "--log", str(log)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert serve.stdout is not None
    try:
        facts = json.loads(serve.stdout.readline())
        address = facts["http"].removeprefix("http://")
        with Client(facts["grpc"]) as client:
            before = client.recommend([SESSION], 5).items.tolist()
        took = []
        for _ in range(2):
            began = time.monotonic()
            ask_for_terabytes(address)
            for url in (facts["http"], facts["grpc"]):
                assert wait_for(lambda u=url: lists(u) == before, READY_SECONDS)  # type: ignore[misc]
            took.append(time.monotonic() - began)
        print("answers again after", ", ".join(f"{seconds:.1f} s" for seconds in took))
        (name,) = {n for n in map(name_of, processes(str(own))) if n}
    finally:
        serve.terminate()
        _, errors = serve.communicate(timeout=60)
    assert serve.returncode == 0
    lines = errors.splitlines()
    assert [line[:49] for line in lines] == [
        "Triton was ended by signal 6 (SIGABRT). It starts"
    ] * 2
    assert log.read_text().count("Triton was ended by signal 6") == 2
    assert_nothing_is_left(name, temporary)


def name_of(pid: int) -> str:
    return arguments_of(pid).get("id", "")


def ask_for_terabytes(address: str) -> None:
    shape = {"name": "price", "shape": [1, 4_000_000_000_000], "datatype": "FP64", "data": [1]}
    with closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request("POST", "/v2/models/recommender/infer", json.dumps({"inputs": [shape]}))
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            connection.getresponse()


def lists(url: str) -> object:
    try:
        with Client(url, timeout=5) as client:
            return client.recommend([SESSION], 5).items.tolist()
    except ServingError:
        return None


@pytest.mark.parametrize("step", ["requests", "model"])
def test_killed_model_process_is_restarted(
    shop: Shop, tmp_path: Path, temporary: Path, step: str
) -> None:
    # Triton 2.51 would stay ready and refuse every request: such a process is not started again
    own = tmp_path / "repository"
    shutil.copytree(shop.repository, own)
    with TritonServer(own, ports=free_ports(), restarts=1) as server:
        server.wait_until_ready(READY_SECONDS)
        name, before = server._id, server.pid
        url = f"http://{server.http_url}"
        expected = lists(url)
        assert expected is not None
        [instance] = model_processes(before, f"recommender_{step}_v1")
        os.kill(instance, signal.SIGKILL)
        restarted(server, before)
        assert lists(url) == expected
    assert_nothing_is_left(name, temporary)


def test_number_of_restarts_is_bounded(small_repository: Path, temporary: Path) -> None:
    reports: list[str] = []
    with TritonServer(small_repository, ports=free_ports(), restarts=2) as server:
        server.wait_until_ready(READY_SECONDS)
        name, pid = server._id, server.pid
        for _ in range(2):
            old = set(regions(name))
            os.kill(pid, signal.SIGSEGV)
            pid = restarted(server, pid)
            assert not old & set(regions(name))
        os.kill(pid, signal.SIGKILL)
        assert server.wait(reports.append) == 128 + signal.SIGKILL
        assert not server.is_alive()
    assert_nothing_is_left(name, temporary)
    assert [line.split(". ")[0] for line in reports] == [
        "Triton was ended by signal 11 (SIGSEGV)"
    ] * 2
    assert "time 2 of at most 2 in 10 minutes" in reports[1]
    assert server.ending == ("Triton was ended by signal 9 (SIGKILL) after 2 restarts")


def test_triton_that_was_never_ready_is_not_restarted(tmp_path: Path, temporary: Path) -> None:
    begun = tmp_path / "begun"
    slow = (
        f"    def initialize(self, args):\n        open({str(begun)!r}, 'a').write('x')\n"
        "        import time; time.sleep(60)\n"
    )
    head, tail = DOUBLE_MODEL.split("class TritonPythonModel:\n")
    add_double(tmp_path / "models", f"{head}class TritonPythonModel:\n{slow}{tail}")
    with TritonServer(tmp_path / "models", ports=free_ports(), restarts=5) as server:
        assert wait_for(begun.exists, READY_SECONDS)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServingError, match="Triton did not start"):
            server.wait_until_ready(READY_SECONDS)
        assert server.wait() == 128 + signal.SIGKILL
    assert begun.read_text() == "x"
    for log in temporary.glob("*.log"):  # which the message names
        log.unlink()
    assert_nothing_is_left(server._id, temporary)


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.3, 0.6, 1.2])
def test_stop_during_a_restart_stops_the_server(
    small_repository: Path, temporary: Path, pause: float
) -> None:
    with TritonServer(small_repository, ports=free_ports(), restarts=5) as server:
        server.wait_until_ready(READY_SECONDS)
        os.kill(server.pid, signal.SIGKILL)
        time.sleep(pause)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10
        # the stop may come before the supervisor has seen the end, which is then what it was
        assert server.wait() in ((0, 128 + signal.SIGKILL) if pause == 0 else (0,))
    assert_nothing_is_left(server._id, temporary)


@pytest.mark.parametrize("pause", [0.1, 0.6])
def test_launcher_killed_during_a_restart_leaves_nothing(
    small_repository: Path, temporary: Path, pause: float
) -> None:
    code = (
        "import os, signal, sys, time\n"
        "from pipeline.serve.triton.ports import free_ports\n"
        "from pipeline.serve.triton.server import TritonServer\n"
        "server = TritonServer(sys.argv[1], ports=free_ports(), restarts=5)\n"
        "server.start()\n"
        f"server.wait_until_ready({READY_SECONDS})\n"
        "print(server._id, flush=True)\n"
        "os.kill(server.pid, signal.SIGKILL)\n"
        f"time.sleep({pause})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code, str(small_repository)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    out, _ = caller.communicate(timeout=READY_SECONDS)
    assert caller.returncode == -signal.SIGKILL
    name = out.strip()
    assert wait_for(lambda: not processes(name), timeout_seconds=30)
    assert_nothing_is_left(name, temporary)
