"""Malformed requests, made from a seed: broken JSON, absurd shapes, types, sizes, values, and all
parameters of the KServe protocol and of Triton's extensions."""

import gzip
import http.client
import json
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.conftest import SESSION

NAMES = [
    *(*SESSION, "k", "length", "exclude", "candidates", "filter_seen", "session_id"),
    *("unknown", ""),
]
KINDS = ["BYTES", "INT64", "INT32", "FP64", "FP32", "BOOL", "UINT8", "FP16", "BF16", "X", "", None]
DIMENSIONS: list[Any] = [
    *(0, 1, 2, 3, 20, 21, 1000, -1, -(2**31), 2**31, 2**40, 2**62, 2**64, 4e12, 1.5, "2", None, [])
]
VALUES: list[Any] = [
    *("sku-00001", "", "\0", "a\0b", "\ud800", "\udfff\ud800", "é" * 50, "x" * 3_000),
    *("2026-01-05", "2026-13-45 99:99", "9" * 400, 0, 1, -1, 10, 2**31, -(2**63), 2**63, 2**64),
    *(1e308, -1e308, float("1e400"), 5e-324, float("nan"), True, False, None, [], {}, [[1]]),
    {"a": 1},
]
OUTPUTS = ["item_ids", "scores", "embedding", "session_ids", "num_known", "x", ""]
PARAMETERS: dict[str, list[Any]] = {
    "classification": [0, 1, 3, 2**31, -1, "1", True],
    "binary_data": [True, False, 1, "x"],
    "binary_data_output": [True, False, 0],
    "binary_data_size": [0, 1, 2**31, 2**63, -1, "x"],
    "shared_memory_region": ["region", "", 7],
    "shared_memory_byte_size": [0, 16, 2**62, -1, "x"],
    "shared_memory_offset": [0, 16, 2**62, -1],
    "sequence_id": [0, 1, 2**63, -1, "session", ""],
    "sequence_start": [True, False, 1],
    "sequence_end": [True, False, "x"],
    "priority": [0, 1, 2**63, -1, "x"],
    "timeout": [0, 1, 1_000_000, 2**63, -1, "x"],
    "triton_enable_empty_final_response": [True, False],
    "headers": ["x"],
    "unknown": [0, 1.5, "x", True],
}
"""Names and values of parameters of requests, inputs and outputs, right and wrong."""
HEADERS: dict[str, list[str]] = {
    "Content-Encoding": ["gzip", "deflate", "identity", "br", "gzip, gzip", ""],
    "Accept-Encoding": ["gzip", "deflate", "x", ""],
    "Content-Type": ["application/json", "application/octet-stream", "x"],
    "triton-request-id": ["1", "x" * 300],
    "Expect": ["x"],
}
PATHS = [
    *("/v2/models/recommender/infer",) * 12,
    *(f"/v2/models/recommender/versions/{v}/infer" for v in (1, 9, -1, "x")),
    *("/v2/models/recommender/generate", "/v2/models/recommender/generate_stream"),
    *("/v2//models/recommender/infer", "/v2/models/%72ecommender/infer", "/v2/models/x/infer"),
    *("/v2/systemsharedmemory/status", "/v2/repository/index", "/v2/logging", "/v2/trace/setting"),
]
HEADER = "Inference-Header-Content-Length"


def parameters(chance: random.Random) -> dict[str, Any]:
    """Some parameters, nearly always of a value that the protocol knows."""
    names = chance.sample(list(PARAMETERS), chance.choice([1, 1, 2, 4]))
    return {
        name: chance.choice(PARAMETERS[name] if chance.random() < 0.9 else VALUES) for name in names
    }


def outputs(chance: random.Random) -> list[dict[str, Any]]:
    """Requested outputs with parameters."""
    names = chance.choices(OUTPUTS, weights=(6, 4, 2, 2, 2, 1, 1), k=chance.choice([1, 1, 2, 4]))
    made: list[dict[str, Any]] = [{"name": name} for name in names]
    for output in made:
        if chance.random() < 0.6:
            output["parameters"] = parameters(chance)
    return made


