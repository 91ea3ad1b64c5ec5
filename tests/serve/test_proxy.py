"""Requests that end Triton 2.51 are refused by the proxy in front of it; all others pass."""

import gzip
import http.client
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2

from pipeline.core.artifact import new_artifact
from pipeline.core.errors import ArtifactError, ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.proxy.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    FrameReader,
    ProtocolError,
    read_window_update,
    write_data,
    write_frame,
    write_window_update,
)
from pipeline.serve.proxy.limits import DEFAULT_LIMITS
from pipeline.serve.proxy.proxy import Proxy, ProxyOptions
from pipeline.serve.proxy.ranking_models import RankingModels
from pipeline.serve.proxy.request_checks import (
    LargeContentError,
    RefusedRequestError,
    check_body,
    check_message,
    inflate,
    inflate_message,
)
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import Ports, free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import ROOT, SESSION, Shop

ITEM = {"name": "item_id", "shape": [1, 1], "datatype": "BYTES", "data": ["sku-00001"]}
INFER = "/v2/models/recommender/infer"
LISTS = ["item_ids", "num_known", "scores"]
ALL_OUTPUTS = sorted([*LISTS, "embedding", "session_ids"])
CLASSIFY = {
    "inputs": [ITEM],
    "outputs": [{"name": "item_ids", "parameters": {"classification": 1}}],
}
TERABYTES = {"inputs": [{**ITEM, "name": "price", "datatype": "FP64", "shape": [1, 4 * 10**12]}]}
KEYS = {"inputs": [ITEM], "parameters": {f"key{i}": 0 for i in range(40_000)}}


def post(
    server: TritonServer, content: bytes, headers: dict[str, str] | None = None, path: str = INFER
) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(server.http_url, timeout=30)) as connection:
        connection.request("POST", path, content, headers or {})
        response = connection.getresponse()
        return response.status, response.read()


@pytest.fixture
def living(server: TritonServer) -> Iterator[TritonServer]:
    """The server, whose Triton must be the same process and answer when the test is over."""
    before = server.pid
    yield server
    assert server.pid == before
    for url in (f"http://{server.http_url}", f"grpc://{server.grpc_url}"):
        with Client(url) as client:
            assert client.recommend([SESSION], 3).items.shape == (1, 3)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (CLASSIFY, "classification is not supported"),
        (TERABYTES, "a shape has 4000000000000 values or more"),
        (KEYS, "has 40000 keys, expected at most 1000"),
    ],
    ids=["classification", "terabytes", "keys"],
)
def test_request_that_ends_triton_is_refused_over_http(
    living: TritonServer, request_: dict[str, Any], words: str
) -> None:
    text = json.dumps(request_)
    bodies = {
        "plain": (text.encode(), {}),
        "escaped": (text.replace('"c', '"\\u0063').replace('"s', '"\\u0073').encode(), {}),
        "gzip": (gzip.compress(text.encode()), {"Content-Encoding": "gzip"}),
        "deflate": (zlib.compress(text.encode()), {"Content-Encoding": "deflate"}),
        "binary": (
            text.encode() + b"\0" * 8,
            {"Inference-Header-Content-Length": str(len(text))},
        ),
    }
    for kind, (body, headers) in bodies.items():
        status, answer = post(living, body, headers)
        assert (status, words in json.loads(answer)["error"]) == (400, True), (kind, answer)


def test_body_that_inflates_to_gigabytes_is_refused(living: TritonServer) -> None:
    stream = zlib.compressobj(9)
    parts = [stream.compress(bytes(1 << 20)) for _ in range(1_024)]
    bomb = b"".join([*parts, stream.flush()])
    assert len(bomb) < 2 << 20
    status, answer = post(living, bomb, {"Content-Encoding": "deflate"})
    assert (status, b"inflates to more than" in answer) == (413, True)


def item() -> Any:
    tensor = tritonclient.grpc.InferInput("item_id", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["sku-00001"]], object))
    return tensor


