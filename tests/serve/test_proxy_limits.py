"""Bounds of the proxy on time, connections, waiting requests and what is checked elsewhere."""

import asyncio
import gzip
import http.client
import json
import os
import queue
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError
from pipeline.serve.client.client import Client
from pipeline.serve.proxy import http2
from pipeline.serve.proxy.check_process import CheckProcess
from pipeline.serve.proxy.grpc_streams import AnswerCounter
from pipeline.serve.proxy.limits import SMALL_BYTES, Limits
from pipeline.serve.proxy.proxy import Proxy, ProxyOptions
from pipeline.serve.triton.ports import Ports, free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import SESSION
from tests.serve.test_proxy import INFER, ITEM, stream_request

HOST = "127.0.0.1"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
INFER_HEADERS = b"\x83\x86" + http2.write_literal(b":path", METHOD.encode())


@contextmanager
def proxy_of(triton: Ports, repository: Path | None = None, **limits: Any) -> Iterator[Ports]:
    """Ports of a proxy with other limits before a Triton."""
    ports = free_ports()
    options = ProxyOptions(
        http_host=HOST,
        grpc_host=HOST,
        ports=ports,
        repository=repository,
        triton_host=HOST,
        triton_ports=triton,
        tls=None,
        limits=Limits(**limits),
    )
    proxy = Proxy(options)
    proxy.start()
    try:
        yield ports
    finally:
        proxy.stop()


