"""Requests that end Triton 2.51 are refused by the proxy in front of it; all others pass."""

import gzip
import http.client
import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2

from pipeline.core.errors import ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.proxy.request_checks import (
    MAX_BODY_BYTES,
    RefusedRequestError,
    check_body,
    check_message,
    inflate,
)
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import Ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import SESSION, Shop

ITEM = {"name": "item_id", "shape": [1, 1], "datatype": "BYTES", "data": ["sku-00001"]}
INFER = "/v2/models/recommender/infer"
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


def test_stream_of_requests_is_answered_up_to_a_refused_one(living: TritonServer) -> None:
    with grpc.insecure_channel(living.grpc_url) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        answers = list(stream(iter([stream_request(False)] * 3), timeout=20))
        assert len(answers) == 3
        assert all(b"sku-" in answer for answer in answers)
        call = stream(iter([stream_request(False), stream_request(True)]), timeout=20)
        answers = []
        with pytest.raises(grpc.RpcError, match="classification is not supported"):
            answers.extend(call)


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
        (b"{}", ["3"], "not within the body"),
        (b"{}", ["0"], "not within the body"),
        (b"{}", ["-1"], "one whole number"),
        (b"{}", ["1", "2"], "one whole number"),
    ],
)
def test_ambiguous_body_is_refused(body: bytes, lengths: list[str], words: str) -> None:
    with pytest.raises(RefusedRequestError, match=words):
        check_body(body, lengths)


def test_bytes_that_python_would_not_read_are_left_to_triton() -> None:
    check_body(b'{"inputs": [{"shape": [1], "data": ["\xff\x01"]}], "x": NaN}', [])
    check_body(b'{"inputs": [3, {"shape": "x"}], "outputs": [[]]}', [])
    check_body(b"[1]", [])
    check_body(b"", [])
    check_body(b'{"inputs": []}\xff\x00', ["14"])


def test_inflated_size_is_bounded() -> None:
    exact = bytes(MAX_BODY_BYTES)
    assert inflate(zlib.compress(exact), "deflate") == exact
    with pytest.raises(RefusedRequestError, match="inflates to more"):
        inflate(zlib.compress(exact + b"\0"), "deflate")
    for body, encoding, words in (
        (b"not packed", "gzip", "is not gzip"),
        (gzip.compress(b"x")[:-3], "gzip", "ends within"),
        (b"x", "br", "not one of gzip"),
        (b"x", "gzip, gzip", "not one of gzip"),
    ):
        with pytest.raises(RefusedRequestError, match=words):
            inflate(body, encoding)


def test_message_of_grpc_is_parsed_only_for_the_word() -> None:
    check_message(b"\xff" * 20)
    with pytest.raises(RefusedRequestError, match="no ModelInferRequest"):
        check_message(b"\xffclassification")
