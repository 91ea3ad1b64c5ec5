"""Calls that the proxy passes on, and the keys of clients: without a server, then with one."""

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipeline.core.errors import ConfigError, ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.proxy.calls import Calls
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
    "/v2/health/live", "/v2/health/ready?x=1", "/v2/models/m/ready",
    "/v2/models/m/versions/3/ready",
]  # fmt: skip
KEYED = [
    "/v2", "/v2/", "/v2/models/stats", "/v2/models/m", "/v2/models/m.n-o_1/versions/12/infer",
    "/v2/models/m/config", "/v2/models/m/stats", "/v2/models/m/generate",
    "/v2/models/m/generate_stream", "/v2/models/m/infer?trace=1",
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
        assert calls.check_http(content, None) is None
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
        assert calls.check_http(content, key.key) == (None if path in OPEN else key)
    for wrong in (None, "", "c" * 20, SHOP.key + "a", SHOP.key[:-1], "é" * 20):
        if path in OPEN:
            assert calls.check_http(content, wrong) is None
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
        ("# of clients", "has 0 keys"),
        ("shop short\napp " + APP.key, "has 5 characters"),
        (f"shop {SHOP.key}\nshop {APP.key}", "a name twice"),
        (f"shop {SHOP.key}\napp {SHOP.key}", "a key twice"),
        (f"shop {SHOP.key} fast\n", "'fast' is no number of requests"),
        (f"shop {SHOP.key} -1\n", "'-1' is no number of requests"),
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