def test_classification_is_refused_over_grpc(living: TritonServer) -> None:
    outputs = [tritonclient.grpc.InferRequestedOutput("item_ids", class_count=1)]
    with closing(tritonclient.grpc.InferenceServerClient(living.grpc_url)) as client:
        for compression in (None, "gzip"):
            with pytest.raises(
                tritonclient.grpc.InferenceServerException, match="classification is not supported"
            ) as caught:
                client.infer(
                    "recommender", [item()], outputs=outputs, compression_algorithm=compression
                )
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        # the word alone is no reason
        named = tritonclient.grpc.InferInput("item_id", [1, 1], "BYTES")
        named.set_data_from_numpy(np.array([["classification"]], object))
        assert client.infer("recommender", [named]).as_numpy("item_ids").shape == (1, 10)


def stream_request(classify: bool) -> bytes:
    request = service_pb2.ModelInferRequest(model_name="recommender")
    request.inputs.add(name="item_id", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"\x09\0\0\0sku-00001")
    output = request.outputs.add(name="item_ids")
    if classify:
        output.parameters["classification"].int64_param = 1
    message: bytes = request.SerializeToString()
    return message


def test_stream_of_requests_ends_at_a_refused_one(living: TritonServer) -> None:
    with grpc.insecure_channel(living.grpc_url) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        answers = list(stream(iter([stream_request(False)] * 3), timeout=20))
        assert len(answers) == 3
        assert all(b"sku-" in answer for answer in answers)
        call = stream(iter([stream_request(False), stream_request(True)]), timeout=20)
        with pytest.raises(grpc.RpcError, match="classification is not supported"):
            list(call)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_other_requests_pass_with_their_answers(living: TritonServer) -> None:
    body = json.dumps({"inputs": [ITEM]}).encode()
    status, plain = post(living, body)
    assert status == 200
    assert post(living, gzip.compress(body), {"Content-Encoding": "gzip"}) == (200, plain)
    names = ["item_ids", "num_known", "scores"]
    request = {"inputs": [ITEM], "outputs": [{"name": name} for name in names]}
    status, answer = post(living, json.dumps(request).encode())
    assert sorted(output["name"] for output in json.loads(answer)["outputs"]) == names
    status, packed = post(living, body, {"Accept-Encoding": "gzip"})
    assert (status, json.loads(gzip.decompress(packed))) == (200, json.loads(plain))
    generate = json.dumps({"item_id": "sku-00001"}).encode()
    for end in ("generate", "generate_stream"):
        status, answer = post(living, generate, path=f"/v2/models/recommender/{end}")
        assert (status, b"item_ids" in answer) == (200, True), answer
    status, answer = post(living, b"{}", path="/v2/repository/index")
    assert (status, b"is restricted" in answer) == (403, True)
    with closing(tritonclient.http.InferenceServerClient(living.http_url)) as client:
        assert client.is_server_live()
        assert client.is_model_ready("recommender")
        assert client.get_server_metadata()["version"] == "2.51.0"
        tensor = tritonclient.http.InferInput("item_id", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([["sku-00001"]], object))
        for way in ("gzip", "deflate"):
            answer = client.infer(
                "recommender",
                [tensor],
                request_compression_algorithm=way,
                response_compression_algorithm=way,
            )
            assert answer.as_numpy("item_ids").shape == (1, 10)


def test_command_serves_a_triton_that_runs_elsewhere(living: TritonServer) -> None:
    inner = living.triton_ports
    ports = ["--triton-http-port", inner.http, "--triton-grpc-port", inner.grpc]
    words = ["proxy", "127.0.0.1", *ports, "--http-port", 0, "--grpc-port", 0, "--json"]
    words += ["--repository", living.repository]
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            for url in (facts["http"], facts["grpc"]):
                with Client(url) as client:
                    assert client.recommend([SESSION], 3).items.shape == (1, 3)
            address = facts["http"].removeprefix("http://")
            with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
                connection.request("POST", INFER, json.dumps(CLASSIFY))
                assert connection.getresponse().read().startswith(b'{"error": "classification')
                connection.request("POST", INFER, json.dumps({"inputs": [ITEM]}))
                outputs = json.load(connection.getresponse())["outputs"]
                assert sorted(output["name"] for output in outputs) == LISTS
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_repository_of_an_older_version_is_named_at_once(shop: Shop, tmp_path: Path) -> None:
    """Its ensemble has no output `num_known`."""
    repository = tmp_path / "repository"
    with new_artifact(repository, "repository", {"name": "old"}) as directory:
        (directory / "old").mkdir()
        (directory / "old" / "config.pbtxt").write_text('output { name: "item_ids" }')
    with (
        pytest.raises(ArtifactError, match="an older version exported the model old"),
        running_server(repository, ports=free_ports()),
    ):
        pass


