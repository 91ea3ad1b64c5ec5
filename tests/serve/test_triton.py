"""The real Triton server of the nvidia-pytriton wheel: it starts, answers, refuses and ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from pipeline.core.errors import ServingError
from pipeline.serve.triton.ports import Ports, free_ports
from pipeline.serve.triton.server import TritonServer
from tests.serve.double import add_double

L = 4
NUM_ITEMS = 50
READY_SECONDS = 90  # generous: other work may share the cores

TOP_CONFIG = """
name: "top"
backend: "pytorch"
max_batch_size: 32
input [ { name: "item__0" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "score__0" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
ENSEMBLE_CONFIG = """
name: "both"
platform: "ensemble"
max_batch_size: 32
input [ { name: "item" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "score" data_type: TYPE_FP32 dims: [ 3 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "double" model_version: -1
      input_map { key: "weight" value: "item" }
      output_map { key: "doubled" value: "doubled" }
    },
    {
      model_name: "top" model_version: -1
      input_map { key: "item__0" value: "doubled" }
      output_map { key: "score__0" value: "score" }
    }
  ]
}
"""


class Top(torch.nn.Module):
    """Best scores of all items by their similarity to the sum of a session's items."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(NUM_ITEMS, 8)

    def forward(self, item: torch.Tensor) -> torch.Tensor:
        """(B, L) -> (B, 3)."""
        session = self.table(item.long()).sum(1)
        scores: torch.Tensor = (session @ self.table.weight.T).topk(3).values
        return scores


@pytest.fixture(scope="module")
def top() -> Top:
    torch.manual_seed(0)
    return Top().eval()


@pytest.fixture(scope="module")
def server(top: Top, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("models")
    add_double(repository)
    (repository / "top" / "1").mkdir(parents=True)
    (repository / "top" / "config.pbtxt").write_text(TOP_CONFIG)
    with torch.no_grad():
        torch.jit.trace(top, torch.zeros(2, L)).save(str(repository / "top" / "1" / "model.pt"))
    (repository / "both" / "1").mkdir(parents=True)
    (repository / "both" / "config.pbtxt").write_text(ENSEMBLE_CONFIG)
    with TritonServer(repository, ports=free_ports()) as started:
        started.wait_until_ready(timeout_seconds=READY_SECONDS)
        yield started
    assert not regions(started._id)


@pytest.fixture(scope="module")
def grpc(server: TritonServer) -> Iterator[Any]:
    with closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as client:
        yield client


@pytest.fixture
def http(server: TritonServer) -> Iterator[Any]:
    with closing(tritonclient.http.InferenceServerClient(server.http_url)) as client:
        yield client


def ask(module: Any, client: Any, item: np.ndarray) -> np.ndarray:
    field = module.InferInput("item", list(item.shape), "FP32")
    field.set_data_from_numpy(item)
    scores: np.ndarray = client.infer("both", [field]).as_numpy("score")
    return scores


def sessions(num_rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, NUM_ITEMS // 2, (num_rows, L)).astype(np.float32)


def assert_eager(top: Top, item: np.ndarray, answer: np.ndarray) -> None:
    with torch.inference_mode():
        scores = top(torch.from_numpy(2 * item))
    np.testing.assert_allclose(answer, scores.numpy(), rtol=1e-5)


def executions(client: Any, model: str) -> tuple[int, int]:
    """Inferences and executions of a model, once Triton, which counts after it answers, is done."""
    counts, before = (0, 0), (-1, -1)
    while counts != before:
        time.sleep(0.3)
        (statistics,) = client.get_inference_statistics(model).model_stats
        counts, before = (statistics.inference_count, statistics.execution_count), counts
    return counts


def arguments_of(pid: int) -> dict[str, str]:
    """Options of a running tritonserver; backend-config keeps only its last."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def regions(name: str) -> list[Path]:
    """Shared memory of the server with this id."""
    return list(Path("/dev/shm").glob(f"{name}*"))  # noqa: S108


def wait_for(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_an_ensemble_of_a_python_and_a_torchscript_model_answers_as_eager_torch(
    top: Top, grpc: Any, http: Any
) -> None:
    for num_rows in (1, 3, 32):
        item = sessions(num_rows, seed=num_rows)
        assert_eager(top, item, ask(tritonclient.http, http, item))
        assert_eager(top, item, ask(tritonclient.grpc, grpc, item))


def test_concurrent_requests_share_executions_and_each_gets_its_own_answer(
    top: Top, grpc: Any
) -> None:
    inferences, runs = executions(grpc, "double")
    start = threading.Barrier(16)

    def one(seed: int) -> None:
        item = sessions(1, seed)
        start.wait()
        assert_eager(top, item, ask(tritonclient.grpc, grpc, item))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))
    new_inferences, new_runs = executions(grpc, "double")
    assert new_inferences - inferences == 16
    assert new_runs - runs < 16


def test_a_bad_request_fails_alone_and_says_why(top: Top, grpc: Any) -> None:
    start = threading.Barrier(8)

    def one(seed: int) -> str | None:
        item = sessions(1, seed)
        if seed == 3:
            item[0, 0] = NUM_ITEMS
        start.wait()
        try:
            answer = ask(tritonclient.grpc, grpc, item)
        except InferenceServerException as error:
            return str(error)
        assert_eager(top, item, answer)
        return None

    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(one, range(8)))
    assert "index out of range" in str(errors[3])
    assert [error for error in errors if error is not None] == [errors[3]]


