"""Calls that the proxy passes on, and the keys of clients: without a server, then with one."""

import asyncio
import http.client
import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipeline.core.errors import ConfigError, ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.proxy import http2
from pipeline.serve.proxy.calls import Calls
from pipeline.serve.proxy.health import HealthPoll
from pipeline.serve.proxy.request_checks import RefusedRequestError
from pipeline.serve.run import running_server
from pipeline.serve.triton.access import GRPC_PREFIX, KEY_HEADER, ClientKey, read_keys
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import SESSION, Shop

SHOP, APP = ClientKey("a" * 20, "shop"), ClientKey("b" * 20, "app", rate=0.5)
SITE = ClientKey("d" * 20, "site")
SERVICE = "/inference.GRPCInferenceService/"
OPEN = [
    "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready",
    "/v2/models/m/versions/3/ready",
]  # fmt: skip
KEYED = [
    "/v2", "/v2/", "/v2/models/stats", "/v2/models/m", "/v2/models/m.n-o_1/versions/12/infer",
    "/v2/models/m/config", "/v2/models/m/stats", "/v2/models/m/generate",
    "/v2/models/m/generate_stream", "/v2/models/m/infer",
]  # fmt: skip
CLOSED = [
    "/v2/repository/index", "/v2/repository/models/m/load", "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/region/x/register", "/v2/trace/setting", "/v2/models/m/trace/setting",
    "/v2/logging",
]  # fmt: skip
UNKNOWN = [
    "/v2/models/../repository/index", "/v2//repository/index", "//v2", "/v2/models/%2e%2e/config",
    "/v2/models/m/versions/1/../../infer", "/invocations", "/metrics", "/", "/v2/models/m/infer/x",
    "/v2/models/.m/config", "/v2/repositor%79/index", "/v2/models/m/versions/x/infer",
    "http://h/v2/repository/index", "/v2/models/m\x00/infer", "/V2/models/m",
]  # fmt: skip


@pytest.mark.parametrize("path", [*OPEN, *KEYED, *CLOSED, *UNKNOWN])
def test_http_passes_the_calls_of_the_list_alone(path: str) -> None:
    calls, content = Calls(), path.encode()
    if path in OPEN or path in KEYED:
        assert calls.check_http(content, None).key is None
    else:
        with pytest.raises(RefusedRequestError) as refusal:
            calls.check_http(content, SHOP.key)
        assert refusal.value.status == (403 if path in CLOSED else 404)


def test_grpc_passes_the_calls_of_the_list_alone() -> None:
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    statuses = {}
    for name in methods:
        try:
            Calls().check_grpc(SERVICE + name, None)
            statuses[name] = 200
        except RefusedRequestError as refusal:
            statuses[name] = refusal.status
    closed = {name for name, status in statuses.items() if status == 403}
    assert set(statuses.values()) == {200, 403}
    starts = ("Repository", "System", "Cuda", "Trace", "Log")
    assert {name for name in methods if name.startswith(starts)} == closed
    for path in ("", "/", SERVICE, SERVICE + "modelinfer", "/x" + SERVICE + "ModelInfer"):
        with pytest.raises(RefusedRequestError) as refusal:
            Calls().check_grpc(path, None)
        assert refusal.value.status == 404


@pytest.mark.parametrize("path", [*OPEN, *KEYED])
def test_each_key_opens_what_needs_one(path: str) -> None:
    calls, content = Calls([SHOP, APP]), path.encode()
    for key in (SHOP, APP):
        assert calls.check_http(content, key.key).key == (None if path in OPEN else key)
    for wrong in (None, "", "c" * 20, SHOP.key + "a", SHOP.key[:-1], "é" * 20):
        if path in OPEN:
            assert calls.check_http(content, wrong).key is None
        else:
            with pytest.raises(RefusedRequestError, match="is restricted, expecting header"):
                calls.check_http(content, wrong)


def test_file_has_one_key_or_lines_with_names(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{SHOP.key}\n")
    assert read_keys(path) == (ClientKey(SHOP.key),)
    path.write_text(f"# clients\nshop {SHOP.key}\n\napp {APP.key} 0.5\n")
    assert read_keys(path) == (SHOP, APP)
    path.write_text(f"shop {SHOP.key}\n")
    assert read_keys(path) == (SHOP,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# of clients", "has 0 characters"),
        ("shop short\napp " + APP.key, "has 5 characters"),
        (f"shop {SHOP.key}\nshop {APP.key}", "a name twice"),
        (f"shop {SHOP.key}\napp {SHOP.key}", "a key twice"),
        (f"shop {SHOP.key} fast\n", "third word is no number of requests"),
        (f"shop {SHOP.key} -1\n", "third word is no number of requests"),
        (f"shop {SHOP.key} 1 2\n", "has 4 words"),
        (f"{SHOP.key}\n{APP.key}\n", "has 1 words"),
        ("", "has 0 characters"),
    ],
)
def test_file_with_a_mistake_ends_with_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_keys(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "absent")


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[TritonServer]:
    with running_server(shop.repository, ports=free_ports(), keys=[SHOP, APP, SITE]) as running:
        yield running