def test_model_of_an_older_version_is_named_by_the_client(server: TritonServer) -> None:
    with (
        Client(f"grpc://{server.grpc_url}") as client,
        pytest.raises(ServingError, match="An older version exported the model 'recommender'"),
    ):
        client.send(client.prepare({"item_id": np.array([["a"]], object)}, ["item_ids", "newer"]))


def test_proxy_answers_while_triton_is_away(shop: Shop) -> None:
    with running_server(shop.repository, ports=Ports(http=0, grpc=0, metrics=0)) as server:
        assert server._supervisor is not None
        server._supervisor.terminate()
        server._supervisor.wait()
        assert post(server, b"{}")[0] == 503
        with (
            pytest.raises(ServingError, match="No server answers"),
            Client(f"grpc://{server.grpc_url}") as client,
        ):
            client.recommend([SESSION])


@pytest.mark.parametrize(
    ("body", "lengths", "words"),
    [
        (b'{"a": 1, "a": 1}', [], "a key twice"),
        (b"[" * 100_000, [], "nested too deeply"),
        (b'{"inputs": [{"shape": [1, 1e3]}]}', [], "whole numbers"),
        (b'{"inputs": [{"shape": [-4000, -4000]}]}', [], "4000 values or more"),
        (b"9" * 5_000, [], "is not JSON"),
        (b'{"inputs": [1, 1]}', [], "an input is no object"),
        (b'{"inputs": [' + b"1," * 1_000_001 + b"1]}", [], "more than 1000000 values"),
        (b"{}", ["3"], "not within the body"),
        (b"{}", ["0"], "not within the body"),
        (b"{}", ["-1"], "one whole number"),
        (b"{}", ["1", "2"], "one whole number"),
    ],
)
def test_ambiguous_body_is_refused(body: bytes, lengths: list[str], words: str) -> None:
    with pytest.raises(RefusedRequestError, match=words):
        check_body(body, lengths)


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": [{"shape": [1], "data": ["\xff\x01"]}], "x": NaN}',
        b'{"inputs": [{"shape": "x"}], "outputs": [[]]}',
        b"[1]",
        b"",
    ],
)
def test_bytes_that_python_would_not_read_are_left_to_triton(body: bytes) -> None:
    assert check_body(body, []) == (body, None, None)


def test_values_that_a_model_refuses_do_not_reach_triton() -> None:
    body = b'{"inputs": [{"shape": [1, 100001], "data": [' + b"1," * 100_000 + b"1]}]}"
    with pytest.raises(RefusedRequestError, match="100001 values, expected at most 100000"):
        check_body(body, [], "recommender", {"recommender"})
    assert check_body(body, [], "other", {"recommender"}).content == body


def test_bytes_behind_the_json_are_left_as_they_are() -> None:
    body = b'{"inputs": []}\xff\x00'
    assert check_body(body, ["14"]) == (body, 14, None)


def test_inflated_size_is_bounded() -> None:
    exact = bytes(100_000)
    assert inflate(zlib.compress(exact), "deflate", 100_000, 100_000) == exact
    with pytest.raises(RefusedRequestError, match="inflates to more"):
        inflate(zlib.compress(exact + b"\0"), "deflate", 100_000)
    with pytest.raises(LargeContentError):
        inflate(zlib.compress(exact), "deflate", 100_000, 99_999)
    for body, encoding, words in (
        (b"not packed", "gzip", "is not gzip"),
        (gzip.compress(b"x")[:-3], "gzip", "ends within"),
        (b"x", "br", "not one of gzip"),
        (b"x", "gzip, gzip", "not one of gzip"),
    ):
        with pytest.raises(RefusedRequestError, match=words):
            inflate(body, encoding, 100)


def test_message_that_is_no_request_passes_without_the_word() -> None:
    message = b"\xff" * 20
    assert check_message(message).content is message
    with pytest.raises(RefusedRequestError, match="no ModelInferRequest"):
        check_message(b"\xffclassification")


