"""Load test of a server: throughput and latency under concurrent requests.

Requests are encoded before the first one is sent and responses are not decoded, so that on a core
that client and server share nearly all of the time is the server's.
"""

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.core.artifact import read_manifest
from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.errors import ConfigError, ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.client.connection import address_of, channel_credentials
from pipeline.serve.client.served_model import ServedModel, request_tables
from pipeline.serve.runtime.encoder import item_array
from pipeline.serve.runtime.lookups import read_values
from pipeline.serve.triton.access import NO_ACCESS, Access

NUM_REQUESTS = 200
"""Different requests of a test, sent in turn."""
WARM_UP_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_OUTPUTS = ("item_ids", "scores")
_NUM_SAMPLES = 8
"""Requests that ask a server for the ids of its catalogue."""

Tensors = dict[str, np.ndarray]


class RequestShape(NamedTuple):
    """Size of each request."""

    sessions: int = 1
    """Sessions of a request."""
    interactions: int = 5
    """Interactions of a session."""
    k: int = 10
    """Length of the recommendation lists."""


@dataclass(frozen=True, kw_only=True)
class LoadTestResult:
    """Latencies and errors of one load."""

    clients: int
    """Connections, each with at most one request at a time."""
    rate: float | None
    """Requests a second of an open loop; None for a closed loop."""
    shape: RequestShape
    seconds: float
    """From the first request to the last response."""
    latencies_seconds: np.ndarray = field(repr=False)
    """(requests,) of the requests that were answered; in an open loop from when each was due."""
    errors: dict[str, int]
    """Number of failed requests by message."""

    @property
    def requests_per_second(self) -> float:
        """Answered requests a second."""
        return round(len(self.latencies_seconds) / self.seconds, 1)

    def quantile_ms(self, quantile: float) -> float | None:
        """Latency in milliseconds, None where no request was answered."""
        if not len(self.latencies_seconds):
            return None
        return round(float(np.quantile(self.latencies_seconds, quantile)) * 1e3, 3)

    def to_dict(self) -> dict[str, Any]:
        """Settings, rates and quantiles as JSON takes them."""
        return {
            "sessions": self.shape.sessions,
            "interactions": self.shape.interactions,
            "clients": self.clients,
            "rate": self.rate,
            "requests": len(self.latencies_seconds),
            "requests_per_second": self.requests_per_second,
            "p50_ms": self.quantile_ms(0.5),
            "p95_ms": self.quantile_ms(0.95),
            "p99_ms": self.quantile_ms(0.99),
            "errors": self.errors,
            "sessions_per_second": round(self.requests_per_second * self.shape.sessions, 1),
        }


def load_test(
    url: str,
    repository: Path | None = None,
    *,
    model: str = "recommender",
    clients: int = 8,
    seconds: float = 10.0,
    rate: float | None = None,
    shape: RequestShape = RequestShape(),  # noqa: B008  immutable
    access: Access = NO_ACCESS,
) -> LoadTestResult:
    """Measure a server at http://, grpc:// or grpcs://HOST:PORT with random requests.

    Requests are made from the description that the server gives of its model. Their values come
    from the tables of `repository`, a copy of what the server serves; without it, item ids are
    those that the server itself recommends and categorical features are left out.

    With `rate`, requests are sent at random moments, that many a second on average, whether or not
    earlier ones are answered; without it, each client sends the next request when it has the
    response to the last. ServingError where the server answers no request.
    """
    with Client(url, name=model, **access._asdict()) as client:
        served = client.served
        values = _sample_items(client) if repository is None else table_values(repository)
    requests = list(random_requests(served, values, shape, NUM_REQUESTS))
    return send_load(
        url, model, requests, clients=clients, seconds=seconds, rate=rate, shape=shape,
        access=access,
    )  # fmt: skip


