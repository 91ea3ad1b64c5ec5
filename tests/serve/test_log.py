"""Triton's log: in a file or on standard error, and the reason of a failed start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import ServingError
from pipeline.serve.triton.log import LogFormat, failure_line
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import ROOT, Shop
from tests.serve.test_restart import assert_nothing_is_left
from tests.serve.test_triton import READY_SECONDS, wait_for


def test_log_file_holds_all_of_triton_and_the_restarts(
    small_repository: Path, tmp_path: Path, temporary: Path
) -> None:
    log = tmp_path / "logs" / "triton.log"
    server = TritonServer(
        small_repository, ports=free_ports(), log_path=log, log_format="ISO8601", restarts=1
    )
    with server:
        server.wait_until_ready(READY_SECONDS)
        before = server.pid
        os.kill(before, signal.SIGKILL)
        assert wait_for(lambda: server.pid != before and server._is_ready(), READY_SECONDS)
    text = log.read_text()
    assert text.count("Started HTTPService") == 2
    assert text.count("It starts again") == 1
    assert "| double | 1       | READY" in text
    assert any(line[:2] == "20" and "Z I " in line for line in text.splitlines())
    assert_nothing_is_left(server._id, temporary)


@pytest.mark.parametrize("log_format", ["default", "ISO8601"])
def test_failed_start_reports_its_cause_or_where_the_log_is(
    log_format: LogFormat, small_repository: Path, tmp_path: Path, temporary: Path
) -> None:
    next(small_repository.glob("*/1/model.py")).write_text("import nothing_of_this_name\n")
    log = tmp_path / "triton.log"
    for path, words in (
        (log, f"nothing_of_this_name.*log: {log}"),
        ("/dev/null", "see its log in /dev/null"),
    ):
        server = TritonServer(
            small_repository, ports=free_ports(), log_path=path, log_format=log_format
        )
        server.start()
        with pytest.raises(ServingError, match=words):
            server.wait_until_ready(READY_SECONDS)
        assert_nothing_is_left(server._id, temporary)


def test_command_writes_the_log_to_stderr_until_the_server_ends(shop: Shop) -> None:
    command = [sys.executable, "-m", "pipeline", "serve", str(shop.repository), "--log", "-"]
    for port in ("--http-port", "--grpc-port", "--metrics-port"):
        command += [port, "0"]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("Ready: http://127.0.0.1:")
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert "successfully loaded 'recommender'" in errors
    assert "successfully unloaded 'recommender'" in errors


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            'E1122 01:16:53.1 6005 server.cc:241] "CudaDriverHelper has not been initialized."\n'
            'E1122 01:16:53.1 6005 backend_model.cc:692] "ERROR: Failed to create instance: X"\n'
            "E1122 01:16:53.1 6005 model_lifecycle.cc:642] \"failed to load 'a' version 1: "
            'Internal: ValueError: no table\\n\\nAt:\\n  /a/1/model.py(3): initialize\\n"\n'
            "error: creating server: Internal - failed to load all models\n",
            "failed to load 'a' version 1: Internal: ValueError: no table",
        ),
        (
            "[libprotobuf ERROR /x/text_format.cc:337] Error parsing text-format "
            'inference.ModelConfig: 6:41: Unknown enumeration value of "TYPE_INT65".\n'
            'E1122 01:17:04.0 6246 model_repository_manager.cc:1460] "Poll failed for model '
            "directory 'a': failed to read text proto from a/config.pbtxt\"\n",
            "Poll failed for model directory 'a': failed to read text proto from a/config.pbtxt: "
            '6:41: Unknown enumeration value of "TYPE_INT65".',
        ),
        (
            'E1122 01:17:35.3 6963 main.cc:245] "failed to start GRPC service: Unavailable - '
            "Socket '127.0.0.1:8001' already in use \"\n",
            "failed to start GRPC service: Unavailable - Socket '127.0.0.1:8001' already in use",
        ),
        (
            '2026-11-22T01:17:35Z E 6963 main.cc:245] "failed to start HTTP service"\n',
            "failed to start HTTP service",
        ),
        ("I1122 01:17:35.3 6963 main.cc:245] fine\n", "the log holds no error"),
    ],
)
def test_failure_line_is_the_cause_of_a_failed_start(log: str, expected: str) -> None:
    assert failure_line(log) == expected