def http_outputs(server: TritonServer, request_: dict[str, Any]) -> list[str]:
    status, answer = post(server, json.dumps(request_).encode())
    assert status == 200, answer
    return sorted(output["name"] for output in json.loads(answer)["outputs"])


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, LISTS),
        ({"outputs": []}, LISTS),
        ({"outputs": [{"name": "embedding"}]}, ["embedding"]),
        ({"outputs": [{"name": name} for name in ALL_OUTPUTS]}, ALL_OUTPUTS),
    ],
    ids=["none", "empty", "embedding", "all"],
)
def test_outputs_of_http_are_those_that_a_request_names(
    living: TritonServer, more: dict[str, Any], names: list[str]
) -> None:
    assert http_outputs(living, {"inputs": [ITEM], **more}) == names
    assert http_outputs(living, {**more, "inputs": [ITEM]}) == names


@pytest.mark.parametrize("names", [(), ("embedding",), tuple(ALL_OUTPUTS)])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_outputs_of_grpc_are_those_that_a_request_names(
    living: TritonServer, names: tuple[str, ...], compression: str | None
) -> None:
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in names] or None
    with closing(tritonclient.grpc.InferenceServerClient(living.grpc_url)) as client:
        answer = client.infer(
            "recommender", [item()], outputs=outputs, compression_algorithm=compression
        ).get_response()
    assert sorted(output.name for output in answer.outputs) == sorted(names or LISTS)


@pytest.mark.parametrize("binary", [False, True])
def test_binary_request_gets_the_lists_in_the_form_that_it_asks_for(
    living: TritonServer, binary: bool
) -> None:
    """tritonclient asks for binary outputs in the parameters of a request without outputs."""
    tensor = tritonclient.http.InferInput("item_id", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["sku-00001"]], object), binary_data=binary)
    with closing(tritonclient.http.InferenceServerClient(living.http_url)) as client:
        answer = client.infer("recommender", [tensor])
    names = sorted(output["name"] for output in answer.get_response()["outputs"])
    sizes = [
        output["parameters"]["binary_data_size"] for output in answer.get_response()["outputs"]
    ]
    assert names == LISTS
    assert all(sizes)
    assert answer.as_numpy("scores").shape == (1, 10)


def test_request_for_another_model_is_passed_as_it_is() -> None:
    body = json.dumps({"inputs": [ITEM]}).encode()
    assert check_body(body, []) == (body, None, None)
    assert check_body(body, [], "recommender", {"other"}) == (body, None, None)
    assert b'"outputs"' in check_body(body, [], "other", {"other"}).content
    request = service_pb2.ModelInferRequest(model_name="other")
    request.inputs.add(name="item_id")
    message = request.SerializeToString()
    assert check_message(message, {"recommender"}).content is message
    longer = service_pb2.ModelInferRequest.FromString(check_message(message, {"other"}).content)
    assert sorted(output.name for output in longer.outputs) == LISTS


def test_models_that_recommend_are_those_of_the_last_export(tmp_path: Path) -> None:
    repository = tmp_path / "repository"

    def write(**outputs: str) -> None:
        names = list(outputs)
        facts = {"name": names[0], "other_models": {name: {} for name in names[1:]}}
        with new_artifact(repository, "repository", facts) as directory:
            for name, texts in outputs.items():
                (directory / name).mkdir()
                lines = [f'output {{ name: "{text}" }}' for text in texts.split()]
                (directory / name / "config.pbtxt").write_text("\n".join(lines))

    models = RankingModels(repository)
    assert "one" not in models
    write(one="item_ids scores num_known embedding", other="num_known buys")
    assert [name in models for name in ("one", "other", "..")] == [True, False, False]
    write(new="scores item_ids num_known")
    assert [name in models for name in ("one", "new")] == [False, True]
    (repository / "manifest.json").write_text("")
    assert "new" in models
    shutil.rmtree(repository)
    assert "new" in models
    assert "new" not in RankingModels(None)


@pytest.mark.slow
def test_long_messages_pass_in_both_directions(living: TritonServer) -> None:
    """Longer than the windows of HTTP/2, next to each other on one connection."""
    sessions = [SESSION] * 64
    ids = [f"no-such-item-{i:06}" for i in range(5_000)]
    with Client(f"grpc://{living.grpc_url}") as client, ThreadPoolExecutor(4) as pool:
        expected = client.recommend(sessions, 100)
        for _ in range(3):
            asked = [pool.submit(client.recommend, sessions, 100, exclude=ids) for _ in range(4)]
            for answer in asked:
                assert answer.result().items.tolist() == expected.items.tolist()