def test_rows_beyond_max_batch_size_are_refused(grpc: Any) -> None:
    with pytest.raises(InferenceServerException, match="batch-size must be <= 32"):
        ask(tritonclient.grpc, grpc, sessions(33, seed=0))


def test_apis_that_change_or_read_the_machine_are_closed(grpc: Any, http: Any) -> None:
    calls: list[Callable[[Any], object]] = [
        lambda client: client.get_model_repository_index(),
        lambda client: client.load_model("top"),
        lambda client: client.unload_model("top"),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("mine", "/mine", 8),
        lambda client: client.get_cuda_shared_memory_status(),
        lambda client: client.get_trace_settings(),
        lambda client: client.update_trace_settings("top", {"trace_level": ["TIMESTAMPS"]}),
        lambda client: client.get_log_settings(),
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
    ]
    for call in calls:
        for client in (grpc, http):
            with pytest.raises(InferenceServerException, match="is restricted"):
                call(client)


def test_it_listens_on_loopback_alone(server: TritonServer) -> None:
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            is_listening = state == "0A"
            if is_listening and int(port, 16) in (server.ports.http, server.ports.grpc):
                addresses.add(address)
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert addresses


def test_the_model_repository_is_not_written_to(server: TritonServer) -> None:
    assert not list(server.repository.rglob("__pycache__"))


def test_a_broken_model_ends_the_start_in_one_line(tmp_path: Path, temporary: Path) -> None:
    add_double(tmp_path / "models", "import no_such_module\n")
    log = tmp_path / "logs" / "triton.log"
    server = TritonServer(tmp_path / "models", ports=free_ports(), log_path=log)
    server.start()
    pid = server.pid
    with pytest.raises(ServingError) as caught:
        server.wait_until_ready(timeout_seconds=READY_SECONDS)
    message = str(caught.value)
    assert "failed to load 'double'" in message
    assert "No module named 'no_such_module'" in message
    assert str(log) in message
    assert "\n" not in message
    assert log.stat().st_size > 0
    assert not is_running(pid)
    assert not regions(server._id)
    assert not list(temporary.iterdir())


def test_a_port_in_use_is_an_error_before_anything_starts(
    small_repository: Path, temporary: Path
) -> None:
    ports = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.grpc))
        taken.listen()
        server = TritonServer(small_repository, ports=ports)
        with pytest.raises(
            ServingError, match=f"{ports.grpc} for grpc: the port is already in use"
        ):
            server.start()
    assert not server.is_alive()
    assert not list(temporary.iterdir())


def test_stop_leaves_no_process_and_no_file_and_can_be_repeated(
    small_repository: Path, temporary: Path
) -> None:
    # A path that a shell would split, for Triton starts its Python models through one.
    repository = small_repository.rename(small_repository.parent / "my models; $x")
    server = TritonServer(repository, ports=free_ports())
    server.stop()
    with server:
        server.wait_until_ready(timeout_seconds=READY_SECONDS)
        pid = server.pid
        assert regions(server._id)
        assert list(temporary.iterdir())
        with closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as client:
            assert client.is_model_ready("double")
    assert server.wait() == 0
    assert not is_running(pid)
    assert not regions(server._id)
    assert not list(temporary.iterdir())
    server.stop()


def test_killed_server_is_noticed_and_leaves_nothing(
    small_repository: Path, temporary: Path
) -> None:
    with TritonServer(
        small_repository, ports=Ports(http=0, grpc=0, metrics=0), host="localhost"
    ) as server:
        server.wait_until_ready(timeout_seconds=READY_SECONDS)
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == 128 + signal.SIGKILL
        assert not server.is_alive()
    assert not regions(server._id)
    assert not list(temporary.iterdir())


def test_the_server_ends_when_its_parent_is_killed(small_repository: Path, temporary: Path) -> None:
    # Started by a thread that ends at once: a signal tied to that thread would end the server.
    code = (
        "import sys, threading, time\n"
        "from pipeline.serve.triton.ports import free_ports\n"
        "from pipeline.serve.triton.server import TritonServer\n"
        "server = TritonServer(sys.argv[1], ports=free_ports())\n"
        "thread = threading.Thread(target=server.start)\n"
        "thread.start(); thread.join()\n"
        f"server.wait_until_ready({READY_SECONDS})\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(small_repository)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    try:
        pid = int(parent.stdout.readline())
        name = arguments_of(pid)["id"]
        assert is_running(pid)
        assert regions(name)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert wait_for(lambda: not is_running(pid), timeout_seconds=20)
    assert wait_for(lambda: not list(temporary.iterdir()), timeout_seconds=5)
    assert not regions(name)


def test_settings_that_contradict_each_other_are_errors() -> None:
    with pytest.raises(ServingError, match="three different ones"):
        Ports(http=8000, grpc=8000, metrics=8002)
