"""Load on a Triton server: requests that stand ready as bytes, and how long answers take.

What is sent is made before anything is timed, and answers are not taken apart, so that on a core
that client and server share nearly all of the time is the server's.
"""

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import numpy as np

from pipeline.core.errors import ConfigError
from pipeline.serve.client.wire import address_of

_TIMEOUT_SECONDS = 30.0
_INFER = "/inference.GRPCInferenceService/ModelInfer"

Tensors = dict[str, np.ndarray]
Send = Callable[[bytes], str | None]
"""Asks with a request and waits; what was wrong with the answer, None if nothing was."""


class Load(NamedTuple):
    """What came of some seconds of load."""

    seconds: float
    """From the first request to the last answer."""
    latencies: np.ndarray
    """(requests,) seconds of those that were answered; of an open loop from when they were due."""
    errors: dict[str, int]
    """Requests that failed, by what was said."""

    def facts(self) -> dict[str, Any]:
        """Rates, and quantiles in milliseconds; None where nothing was answered."""
        if not len(self.latencies):
            p50 = p95 = p99 = None
        else:
            p50, p95, p99 = (
                round(float(v) * 1e3, 3) for v in np.quantile(self.latencies, [0.5, 0.95, 0.99])
            )
        return {
            "requests": len(self.latencies),
            "requests_per_second": round(len(self.latencies) / self.seconds, 1),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "errors": self.errors,
        }


class Connection(Protocol):
    """Of one caller."""

    def send(self, request: bytes) -> str | None:
        """What was wrong with the answer, None if nothing was."""

    def close(self) -> None: ...


@dataclass
class GrpcConnection:
    """A channel and its one method, without tritonclient's own objects."""

    url: str
    _channel: Any = field(init=False)

    def __post_init__(self) -> None:
        import grpc

        # channels of a process share their sockets unless told otherwise
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(address_of(self.url)[1], options)
        self._call = self._channel.unary_unary(_INFER)

    def send(self, request: bytes) -> str | None:
        import grpc

        try:
            self._call(request, timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return None

    def close(self) -> None:
        self._channel.close()


@dataclass
class HttpConnection:
    """A connection that is kept; one that the server closed is opened again."""

    url: str
    name: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        assert parts.hostname is not None  # noqa: S101
        self._connection = http.client.HTTPConnection(
            parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS
        )

    def send(self, request: bytes) -> str | None:
        # the length of the JSON part stands before the whole, see `http_request`
        size, body = request.split(b"\n", 1)
        headers = {"Inference-Header-Content-Length": size.decode()}
        try:
            self._connection.request("POST", f"/v2/models/{self.name}/infer", body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return type(error).__name__
        if response.status != 200:
            return f"{response.status}: {answer[:200].decode(errors='replace')}"
        return None

    def close(self) -> None:
        self._connection.close()


def connect(url: str, name: str) -> Connection:
    """By the protocol of the address. ConfigError for one with TLS, which is not measured here."""
    if address_of(url)[0] == "grpcs":
        raise ConfigError(f"{url} has TLS; expected http://HOST:PORT or grpc://HOST:PORT.")
    return GrpcConnection(url) if address_of(url)[0] == "grpc" else HttpConnection(url, name)


def request_bytes(url: str, name: str, tensors: Tensors, outputs: Sequence[str]) -> bytes:
    """A request as `Connection.send` takes it, for these outputs alone."""
    if address_of(url)[0] == "grpc":
        return grpc_request(name, tensors, outputs)
    return http_request(tensors, outputs)


def grpc_request(name: str, tensors: Tensors, outputs: Sequence[str]) -> bytes:
    """The message of KServe's ModelInfer."""
    from tritonclient.grpc import service_pb2
    from tritonclient.utils import np_to_triton_dtype

    request = service_pb2.ModelInferRequest(model_name=name)
    for tensor, array in tensors.items():
        kind = np_to_triton_dtype(array.dtype)
        request.inputs.add(name=tensor, datatype=kind, shape=array.shape)
        request.raw_input_contents.append(_raw(array))
    for output in outputs:
        request.outputs.add(name=output)
    return bytes(request.SerializeToString())


def http_request(tensors: Tensors, outputs: Sequence[str]) -> bytes:
    """The length of the JSON part on a line, the JSON, the tensors."""
    import json

    from tritonclient.utils import np_to_triton_dtype

    parts = [_raw(array) for array in tensors.values()]
    inputs = [
        {
            "name": name,
            "datatype": np_to_triton_dtype(array.dtype),
            "shape": array.shape,
            "parameters": {"binary_data_size": len(part)},
        }
        for (name, array), part in zip(tensors.items(), parts, strict=True)
    ]
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    header = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
    return b"%d\n" % len(header) + header + b"".join(parts)


def _raw(array: np.ndarray) -> bytes:
    from tritonclient.utils import serialize_byte_tensor

    if array.dtype == np.object_:
        serialized = serialize_byte_tensor(array)
        return bytes(serialized.item()) if serialized.size else b""
    return array.tobytes()


class _Tally:
    """Answers of several callers."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.errors: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, latencies: list[float], errors: list[str]) -> None:
        with self._lock:
            self.latencies += latencies
            for error in errors:
                self.errors[error] = self.errors.get(error, 0) + 1


def closed_loop(
    connections: Sequence[Connection], requests: Sequence[bytes], seconds: float
) -> Load:
    """Each connection asks again as soon as it has its answer, for so many seconds."""
    tally = _Tally()
    start = threading.Barrier(len(connections) + 1)

    def ask(connection: Connection, offset: int) -> None:
        latencies, errors = [], []
        start.wait()
        until = time.perf_counter() + seconds
        turn = offset
        while (before := time.perf_counter()) < until:
            error = connection.send(requests[turn % len(requests)])
            if error is None:
                latencies.append(time.perf_counter() - before)
            else:
                errors.append(error)
            turn += len(connections)
        tally.add(latencies, errors)

    callers = [
        threading.Thread(target=ask, args=(connection, i), daemon=True)
        for i, connection in enumerate(connections)
    ]
    for caller in callers:
        caller.start()
    start.wait()
    began = time.perf_counter()
    for caller in callers:
        caller.join()
    return Load(time.perf_counter() - began, np.array(tally.latencies), tally.errors)


def open_loop(
    connections: Sequence[Connection],
    requests: Sequence[bytes],
    seconds: float,
    rate: float,
    seed: int = 0,
) -> Load:
    """So many requests a second at random moments, whether or not earlier ones are answered.

    A request counts from the moment when it was due, so that one that waits for a free connection
    is as late as its user would find it (no "coordinated omission").
    """
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds)))
    tally = _Tally()
    lock = threading.Lock()
    turns = iter(range(len(due)))
    start = threading.Barrier(len(connections) + 1)
    began = 0.0

    def ask(connection: Connection) -> None:
        latencies, errors = [], []
        start.wait()
        while True:
            with lock:
                turn = next(turns, None)
            if turn is None:
                break
            moment = began + due[turn]
            if (left := moment - time.perf_counter()) > 0:
                time.sleep(left)
            error = connection.send(requests[turn % len(requests)])
            if error is None:
                latencies.append(time.perf_counter() - moment)
            else:
                errors.append(error)
        tally.add(latencies, errors)

    callers = [
        threading.Thread(target=ask, args=(connection,), daemon=True) for connection in connections
    ]
    for caller in callers:
        caller.start()
    began = time.perf_counter()
    start.wait()
    for caller in callers:
        caller.join()
    return Load(time.perf_counter() - began, np.array(tally.latencies), tally.errors)