def send_load(
    url: str,
    model: str,
    requests: Sequence[Tensors],
    *,
    clients: int,
    seconds: float,
    rate: float | None = None,
    shape: RequestShape,
    outputs: Sequence[str] = _OUTPUTS,
    access: Access = NO_ACCESS,
) -> LoadTestResult:
    """Warm `model` up and measure it with `requests`, sent in turn."""
    if clients < 1 or seconds <= 0 or (rate is not None and rate <= 0):
        raise ConfigError(
            f"The load is {clients} clients, {seconds} seconds and rate {rate}; expected at least "
            "1 client, and seconds and a rate above 0."
        )
    with ExitStack() as stack:
        connections = [
            stack.enter_context(closing(connect(url, model, access))) for _ in range(clients)
        ]
        bodies = [connections[0].encode(tensors, outputs) for tensors in requests]
        measure(connections, bodies, min(WARM_UP_SECONDS, seconds))
        latencies, errors, total_seconds = measure(connections, bodies, seconds, rate)
    if not len(latencies):
        raise ServingError(
            f"{url} answered none of the requests: {next(iter(errors), 'none sent')}"
        )
    return LoadTestResult(
        clients=clients,
        rate=rate,
        shape=shape,
        seconds=total_seconds,
        latencies_seconds=latencies,
        errors=errors,
    )


def table_values(repository: Path) -> dict[str, np.ndarray]:
    """Values of each categorical feature by tensor name, from the tables of an export."""
    facts = read_manifest(repository, "repository")
    folder = request_tables(repository, facts["name"], facts["version"])
    columns = json.loads((folder / "encoder.json").read_text("utf-8"))["columns"]
    return {
        column["name"]: item_array(read_values(folder, column["name"], column["type"]))
        for column in columns
        if column["kind"] == "categorical" and not {"buckets", "columns"} & column.keys()
    }


def _sample_items(client: Client) -> dict[str, np.ndarray]:
    """Item ids that the server recommends to sessions of random items, the first one unknown."""
    random = np.random.default_rng(0)
    items = np.array([], object)
    for _ in range(_NUM_SAMPLES):
        session = random.choice(items, 5).tolist() if len(items) else [None]
        recommended = client.recommend([{ITEM: session}], client.served.max_k).items[0]
        items = np.unique(np.concatenate([items, recommended]))
    kind = np.int64 if client.served.types[ITEM] == "int64" else object
    return {ITEM: items.astype(kind)}


def random_requests(
    served: ServedModel, values: Mapping[str, np.ndarray], shape: RequestShape, count: int
) -> Iterator[Tensors]:
    """`count` valid requests, the same in each call.

    Features with `values` are drawn from them, numbers are uniform from 0 to 100, and a feature
    that has neither is left out.
    """
    random = np.random.default_rng(0)
    for _ in range(count):
        tensors: Tensors = {}
        for name, kind in served.types.items():
            per_session = served.scopes.get(name) == "session"
            size = (shape.sessions, 1 if per_session else shape.interactions)
            if len(values.get(name, ())):
                tensors[name] = random.choice(values[name], size)
            elif kind == "float64":
                tensors[name] = random.uniform(0, 100, size)
        if served.timestamp_type is not None:
            steps = random.integers(1, 60, (shape.sessions, shape.interactions)).cumsum(1)
            tensors[TIMESTAMP] = _times(1_700_000_000 + steps, served.timestamp_type)
        tensors["k"] = np.full((shape.sessions, 1), min(shape.k, served.max_k), np.int32)
        yield tensors


def _times(seconds: np.ndarray, kind: str) -> np.ndarray:
    if kind == "string":
        return np.datetime_as_string(seconds.astype("datetime64[s]")).astype(object)
    return seconds.astype(kind)


class Connection(Protocol):
    """Connection of one client, which waits for each response."""

    def encode(self, tensors: Tensors, outputs: Sequence[str]) -> bytes:
        """Return a request as `send` takes it."""

    def send(self, request: bytes) -> str | None:
        """Send a request and wait. Return the error message, None for a valid response."""

    def close(self) -> None:
        """Close the connection."""


def connect(url: str, model: str, access: Access = NO_ACCESS) -> Connection:
    """Return a new connection by the protocol of the address."""
    scheme, address = address_of(url)
    if scheme == "http":
        return _HttpConnection(address, model, access)
    return _GrpcConnection(address, model, access, secure=scheme == "grpcs")