def urls(server: TritonServer) -> list[str]:
    return [f"http://{server.http_url}", f"grpc://{server.grpc_url}"]


def test_clients_of_all_keys_get_the_same(server: TritonServer) -> None:
    answers = []
    for url in urls(server):
        with Client(url, key=SHOP.key) as client:
            for _ in range(5):  # the headers lie in the table of HPACK by then
                answers.append(client.recommend([SESSION], 5).items.tolist())
        with Client(url, key=SITE.key) as client:
            answers.append(client.recommend([SESSION], 5).items.tolist())
        with pytest.raises(ServingError), Client(url, key="c" * 20) as client:
            client.recommend([SESSION], 5)
    assert all(answer == answers[0] for answer in answers)


def test_rate_is_that_of_the_key(server: TritonServer) -> None:
    for url in urls(server):
        time.sleep(2.1)  # what was sent before has used what the key may send at once
        with Client(url, key=APP.key) as client:
            client.recommend([SESSION], 5)
            with pytest.raises(ServingError, match=r"more than 0\.5 requests a second"):
                client.recommend([SESSION], 5)
        with Client(url, key=SHOP.key) as client:
            client.recommend([SESSION], 5)


def test_key_of_the_proxy_itself_opens_nothing(server: TritonServer) -> None:
    headers = {"proxy-key": SHOP.key, "triton-grpc-protocol-proxy-key": SHOP.key}
    with closing(http.client.HTTPConnection(server.http_url, timeout=20)) as connection:
        connection.request("GET", "/v2", headers=headers)
        assert connection.getresponse().status == 403
    with closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as client:
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="is restricted"):
            client.get_server_metadata(headers=headers)
        assert client.is_server_live()


def test_a_closed_call_ends_and_the_connection_goes_on(server: TritonServer) -> None:
    metadata = [(GRPC_PREFIX + KEY_HEADER, SHOP.key)]
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for round_trip in range(3):
            with pytest.raises(grpc.RpcError, match="is restricted"):
                stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), metadata=metadata)
            unknown = channel.unary_unary("/inference.GRPCInferenceService/Own")
            with pytest.raises(grpc.RpcError) as refusal:
                unknown(b"", metadata=[*metadata, (f"x-{round_trip}", "y" * 3_000)])
            assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED
            assert stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=metadata).name


def test_key_of_clients_is_no_argument_of_triton(server: TritonServer) -> None:
    arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert SHOP.key.encode() not in arguments
    assert b"proxy-key" in arguments


def test_closed_calls_are_refused_over_http(server: TritonServer) -> None:
    with closing(http.client.HTTPConnection(server.http_url, timeout=20)) as connection:
        for path in CLOSED:
            connection.request("GET", path, headers={KEY_HEADER: SHOP.key})
            response = connection.getresponse()
            content: dict[str, Any] = json.load(response)
            assert (response.status, content) == (403, {"error": "This API is restricted"})


def raw_call(server: TritonServer, block: bytes, message: bytes = b"") -> bytes:
    """What a connection of gRPC answers to frames as they are."""
    with closing(socket.create_connection((server.grpc_url.split(":")[0], server.ports.grpc))) as s:
        s.settimeout(3)
        s.sendall(http2.PREFACE + http2.write_frame(http2.SETTINGS, 0, 0, b""))
        s.sendall(http2.write_headers(1, block, ends=False))
        s.sendall(http2.write_data(1, b"\0" + len(message).to_bytes(4, "big") + message, ends=True))
        parts = []
        with suppress(TimeoutError, ConnectionResetError):
            while part := s.recv(65_536):
                parts.append(part)
        return b"".join(parts)


CONTENT = http2.write_literal(b"content-type", b"application/grpc")


def path_of(name: str) -> bytes:
    return http2.write_literal(b":path", (SERVICE + name).encode())