def test_message_that_is_too_large_is_refused_by_its_size(living: TritonServer) -> None:
    with grpc.insecure_channel(
        living.grpc_url, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match="the message has more than 8388608 bytes"):
            infer(bytes(DEFAULT_LIMITS.max_body_bytes + 1), timeout=60)


def test_compressed_message_that_inflates_to_gigabytes_is_refused(living: TritonServer) -> None:
    packed = gzip.compress(bytes(10_001))
    with pytest.raises(RefusedRequestError, match="the message inflates to more than"):
        inflate_message(packed, 10_000)


def test_random_frames_of_http2_leave_triton_alone(living: TritonServer) -> None:
    """Each connection sends 40 frames, some of them of a real request cut in pieces."""
    chance = random.Random(5)
    request = stream_request(False)
    message = b"\0" + len(request).to_bytes(4, "big") + request
    for _ in range(150):
        frames = [write_frame(SETTINGS, 0, 0, b"")]
        for _ in range(40):
            kind, flags = chance.choice([*range(10), DATA, HEADERS]), chance.choice([0, 1, 4, 5, 8])
            start = chance.randrange(len(message))
            payload = chance.choice([chance.randbytes(chance.randrange(30)), message[start:]])
            frames.append(write_frame(kind, flags, chance.choice([0, 1, 2, 3, 2**31 - 1]), payload))
        with (
            closing(socket.create_connection(living.grpc_url.split(":"), 5)) as connection,
            suppress(ConnectionError, TimeoutError),
        ):
            connection.sendall(PREFACE + b"".join(frames))
            connection.settimeout(0.05)
            while connection.recv(65_536):
                pass


def test_other_protocols_are_closed_on_the_port_of_grpc(living: TritonServer) -> None:
    with closing(socket.create_connection(living.grpc_url.split(":"), 5)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(100), b""))
    assert b"HTTP/1" not in answer


def test_reader_cuts_frames_wherever_the_bytes_are_split() -> None:
    block = write_frame(HEADERS, 0, 1, b"one") + write_frame(CONTINUATION, END_HEADERS, 1, b"two")
    content = write_data(1, bytes(40_000), ends=True)
    whole = block + content + write_window_update(0, 7)
    for size in (1, 7, 1_000, len(whole)):
        reader = FrameReader()
        parts = [whole[i : i + size] for i in range(0, len(whole), size)]
        frames = [frame for part in parts for frame in reader.feed(part)]
        assert b"".join(frame.raw for frame in frames) == whole
        assert [frame.kind for frame in frames] == [HEADERS, DATA, DATA, DATA, WINDOW_UPDATE]
        assert [len(frame.payload) for frame in frames[1:4]] == [16_384, 16_384, 7_232]
        assert [frame.flags for frame in frames[1:4]] == [0, 0, 1]
        assert read_window_update(frames[4]) == 7


@pytest.mark.parametrize(
    "frames",
    [
        write_frame(CONTINUATION, END_HEADERS, 1, b""),
        write_frame(HEADERS, 0, 1, b"") + write_frame(DATA, 0, 1, b""),
        write_frame(HEADERS, 0, 1, b"") + write_frame(CONTINUATION, END_HEADERS, 3, b""),
        write_frame(HEADERS, 0, 1, b"")
        + write_frame(CONTINUATION, 0, 1, bytes(16_384))
        * (DEFAULT_LIMITS.max_head_bytes // 16_384),
    ],
    ids=["alone", "data within", "other stream", "endless"],
)
def test_headers_that_other_frames_interrupt_end_the_connection(frames: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(frames))


def test_a_proxy_that_cannot_be_set_up_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(RankingModels, "__init__", broken)
    ports = free_ports()
    host = "127.0.0.1"
    options = ProxyOptions(
        http_host=host,
        grpc_host=host,
        ports=ports,
        repository=None,
        triton_host=host,
        triton_ports=ports,
        tls=None,
    )
    with pytest.raises(ServingError, match="no memory"):
        Proxy(options).start()
