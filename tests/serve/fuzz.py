"""Malformed requests, made from a seed: broken JSON, absurd shapes, types, sizes and values."""

import http.client
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.conftest import SESSION

NAMES = [
    *(*SESSION, "k", "length", "exclude", "candidates", "filter_seen", "session_id"),
    *("unknown", ""),
]
KINDS = ["BYTES", "INT64", "INT32", "FP64", "FP32", "BOOL", "UINT8", "FP16", "BF16", "X", "", None]
DIMENSIONS: list[Any] = [0, 1, 2, 3, 20, 21, 1000, -1, -(2**31), 2**64, 1.5, "2", None, []]
"""None that is large: the Triton of the wheel, 2.51, makes room for as many values as the shape of
a tensor in JSON says, and ends where there is no such room. See docs/serving.md."""
LARGE = [2**31, 2**40, 2**62]
VALUES: list[Any] = [
    *("sku-00001", "", "\0", "a\0b", "\ud800", "\udfff\ud800", "é" * 50, "x" * 3_000),
    *("2026-01-05", "2026-13-45 99:99", "9" * 400, 0, 1, -1, 10, 2**31, -(2**63), 2**63, 2**64),
    *(1e308, -1e308, float("1e400"), 5e-324, float("nan"), True, False, None, [], {}, [[1]]),
    {"a": 1},
]
HEADER = "Inference-Header-Content-Length"


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
    if chance.random() < 0.2:
        whole["outputs"] = chance.choice([[], [{"name": "scores"}], [{"name": "x"}], 3, [{}]])
    if chance.random() < 0.1:
        whole["parameters"] = chance.choice([{"timeout": -1}, {"priority": 2**63}, {"x": []}, 7])
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


def http_requests(seed: int, count: int) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Bodies and headers."""
    chance = random.Random(seed)
    for _ in range(count):
        if chance.random() < 0.3:
            content, stated = binary(chance)
            yield content, {HEADER: stated}
        else:
            yield body(chance), {}


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
            dims = [d for d in DIMENSIONS if isinstance(d, int) and d < 2**63] + LARGE
            shape = [1, 2] if chance.random() < 0.5 else chance.choices(dims, k=chance.randrange(4))
            name = chance.choice([n for n in NAMES if n])
            kind = chance.choice([k for k in KINDS if k is not None])
            field = request.inputs.add(name=name, datatype=kind, shape=shape)
            if chance.random() < 0.3:
                field.contents.bytes_contents.extend([b"\xff", b"sku-00001"])
                field.contents.int_contents.extend([1, -(2**31)])
            if chance.random() < 0.7:
                raw = np.random.default_rng(chance.randrange(2**32)).bytes(
                    chance.choice([0, 4, 16])
                )
                request.raw_input_contents.append(raw)
        message = request.SerializeToString()
        if chance.random() < 0.1:
            message = message[: chance.randrange(len(message) + 1)]
        yield message


class HttpAsker:
    """Sends what need not be HTTP's idea of a request, and reads the status that comes back."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection = http.client.HTTPConnection(address, timeout=30)

    def __call__(self, content: bytes, headers: dict[str, str]) -> int:
        """The status; the server may close the connection with it."""
        url = "/v2/models/recommender/infer"
        try:
            self.connection.request("POST", url, content, headers)
            response = self.connection.getresponse()
            response.read()
        except (http.client.HTTPException, ConnectionError):
            self.connection.close()
            self.connection.request("POST", url, content, headers)
            response = self.connection.getresponse()
            response.read()
        return response.status