@pytest.mark.parametrize(
    "block",
    [
        b"\x83\x86" + path_of("ServerReady") + path_of("ModelInfer") + CONTENT,
        b"\x83\x86" + path_of("ModelInfer") + path_of("ServerReady") + CONTENT,
        b"\x83\x86" + path_of("ServerReady") + CONTENT + path_of("RepositoryIndex"),
        b"\x83\x83\x86" + path_of("ServerReady") + CONTENT,
    ],
)
def test_headers_that_triton_could_read_differently_end_the_connection(
    server: TritonServer, block: bytes
) -> None:
    request = service_pb2.ModelInferRequest(model_name="recommender").SerializeToString()
    answer = raw_call(server, block, request)
    assert b"recommender" not in answer
    assert b"grpc-status" not in answer


def test_two_keys_of_one_request_end_the_connection(server: TritonServer) -> None:
    name = (GRPC_PREFIX + KEY_HEADER).encode()
    keys = [http2.write_literal(name, key) for key in (b"x" * 20, SHOP.key.encode())]
    block = b"\x83\x86" + path_of("ServerMetadata") + CONTENT + b"".join(keys)
    assert b"grpc-status" not in raw_call(server, block)
    one = b"\x83\x86" + path_of("ServerMetadata") + CONTENT + keys[1]
    assert b"grpc-status" in raw_call(server, one)


def test_changes_of_a_tables_size_are_bounded() -> None:
    http2.check_size_updates(b"\x20\x3f\xe1\x1f\x82")
    http2.check_size_updates(b"\x3f\xe1\x1f")
    http2.check_size_updates(b"")
    for block in (b"\x20" * 65_000, b"\x3f\xe1\x1f\x20\x20", b"\x20\x20\x3f"):
        with pytest.raises(http2.ProtocolError):
            http2.check_size_updates(block)


def test_refused_calls_use_up_what_a_client_may_send(server: TritonServer) -> None:
    block = b"\x83\x86" + path_of("ModelInfer") + CONTENT  # without a key
    frames = b"".join(http2.write_headers(2 * n + 1, block, ends=True) for n in range(1_000))
    with closing(socket.create_connection((server.grpc_url.split(":")[0], server.ports.grpc))) as s:
        s.settimeout(5)
        received = b""
        with suppress(ConnectionResetError, BrokenPipeError):
            s.sendall(http2.PREFACE + http2.write_frame(http2.SETTINGS, 0, 0, b"") + frames)
            while part := s.recv(65_536):
                received += part
    assert received.count(b"grpc-status") <= 300  # then the connection closes


def test_open_calls_take_no_body(server: TritonServer) -> None:
    with closing(http.client.HTTPConnection(server.http_url, timeout=20)) as connection:
        connection.request("POST", "/v2/health/live", b"{}" * 1_000)
        response = connection.getresponse()
        assert (response.status, b"takes no body" in response.read()) == (400, True)
    with grpc.insecure_channel(server.grpc_url) as channel:
        live = channel.unary_unary(SERVICE + "ServerLive")
        with pytest.raises(grpc.RpcError, match="no such message"):
            live(bytes(100_000), timeout=20)


def test_a_query_changes_no_check(server: TritonServer) -> None:
    with closing(http.client.HTTPConnection(server.http_url, timeout=20)) as connection:
        request = {"name": "item_id", "shape": [1, 1], "datatype": "BYTES", "data": ["sku-00001"]}
        answers = []
        for query in ("", "?x=1", "?"):
            path = f"/v2/models/recommender/infer{query}"
            body = json.dumps({"inputs": [request]})
            connection.request("POST", path, body, {KEY_HEADER: SHOP.key})
            answers.append(json.load(connection.getresponse())["outputs"])
        assert answers[0] == answers[1] == answers[2]
        assert {output["name"] for output in answers[0]} == {"item_ids", "scores", "num_known"}


def test_health_is_not_ready_without_the_model(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(shop.repository, repository)
    with running_server(repository, ports=free_ports(), reload_seconds=1) as running:
        assert status_of(running) == 200
        shutil.rmtree(repository / "recommender")
        deadline = time.monotonic() + 20
        while status_of(running) == 200:
            assert time.monotonic() < deadline, "a model that is gone counts as ready"
            time.sleep(0.2)


def test_health_poll_outlives_a_configuration_that_is_no_text(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(shop.repository, repository)
    poll = HealthPoll(("127.0.0.1", free_ports().http), repository)
    (repository / "recommender" / "config.pbtxt").write_bytes(b"\xff\xfe")
    assert asyncio.run(poll._answers()) is False
    assert poll._names == {"recommender"}


def status_of(server: TritonServer) -> int:
    with closing(http.client.HTTPConnection(server.http_url, timeout=20)) as connection:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status