@pytest.fixture
def silent() -> Iterator[Ports]:
    """Ports of something that takes connections and answers nothing."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(2)]
        numbers = [listener.getsockname()[1] for listener in listeners]
        yield Ports(http=numbers[0], grpc=numbers[1], metrics=0)


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), 10)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def post(port: int, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(HOST, port, timeout=30)) as connection:
        connection.request("POST", INFER, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize(
    ("start", "drip", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\nX: ", b"a", b"408"),
        (f"POST {INFER} HTTP/1.1\r\nContent-Length: 99\r\n\r\n".encode(), b"a", b"408"),
        (b"", b"", b""),
    ],
    ids=["headers", "body", "nothing"],
)
def test_connection_that_drips_over_http_is_closed_in_time(
    server: TritonServer, start: bytes, drip: bytes, status: bytes
) -> None:
    with (
        proxy_of(server.triton_ports, head_seconds=0.6, body_seconds=0.6) as ports,
        closing(connect(ports.http)) as connection,
    ):
        began = time.monotonic()
        connection.sendall(start)
        connection.settimeout(0.1)
        answer = b""
        while time.monotonic() < began + 10:
            try:
                part = connection.recv(1_000)
            except TimeoutError:
                connection.sendall(drip)
                continue
            except ConnectionResetError:
                break
            if not part:
                break
            answer += part
        assert answer[9:12] == status
        assert 0.5 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    "start",
    [
        b"",
        http2.PREFACE[:5],
        http2.PREFACE + http2.write_frame(http2.HEADERS, 0, 1, b""),
        http2.PREFACE + http2.write_frame(http2.DATA, 0, 1, b"abcdef")[:-2],
    ],
    ids=["nothing", "preface", "headers", "frame"],
)
def test_connection_that_begins_and_stops_over_grpc_is_closed_in_time(
    server: TritonServer, start: bytes
) -> None:
    with (
        proxy_of(server.triton_ports, head_seconds=0.6) as ports,
        closing(connect(ports.grpc)) as connection,
    ):
        began = time.monotonic()
        connection.sendall(start)
        rest(connection)
        assert 0.5 < time.monotonic() - began < 5


def test_idle_connections_close_and_clients_open_new_ones(server: TritonServer) -> None:
    with proxy_of(server.triton_ports, server.repository, idle_seconds=0.6) as ports:
        for url in (f"http://{HOST}:{ports.http}", f"grpc://{HOST}:{ports.grpc}"):
            with Client(url) as client:
                for _ in range(2):
                    assert client.recommend([SESSION], 3).items.shape == (1, 3)
                    time.sleep(1.5)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_connection_too_many_closes_the_one_that_is_idle_longest(
    server: TritonServer, protocol: str
) -> None:
    with proxy_of(server.triton_ports, server.repository, max_connections=3) as ports:
        port = getattr(ports, protocol)
        with ExitStack() as stack:
            idle = [stack.enter_context(closing(connect(port))) for _ in range(8)]
            with Client(f"{protocol}://{HOST}:{port}") as client:
                assert client.recommend([SESSION], 3).items.shape == (1, 3)
                assert client.recommend([SESSION], 3).items.shape == (1, 3)
            for connection in idle[:6]:
                assert rest(connection) == b""


def test_requests_beyond_those_that_may_wait_are_refused_at_once(silent: Ports) -> None:
    body = json.dumps({"inputs": [ITEM]}).encode()
    with (
        proxy_of(silent, max_waiting=4) as ports,
        ExitStack() as stack,
    ):
        for _ in range(4):
            connection = stack.enter_context(closing(connect(ports.http)))
            head = f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
        time.sleep(0.3)
        status, text = post(ports.http, body)
        assert (status, b"4 requests wait already" in text) == (503, True)
        message = stream_request(False)
        message = b"\0" + len(message).to_bytes(4, "big") + message
        call = stack.enter_context(closing(connect(ports.grpc)))
        call.sendall(
            http2.PREFACE
            + http2.write_frame(http2.HEADERS, http2.END_HEADERS, 1, INFER_HEADERS)
            + http2.write_data(1, message, ends=True)
        )
        answer = call.recv(65_536)
        assert b"4 requests wait already" in answer
        assert b"grpc-status\x018" in answer, "RESOURCE_EXHAUSTED"


def test_client_that_asks_too_often_is_refused_for_a_second(server: TritonServer) -> None:
    body = json.dumps({"inputs": [ITEM]}).encode()
    with proxy_of(server.triton_ports, server.repository, rate=2) as ports:
        assert [post(ports.http, body)[0] for _ in range(5)] == [200] * 4 + [429]
        with closing(http.client.HTTPConnection(HOST, ports.http, timeout=5)) as connection:
            connection.request("POST", INFER, body)
            response = connection.getresponse()
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            assert b"more than 2 requests a second" in response.read()
            connection.request("GET", "/v2/models/recommender")  # which no model answers
            assert connection.getresponse().status == 200
        with grpc.insecure_channel(f"{HOST}:{ports.grpc}") as channel:
            infer = channel.unary_unary(METHOD)
            with pytest.raises(grpc.RpcError, match="more than 2 requests a second") as caught:
                infer(stream_request(False), timeout=20)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            time.sleep(1.1)
            assert b"sku-" in infer(stream_request(False), timeout=20)


def test_places_of_requests_are_free_again_after_them(server: TritonServer) -> None:
    with proxy_of(server.triton_ports, server.repository, max_waiting=1) as ports:
        for url in (f"http://{HOST}:{ports.http}", f"grpc://{HOST}:{ports.grpc}") * 3:
            with Client(url) as client:
                for _ in range(3):
                    assert client.recommend([SESSION], 3).items.shape == (1, 3)
        with grpc.insecure_channel(f"{HOST}:{ports.grpc}") as channel:
            stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            for _ in range(3):
                call = stream(iter([stream_request(False)]), timeout=20)
                assert len(list(call)) == 1


def test_triton_that_does_not_answer_is_a_refusal_in_time(silent: Ports) -> None:
    with proxy_of(silent, request_seconds=0.6) as ports:
        began = time.monotonic()
        status, text = post(ports.http, json.dumps({"inputs": [ITEM]}).encode())
        assert (status, b"too long to answer" in text) == (504, True)
        assert 0.5 < time.monotonic() - began < 5


def test_late_answer_over_grpc_is_deadline_exceeded(server: TritonServer) -> None:
    with proxy_of(server.triton_ports, server.repository, request_seconds=0.2) as ports:
        [instance] = [
            pid
            for pid in children(server.pid)
            if "recommender_requests" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        os.kill(instance, signal.SIGSTOP)
        try:
            with grpc.insecure_channel(f"{HOST}:{ports.grpc}") as channel:
                with pytest.raises(grpc.RpcError, match="the request took too long") as caught:
                    channel.unary_unary(METHOD)(stream_request(False), timeout=20)
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            os.kill(instance, signal.SIGCONT)
    with Client(f"grpc://{server.grpc_url}") as client:
        assert client.recommend([SESSION], 3).items.shape == (1, 3)


def children(pid: int) -> list[int]:
    listings = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for listing in listings for child in listing.read_text().split()]


def test_large_requests_are_answered_like_small_ones(server: TritonServer) -> None:
    """They are inflated and checked in a process of their own, which may end at any time."""
    ids = [f"no-such-item-{i:05}" for i in range(9_000)]
    exclude = {"name": "exclude", "shape": [1, len(ids)], "datatype": "BYTES", "data": ids}
    body = json.dumps({"inputs": [ITEM, exclude]}).encode()
    assert len(body) > 64 << 10
    with proxy_of(server.triton_ports, server.repository) as ports:
        status, expected = post(ports.http, json.dumps({"inputs": [ITEM]}).encode())
        assert status == 200
        gzipped = (gzip.compress(body), {"Content-Encoding": "gzip"})
        for sent, headers in ((body, {}), gzipped, (body, {})):
            status, answer = post(ports.http, sent, headers)
            assert (status, json.loads(answer)["outputs"]) == (200, json.loads(expected)["outputs"])
            for pid in children(os.getpid()):
                if b"check_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGTERM)
                    time.sleep(0.2)
        status, answer = post(ports.http, b"[" + b"{}," * 300_000 + b"1]")
        assert (status, b"more than 200000 objects and lists" in answer) == (400, True)
        with Client(f"grpc://{HOST}:{ports.grpc}") as client:
            same = client.recommend([SESSION], 3).items.tolist()
            assert client.recommend([SESSION], 3, exclude=ids).items.tolist() == same


def test_message_of_many_empty_tensors_is_refused(server: TritonServer) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        infer = channel.unary_unary(METHOD)
        for count in (1_001, 1_000_000):
            with pytest.raises(grpc.RpcError, match=f"the message has {count} inputs"):
                infer(b"\x2a\0" * count, timeout=20)


def test_many_calls_of_one_client_wait_for_each_other(server: TritonServer) -> None:
    with (
        proxy_of(server.triton_ports, server.repository, max_streams=4) as ports,
        grpc.insecure_channel(f"{HOST}:{ports.grpc}") as channel,
    ):
        infer = channel.unary_unary(METHOD)
        calls = [infer.future(stream_request(False), timeout=30) for _ in range(100)]
        assert all(b"sku-" in call.result() for call in calls)


@pytest.mark.parametrize(
    "frame",
    [
        http2.write_frame(6, 0, 0, bytes(8)),
        http2.write_frame(http2.SETTINGS, 0, 0, b""),
        http2.write_frame(http2.DATA, 0, 1, b""),
        http2.write_frame(2, 0, 1, bytes(5)),
    ],
    ids=["PING", "SETTINGS", "empty DATA", "PRIORITY"],
)
def test_flood_of_frames_ends_its_connection_alone(server: TritonServer, frame: bytes) -> None:
    with closing(connect(server.ports.grpc)) as connection:
        start = http2.PREFACE + http2.write_frame(http2.SETTINGS, 0, 0, b"")
        with suppress(ConnectionError):
            connection.sendall(start + frame * 10_000)
        rest(connection)
    with Client(f"grpc://{server.grpc_url}") as client:
        assert client.recommend([SESSION], 3).items.shape == (1, 3)


def test_reset_of_a_stream_cancels_the_check_of_its_message(
    silent: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: queue.Queue[str] = queue.Queue()

    async def check_message(*_: Any, **__: Any) -> None:
        events.put("start")
        try:
            await asyncio.Event().wait()
        finally:
            events.put("end")

    monkeypatch.setattr(CheckProcess, "check_message", check_message)
    message = bytes([0]) + (SMALL_BYTES + 1).to_bytes(4) + bytes(SMALL_BYTES + 1)
    with proxy_of(silent) as ports, closing(connect(ports.grpc)) as connection:
        headers = http2.write_headers(1, INFER_HEADERS, ends=False)
        connection.sendall(http2.PREFACE + headers + http2.write_data(1, message, ends=False))
        assert events.get(timeout=10) == "start"
        connection.sendall(http2.write_reset(1))
        assert events.get(timeout=10) == "end"


def test_health_is_answered_while_all_places_are_taken(server: TritonServer) -> None:
    with (
        proxy_of(server.triton_ports, max_waiting=1, max_connections=2) as ports,
        ExitStack() as stack,
    ):
        time.sleep(0.3)
        for _ in range(5):
            stack.enter_context(closing(connect(ports.http)))
        for end in ("live", "ready"):
            with closing(http.client.HTTPConnection(HOST, ports.http, timeout=5)) as connection:
                connection.request("GET", f"/v2/health/{end}", headers={"Connection": "close"})
                assert connection.getresponse().status == 200


def test_health_of_a_triton_that_is_away_is_an_error(silent: Ports) -> None:
    with (
        proxy_of(silent, request_seconds=0.6) as ports,
        closing(http.client.HTTPConnection(HOST, ports.http, timeout=5)) as connection,
    ):
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 504


def test_messages_of_an_answer_are_counted_wherever_they_are_cut() -> None:
    sizes = [0, 3, 300, 1, 0]
    content = b"".join(b"\0" + size.to_bytes(4, "big") + bytes(size) for size in sizes)
    for step in (1, 2, 7, 1_000):
        counter = AnswerCounter()
        parts = [content[i : i + step] for i in range(0, len(content), step)]
        assert sum(map(counter.feed, parts)) == len(sizes)


@pytest.mark.parametrize("limits", [{"max_waiting": 0}, {"max_body_bytes": -1}, {"rate": 0}])
def test_limits_of_nothing_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Limits(**limits)


def test_limits_need_the_proxy() -> None:
    words = ["serve", "anything", "--no-proxy", "--max-waiting", "7"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, ConfigError)
    assert "Leave out --no-proxy" in str(result.exception)
