"""Triton's log as JSON, or as a stream: every line is there, and nothing of it stops Triton."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import ServingError
from pipeline.serve.triton.log_relay import LONGEST_RECORD, Records, as_record
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import ROOT, Shop
from tests.serve.test_restart import assert_nothing_is_left, processes
from tests.serve.test_triton import READY_SECONDS, wait_for

NOW = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
FIRST = (
    "E1231 23:59:58.194137 6005 model_lifecycle.cc:642] \"failed to load 'x': \\n\\nAt: a.py(3)\""
)
TABLE = "I0101 00:00:01.000001 7 server.cc:604] \n+---+\n| a |\n+---+\n"
EVERY_LOG = (FIRST + "\n" + TABLE + "\nTraceback\n  line 1\n").encode()


def parsed(chunks: list[bytes]) -> list[dict[str, object]]:
    records = Records()
    lines = [line for chunk in chunks for line in records.feed(chunk)]
    return [json.loads(line) for line in [*lines, *records.finish()]]


def test_a_record_has_time_with_a_year_level_process_source_and_the_text_without_quotes() -> None:
    assert as_record(FIRST, NOW) == {
        "time": "2025-12-31T23:59:58.194137Z",
        "level": "error",
        "process": 6005,
        "source": "model_lifecycle.cc:642",
        "message": "failed to load 'x': \n\nAt: a.py(3)",
    }


@pytest.mark.parametrize(
    "time", ["0229 00:00:00.000000", "1399 00:00:00.000000", "0000 99:99:99.999999"]
)
def test_a_date_that_there_is_not_becomes_that_of_now(time: str) -> None:
    record = as_record(f"I{time} 1 a.cc:1] x", NOW)
    assert record["time"] == "2026-01-01T00:00:05.000000Z"
    assert record["message"] == "x"


def test_a_table_and_a_traceback_stay_with_what_they_follow() -> None:
    first, second = parsed([EVERY_LOG])
    assert first["level"] == "error"
    assert second["message"] == "+---+\n| a |\n+---+\n\nTraceback\n  line 1"
    (alone,) = parsed([b"Traceback\n  line 1\n"])
    assert (alone["level"], alone["message"]) == ("info", "Traceback\n  line 1")


def test_what_triton_says_when_it_fails_is_a_record_of_its_own() -> None:
    lines = b'I0101 00:00:01.000001 7 http_server.cc:362] "Started \\"it\\""\nnote\n'
    lines += b"terminate called after throwing\n  what(): x\nSignal (6) received.\n"
    lines += b"error: creating server: Internal\n"
    found = parsed([lines])
    assert [record["level"] for record in found] == ["info", "fatal", "fatal", "error"]
    assert found[0]["message"] == 'Started "it"\nnote'
    assert found[1]["message"] == "terminate called after throwing\n  what(): x"


@pytest.mark.parametrize(
    "text", ['I0101 00:00:01.000001 7 a.cc:1] "\\ud800"', f"I0101 00:00:01.0 {'9' * 5000} a] x"]
)
def test_no_line_ends_the_process_that_reads(text: str) -> None:
    (record,) = parsed([text.encode()])
    assert isinstance(record["message"], str)


@given(cuts=st.lists(st.integers(0, len(EVERY_LOG)), max_size=8))
def test_it_does_not_matter_how_the_bytes_come(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(EVERY_LOG)]
    chunks = [EVERY_LOG[a:b] for a, b in pairwise(bounds)]
    assert parsed(chunks) == parsed([EVERY_LOG])


@given(st.binary(max_size=300), st.integers(1, 9))
def test_whatever_is_printed_each_line_is_an_object_and_no_text_is_lost(
    data: bytes, step: int
) -> None:
    found = parsed([data[i : i + step] for i in range(0, len(data), step)])
    text = "".join(str(record["message"]) for record in found)
    if not data.lstrip().startswith((b"I", b"W", b"E", b"F", b"V")):
        assert "".join(text.split()) == "".join(data.decode(errors="replace").split())


def test_a_line_without_an_end_is_cut_and_not_kept_for_ever() -> None:
    records = Records()
    found = [line for _ in range(5) for line in records.feed(b"x" * LONGEST_RECORD)]
    lengths = [len(json.loads(line)["message"]) for line in [*found, *records.finish()]]
    assert sum(lengths) == 5 * LONGEST_RECORD
    assert max(lengths) <= 2 * LONGEST_RECORD


def test_a_log_in_json_is_complete_when_the_server_has_stopped(
    small_repository: Path, tmp_path: Path, temporary: Path
) -> None:
    log = tmp_path / "logs" / "triton.json"
    server = TritonServer(
        small_repository, ports=free_ports(), log_path=log, log_format="json", restarts=1
    )
    with server:
        server.wait_until_ready(READY_SECONDS)
        before = server.pid
        os.kill(before, signal.SIGKILL)
        assert wait_for(lambda: server.pid != before and server._is_ready(), READY_SECONDS)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"info", "warning"} <= {record["level"] for record in records}
    assert any("Started HTTPService" in record["message"] for record in records)
    assert any("It starts again" in record["message"] for record in records)
    assert any("| double | 1       | READY" in record["message"] for record in records)
    assert all(set(record) >= {"time", "level", "message"} for record in records)
    assert_nothing_is_left(server._id, temporary)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_why_a_start_failed_is_told_whatever_becomes_of_the_log(
    log_format: str, small_repository: Path, tmp_path: Path, temporary: Path
) -> None:
    next(small_repository.glob("*/1/model.py")).write_text("import nothing_of_this_name\n")
    for log in (tmp_path / "triton.log", "/dev/null"):
        server = TritonServer(
            small_repository, ports=free_ports(), log_path=log, log_format=log_format
        )
        server.start()
        with pytest.raises(ServingError, match=f"nothing_of_this_name.*log: {log}"):
            server.wait_until_ready(READY_SECONDS)
        assert_nothing_is_left(server._id, temporary)


def test_a_server_goes_on_when_nobody_takes_its_log_any_more(
    small_repository: Path, tmp_path: Path, temporary: Path
) -> None:
    server = TritonServer(
        small_repository, ports=free_ports(), log_path=tmp_path / "log", log_format="json"
    )
    with server:
        server.wait_until_ready(READY_SECONDS)
        relay = [p for p in processes(server._id) if b"relay" in cmdline(p)]
        assert len(relay) == 1
        os.kill(relay[0], signal.SIGKILL)
        for _ in range(20):  # each of which Triton writes a line about
            assert not _load(server, "nobody")
        assert server._is_ready()
    assert_nothing_is_left(server._id, temporary)


def test_the_command_writes_its_log_to_stderr_and_ends_with_the_last_record(
    shop: Shop, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pipeline", "serve", str(shop.repository)]
    command += ["--log", "-", "--log-format", "json"]
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
    # the command's own last word may follow
    records = [json.loads(line) for line in errors.splitlines() if line != "Stopped."]
    assert any("successfully loaded 'recommender'" in record["message"] for record in records)
    assert any("successfully unloaded 'recommender'" in record["message"] for record in records)


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _load(server: TritonServer, model: str) -> bool:
    import http.client

    connection = http.client.HTTPConnection(server.http_url, timeout=5)
    connection.request("POST", f"/v2/models/{model}/infer", body=b"{}")
    status = connection.getresponse().status
    connection.close()
    return status == 200