def tensor(chance: random.Random) -> dict[str, Any]:
    """Anything where a tensor should stand."""
    name = chance.choice(NAMES)
    size = chance.choice([0, 1, 2, 2, 2, 3, 300])
    shape: Any = [1, size]
    if chance.random() < 0.5:
        shape = [chance.choice(DIMENSIONS) for _ in range(chance.choice([0, 1, 2, 2, 3, 9]))]
    kinds = {"k": "INT32", "length": "INT32", "filter_seen": "BOOL", "price": "FP64"}
    kind = kinds.get(name, "BYTES") if chance.random() < 0.7 else chance.choice(KINDS)
    value = chance.choice(VALUES)
    data: Any = [value if chance.random() < 0.3 else chance.choice(VALUES) for _ in range(size)]
    if chance.random() < 0.5:
        data = {"BYTES": ["sku-00001"], "INT32": [2], "BOOL": [True]}.get(str(kind), [1.5]) * size
    made = {"name": name, "shape": shape, "datatype": kind, "data": data}
    if chance.random() < 0.1:
        made["parameters"] = parameters(chance)
    for key in list(made):
        if chance.random() < 0.04:
            del made[key]
        elif chance.random() < 0.04:
            made[key] = chance.choice(VALUES)
    return made


def body(chance: random.Random) -> bytes:
    """A request's JSON, or what is left of it."""
    inputs: Any = [tensor(chance) for _ in range(chance.choice([0, 1, 1, 2, 3, 8]))]
    if chance.random() < 0.6:
        inputs.append({"name": "item_id", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "b"]})
    whole: Any = {"inputs": inputs if chance.random() < 0.95 else chance.choice(VALUES)}
    if chance.random() < 0.4:
        whole["outputs"] = outputs(chance) if chance.random() < 0.9 else chance.choice(VALUES)
    if chance.random() < 0.3:
        whole["parameters"] = parameters(chance) if chance.random() < 0.9 else chance.choice(VALUES)
    if chance.random() < 0.01:
        whole["parameters"] = {f"key{number}": number for number in range(40_000)}
    if chance.random() < 0.05:
        whole["id"] = chance.choice(VALUES)
    if chance.random() < 0.03:
        return b"[" * chance.choice([10, 5_000, 200_000])
    text = json.dumps(whole).encode()
    if chance.random() < 0.15:
        text = text[: chance.randrange(len(text) + 1)]
    if chance.random() < 0.1:
        place = chance.randrange(len(text) + 1)
        text = text[:place] + bytes(chance.choices(range(256), k=5)) + text[place + 3 :]
    return text


def binary(chance: random.Random) -> tuple[bytes, str]:
    """Tensors behind the JSON, whose sizes need not be true; the value of the header."""
    ids = b"".join(struct.pack("<I", len(v)) + v for v in (b"sku-00001", b"\xff\xfe\0", b""))
    if chance.random() < 0.5:
        ids = struct.pack("<I", chance.choice([0, 5, 2**31, 2**32 - 1])) + ids[4:]
    if chance.random() < 0.3:
        ids = ids[: chance.randrange(len(ids))]
    size = len(ids) if chance.random() < 0.5 else chance.choice([0, 1, -1, 2**31, 2**63, "x"])
    shape = [1, chance.choice([1, 3, 3, 3, 1_000_000])]
    field = {"name": "item_id", "shape": shape, "datatype": chance.choice(["BYTES", "INT64"])}
    head = json.dumps({"inputs": [field | {"parameters": {"binary_data_size": size}}]}).encode()
    right = str(len(head))
    stated = right if chance.random() < 0.6 else chance.choice(["0", "-1", "9" * 30, "x", "5", ""])
    return head + ids, stated


def body_without_error(chance: random.Random) -> bytes:
    """A request that is right but for its parameters and outputs."""
    whole: dict[str, Any] = {
        "inputs": [{"name": "item_id", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "b"]}],
        "outputs": outputs(chance),
    }
    if chance.random() < 0.5:
        whole["parameters"] = parameters(chance)
    return json.dumps(whole).encode()


