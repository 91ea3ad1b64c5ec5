"""Load test of a server: throughput and latency under concurrent requests.

Requests are built before the first one is sent and responses are not decoded, so that most of the
time of a core that client and server share goes to the server.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.artifact import read_json, read_manifest
from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.errors import ArtifactError, ServingError
from pipeline.serve.client.answers import OUTPUTS
from pipeline.serve.client.client import Client
from pipeline.serve.client.connection import TIMEOUT_SECONDS
from pipeline.serve.client.served_model import ServedModel, request_tables
from pipeline.serve.runtime.lookups import read_values
from pipeline.serve.runtime.request_encoder import item_array
from pipeline.serve.triton.access import NO_ACCESS, Access

NUM_REQUESTS = 200
"""Number of different requests of a test, sent in turn."""
OPEN_LOOP_SHARES = (0.25, 0.5, 0.8, 0.95)
"""Rates of an open loop, as shares of the highest rate of the closed loop."""
_NUM_SAMPLES = 8
"""Number of requests that collect item ids from a server."""

Tensors = dict[str, NDArray[Any]]


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
    latencies_seconds: NDArray[Any] = field(repr=False)
    """(requests,) of the answered requests; in an open loop from the time when each was due."""
    errors: dict[str, int]
    """Number of failed requests by message."""

    @property
    def requests_per_second(self) -> float:
        """Answered requests a second."""
        return round(len(self.latencies_seconds) / self.seconds, 1)

    def quantile_ms(self, quantile: float) -> float | None:
        """Return a quantile of the latency in milliseconds, None without an answered request."""
        if not len(self.latencies_seconds):
            return None
        return round(float(np.quantile(self.latencies_seconds, quantile)) * 1e3, 3)

    def to_dict(self) -> dict[str, Any]:
        """Return settings, rates and quantiles as JSON values."""
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

    Requests follow the server's description of its model. Their values come from the tables of
    `repository`, a copy of the served one; without it, item ids are those that the server
    recommends, and categorical features are left out.

    With `rate` (open loop), requests are sent at random times, on average this number a second,
    without waiting for earlier answers; without it (closed loop), each client waits for its answer.
    ServingError if the server answers no request.
    """
    with Client(url, name=model, **access._asdict()) as client:
        served = client.served
        values = _sample_items(client) if repository is None else table_values(repository)
    requests = list(random_requests(served, values, shape, NUM_REQUESTS))
    return send_load(
        url, model, requests, clients=clients, seconds=seconds, rate=rate, shape=shape,
        outputs=OUTPUTS if served.ranks_items else served.targets, access=access,
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
    outputs: Sequence[str] = OUTPUTS,
    access: Access = NO_ACCESS,
) -> LoadTestResult:
    """Measure `model` with `requests`, sent in turn."""
    connect = partial(Client, url, name=model, **access._asdict())
    with connect() as client:
        prepared = [client.prepare(tensors, outputs) for tensors in requests]
    result = measure(connect, clients, prepared, seconds, rate, shape)
    if not len(result.latencies_seconds):
        reason = next(iter(result.errors), "none sent")
        raise ServingError(f"{url} answered none of the requests: {reason}")
    return result


def table_values(repository: Path) -> dict[str, NDArray[Any]]:
    """Return the values of each categorical feature by tensor name, from an export's tables."""
    facts = read_manifest(repository, "repository")
    folder = request_tables(repository, facts["name"], facts["version"])
    description = read_json(folder / "encoder.json")
    try:
        return {
            column["name"]: item_array(read_values(folder, column["name"], column["type"]))
            for column in description["columns"]
            if column["kind"] == "categorical" and not {"buckets", "columns"} & column.keys()
        }
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{folder}/encoder.json does not fit its tables: {line}") from None


def _sample_items(client: Client) -> dict[str, NDArray[Any]]:
    """Return item ids that the server recommends to random sessions, the first one unknown."""
    random = np.random.default_rng(0)
    items = np.array([], object)
    for _ in range(_NUM_SAMPLES):
        session = random.choice(items, 5).tolist() if len(items) else [None]
        recommended = client.recommend([{ITEM: session}], client.served.max_k).items[0]
        items = np.unique(np.concatenate([items, recommended]))
    kind = np.int64 if client.served.types[ITEM] == "int64" else object
    return {ITEM: items.astype(kind)}


def random_requests(
    served: ServedModel, values: Mapping[str, NDArray[Any]], shape: RequestShape, count: int
) -> Iterator[Tensors]:
    """Yield `count` valid requests, equal in each call.

    Features with `values` are drawn from them, numbers are uniform from 0 to 100, and other
    features are left out.
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
            times: NDArray[Any] = 1_700_000_000 + steps
            if served.timestamp_type == "string":
                texts = np.datetime_as_string(times.astype("datetime64[s]"))
                tensors[TIMESTAMP] = texts.astype(object)
            else:
                tensors[TIMESTAMP] = times.astype(served.timestamp_type)
        tensors["k"] = np.full((shape.sessions, 1), min(shape.k, served.max_k), np.int32)
        yield tensors


def measure(
    connect: Callable[[], Client],
    clients: int,
    requests: Sequence[dict[str, Any]],
    seconds: float,
    rate: float | None = None,
    shape: RequestShape = RequestShape(),  # noqa: B008  immutable
) -> LoadTestResult:
    """Send prepared `requests` in turn from this number of clients.

    A closed loop without `rate`. In an open loop, a latency begins when the request was due, so
    that the wait for a free connection counts (no "coordinated omission").
    """
    due = None
    if rate is not None:
        random = np.random.default_rng(0)
        due = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    turns = itertools.count()
    start = threading.Barrier(clients, timeout=2 * TIMEOUT_SECONDS)
    latencies: list[float] = []
    errors: list[str] = []

    def ask() -> float:
        with connect() as client:  # in the thread, to which a client for HTTP is bound
            with suppress(ServingError):
                client.send(requests[0])  # opens the connection
            start.wait()
            began = time.perf_counter()
            while True:
                turn = next(turns)  # atomic in CPython, so it needs no lock
                moment = time.perf_counter()
                if (moment >= began + seconds) if due is None else (turn >= len(due)):
                    return moment - began
                if due is not None:
                    moment = began + due[turn]
                    time.sleep(max(0.0, moment - time.perf_counter()))
                try:
                    client.send(requests[turn % len(requests)])
                    latencies.append(time.perf_counter() - moment)
                except ServingError as error:
                    errors.append(str(error))

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask) for _ in range(clients)]
    return LoadTestResult(
        clients=clients, rate=rate, shape=shape,
        seconds=max(future.result() for future in asked),
        latencies_seconds=np.array(latencies), errors=dict(Counter(errors)),
    )  # fmt: skip