class _GrpcConnection:
    """gRPC channel without the objects of tritonclient."""

    def __init__(self, address: str, model: str, access: Access, *, secure: bool) -> None:
        import grpc

        # channels of a process share their sockets unless told otherwise
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = (
            grpc.secure_channel(address, channel_credentials(access), options)
            if secure
            else grpc.insecure_channel(address, options)
        )
        self._call = self._channel.unary_unary(_INFER)
        self._metadata = list(access.headers("grpc").items())
        self._model = model

    def encode(self, tensors: Tensors, outputs: Sequence[str]) -> bytes:
        from tritonclient.grpc import service_pb2
        from tritonclient.utils import np_to_triton_dtype

        request = service_pb2.ModelInferRequest(model_name=self._model)
        for name, array in tensors.items():
            request.inputs.add(
                name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape
            )
            request.raw_input_contents.append(_raw(array))
        for name in outputs:
            request.outputs.add(name=name)
        return bytes(request.SerializeToString())

    def send(self, request: bytes) -> str | None:
        import grpc

        try:
            self._call(request, timeout=TIMEOUT_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return None

    def close(self) -> None:
        self._channel.close()


class _HttpConnection:
    """HTTP connection that is kept open; one that the server closed is opened again."""

    def __init__(self, address: str, model: str, access: Access) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
        self._path = f"/v2/models/{model}/infer"
        self._headers = access.headers("http")

    def encode(self, tensors: Tensors, outputs: Sequence[str]) -> bytes:
        """The size of the JSON part on a line, followed by the body."""
        from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in tensors.items():
            inputs.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        requested = [InferRequestedOutput(name) for name in outputs]
        body, json_bytes = InferenceServerClient.generate_request_body(inputs, outputs=requested)
        return b"%d\n" % json_bytes + body

    def send(self, request: bytes) -> str | None:
        json_bytes, body = request.split(b"\n", 1)
        headers = self._headers | {"Inference-Header-Content-Length": json_bytes.decode()}
        try:
            self._connection.request("POST", self._path, body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return type(error).__name__
        if response.status != 200:
            return f"{response.status}: {content[:200].decode(errors='replace')}"
        return None

    def close(self) -> None:
        self._connection.close()


def _raw(array: np.ndarray) -> bytes:
    from tritonclient.utils import serialize_byte_tensor

    if array.dtype == np.object_:
        serialized = serialize_byte_tensor(array)
        return bytes(serialized.item()) if serialized.size else b""
    return array.tobytes()


class Measurement(NamedTuple):
    """Outcome of `measure`."""

    latencies_seconds: np.ndarray
    errors: dict[str, int]
    seconds: float


def measure(
    connections: Sequence[Connection],
    requests: Sequence[bytes],
    seconds: float,
    rate: float | None = None,
) -> Measurement:
    """Send `requests` in turn on all connections.

    A closed loop without `rate`. In the open loop, a latency begins when the request was due, so
    that one that waits for a free connection counts as late as its user would find it (no
    "coordinated omission").
    """
    due = None
    if rate is not None:
        random = np.random.default_rng(0)
        due = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    turns = itertools.count()
    start = threading.Barrier(len(connections))

    def ask(connection: Connection) -> tuple[list[float], list[str]]:
        latencies: list[float] = []
        errors: list[str] = []
        start.wait()
        began = time.perf_counter()
        while True:
            turn = next(turns)  # one step of the interpreter: no lock is needed
            moment = time.perf_counter()
            if (moment >= began + seconds) if due is None else (turn >= len(due)):
                return latencies, errors
            if due is not None:
                moment = began + due[turn]
                time.sleep(max(0.0, moment - time.perf_counter()))
            error = connection.send(requests[turn % len(requests)])
            if error is None:
                latencies.append(time.perf_counter() - moment)
            else:
                errors.append(error)

    began = time.perf_counter()
    with ThreadPoolExecutor(len(connections)) as pool:
        results = list(pool.map(ask, connections))
    return Measurement(
        np.array([latency for latencies, _ in results for latency in latencies]),
        dict(Counter(error for _, errors in results for error in errors)),
        time.perf_counter() - began,
    )