def http_requests(seed: int, count: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Paths, bodies and headers."""
    chance = random.Random(seed)
    for _ in range(count):
        headers = {}
        if chance.random() < 0.2:
            name = chance.choice(list(HEADERS))
            headers[name] = chance.choice(HEADERS[name])
        if chance.random() < 0.3:
            content, headers[HEADER] = binary(chance)
        else:
            content = body_without_error(chance) if chance.random() < 0.3 else body(chance)
        packing = {"gzip": gzip.compress, "deflate": zlib.compress}
        pack = packing.get(headers.get("Content-Encoding", ""))
        if pack is not None and chance.random() < 0.8:
            content = pack(content if chance.random() < 0.8 else content + bytes(100 << 20))
        yield chance.choice(PATHS), content, headers


def set_parameters(chance: random.Random, field: Any) -> None:
    """Set parameters of a message, of the type of their values or of another one."""
    for name, value in parameters(chance).items():
        parameter = field.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            parameter.int64_param = value
        elif isinstance(value, int) and 0 <= value < 2**64:
            parameter.uint64_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        elif isinstance(value, str) and value.isascii():
            parameter.string_param = value


def ordinary(request: Any) -> Any:
    """Replace the inputs of a message by one that the model takes."""
    del request.inputs[:], request.raw_input_contents[:]
    request.inputs.add(name="item_id", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"\x09\0\0\0sku-00001")
    return request


def grpc_requests(seed: int, count: int) -> Iterator[bytes]:
    """Messages of ModelInfer."""
    from tritonclient.grpc import service_pb2

    chance = random.Random(seed)
    for _ in range(count):
        request = service_pb2.ModelInferRequest(model_name="recommender")
        if chance.random() < 0.05:
            request.model_name = chance.choice(["", "unknown", "../x", "a" * 2_000])
            request.model_version = chance.choice(["", "9", "-1", "x"])
        for _ in range(chance.choice([0, 1, 1, 2, 4])):
            dims = [d for d in DIMENSIONS if isinstance(d, int) and d < 2**63]
            shape = [1, 2] if chance.random() < 0.5 else chance.choices(dims, k=chance.randrange(4))
            name = chance.choice([n for n in NAMES if n])
            kind = chance.choice([k for k in KINDS if k is not None])
            field = request.inputs.add(name=name, datatype=kind, shape=shape)
            if chance.random() < 0.1:
                set_parameters(chance, field)
            if chance.random() < 0.3:
                field.contents.bytes_contents.extend([b"\xff", b"sku-00001"])
                field.contents.int_contents.extend([1, -(2**31)])
            if chance.random() < 0.7:
                raw = np.random.default_rng(chance.randrange(2**32)).bytes(
                    chance.choice([0, 4, 16])
                )
                request.raw_input_contents.append(raw)
        if chance.random() < 0.4:
            request = ordinary(request)
        for name in chance.choices(OUTPUTS, k=chance.choice([0, 1, 2])):
            output = request.outputs.add(name=name)
            if chance.random() < 0.6:
                set_parameters(chance, output)
        if chance.random() < 0.3:
            set_parameters(chance, request)
        message = request.SerializeToString()
        if chance.random() < 0.1:
            message = message[: chance.randrange(len(message) + 1)]
        yield message


class HttpAsker:
    """Sends what need not be HTTP's idea of a request, and reads the status that comes back."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection = http.client.HTTPConnection(address, timeout=30)

    def __call__(self, path: str, content: bytes, headers: dict[str, str]) -> int:
        """The status; the server may close the connection with it."""
        try:
            return self._ask(path, content, headers)
        except (http.client.HTTPException, ConnectionError):
            self.connection.close()
            return self._ask(path, content, headers)

    def _ask(self, path: str, content: bytes, headers: dict[str, str]) -> int:
        self.connection.request("POST", path, content, headers)
        response = self.connection.getresponse()
        response.read()
        return response.status
