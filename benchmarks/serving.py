"""`python -m benchmarks serve`: how fast a server answers, beside a model that does nothing.

Server and clients share one core, so that figures do not depend on how many there are; the model
that does nothing, in the same server and run, says what the way there and back costs.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import load
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ServingError
from pipeline.exporting import triton_config as config
from pipeline.exporting.repository import step_names
from pipeline.serve.runtime.encoder import Encoder, item_array
from pipeline.serve.runtime.lookups import read_values
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer

NOOP = "noop"
_REQUESTS = 200
"""Different ones, asked in turn."""
_WARM_UP_SECONDS = 0.5
_K = 10


class Setting(NamedTuple):
    """One kind of load."""

    sessions: int
    """Of a request."""
    interactions: int
    """Of a session."""
    clients: int
    rate: float | None = None
    """Requests a second of an open loop; None where a client asks again when it has its answer."""


class Target(NamedTuple):
    """Who is asked."""

    label: str
    url: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seconds: float = 4.0
    shares: tuple[float, ...] = (0.5, 0.8)
    """Rates of the open loop, of the closed loop's highest."""
    protocol: str = "grpc"


def requests_of(folder: Path, sessions: int, interactions: int, seed: int = 0) -> Iterator[Any]:
    """Tensors of random requests, from the tables of an exported model."""
    encoder = Encoder(folder)
    random = np.random.default_rng(seed)
    values = {
        column["name"]: item_array(read_values(folder, column["name"], column["type"]))
        for column in encoder.columns
        if column["kind"] == "categorical"
    }
    for _ in range(_REQUESTS):
        tensors: dict[str, np.ndarray] = {}
        for column in encoder.columns:
            shape = (sessions, 1 if column["scope"] == "session" else interactions)
            known = values.get(column["name"])
            if known is None:
                tensors[column["name"]] = random.uniform(0, 100, shape)
            elif len(known):
                tensors[column["name"]] = random.choice(known, shape)
        if encoder.timestamp is not None and encoder.timestamp["type"] == "int64":
            steps = random.integers(1, 60, (sessions, interactions)).cumsum(1)
            tensors["timestamp"] = 1_700_000_000 + steps
        tensors["k"] = np.full((sessions, 1), _K, np.int32)
        yield tensors


@contextmanager
def with_noop(repository: Path, scratch: Path) -> Iterator[TritonServer]:
    """A server on a copy of a repository, a model that does nothing beside it."""
    copied = scratch / "repository"
    shutil.copytree(repository, copied)
    encoder = config.read_config(copied / read_manifest(repository, "repository")["name"])
    item = next(tensor for tensor in encoder.input if tensor.name == "item_id")
    kind = config.type_name(item)
    inputs = [config.Tensor("item_id", kind, (-1,))]
    outputs = [config.Tensor("scores", "TYPE_FP32", (-1,))]
    config.write_config(
        copied / NOOP, config.python_model(NOOP, inputs, outputs, encoder.max_batch_size)
    )
    (copied / NOOP / "1").mkdir()
    source = Path(__file__).with_name("noop.py")
    shutil.copyfile(source, copied / NOOP / "1" / "model.py")
    with TritonServer(copied, ports=free_ports()) as server:
        server.wait_until_ready(120)
        yield server


def measure_serving(
    repository: Path, scratch: Path, plan: Plan, *, core: int | None, against: str | None
) -> dict[str, Any]:
    """Load on a server of `repository`, on one core with its clients, and on another at `against`.

    What is asked of both is the same. ServingError where a request is refused.
    """
    facts = read_manifest(repository, "repository")
    name = facts["name"]
    steps = step_names(name, facts["version"])
    folder = repository / steps[0] / "1"
    affinity = os.sched_getaffinity(0)
    with ExitStack() as stack:
        if core is not None:
            os.sched_setaffinity(0, {core})
            stack.callback(os.sched_setaffinity, 0, affinity)
        server = stack.enter_context(with_noop(repository, scratch))
        url = f"{plan.protocol}://" + (
            server.grpc_url if plan.protocol == "grpc" else server.http_url
        )
        targets = [Target(name, url, name)]
        if against:
            targets.append(Target(against, against, name))
        noop = Target("a model that does nothing", url, NOOP)
        one, ten = (list(requests_of(folder, *shape)) for shape in ((1, 5), (32, 10)))
        items = [{"item_id": tensors["item_id"]} for tensors in one]
        rows = [_row(noop, items, Setting(1, 5, clients), plan) for clients in (1, 16)]
        for target in targets:
            closed = [_row(target, one, Setting(1, 5, n), plan) for n in plan.clients]
            highest = max(row["requests_per_second"] for row in closed)
            rows += closed
            rows += [
                _row(target, one, Setting(1, 5, 32, round(share * highest, 1)), plan)
                for share in plan.shares
            ]
            rows += [_row(target, ten, Setting(32, 10, n), plan) for n in (1, 4)]
        return {
            "items": facts["catalogue_items"],
            "protocol": plan.protocol,
            "targets": [target.label for target in targets],
            "rows": rows,
            "steps": statistics(server, (*steps, NOOP)),
        }


def _row(
    target: Target, tensors: list[dict[str, np.ndarray]], setting: Setting, plan: Plan
) -> dict[str, Any]:
    """What came of one load."""
    outputs = ("scores",) if target.model == NOOP else ("item_ids", "scores")
    requests = [load.request_bytes(target.url, target.model, given, outputs) for given in tensors]
    connections = [load.connect(target.url, target.model) for _ in range(setting.clients)]
    try:
        load.closed_loop(connections, requests, _WARM_UP_SECONDS)
        if setting.rate is None:
            found = load.closed_loop(connections, requests, plan.seconds)
        else:
            found = load.open_loop(connections, requests, plan.seconds, setting.rate)
    finally:
        for connection in connections:
            connection.close()
    facts = found.facts()
    if not facts["requests"]:
        raise ServingError(
            f"{target.url} answered none of the requests: {next(iter(found.errors))}"
        )
    per_second = round(facts["requests_per_second"] * setting.sessions, 1)
    return {"target": target.label, **setting._asdict(), **facts, "sessions_per_second": per_second}


def statistics(server: TritonServer, models: tuple[str, ...]) -> dict[str, Any]:
    """By model, as Triton counts: requests, sessions, executions, mean microseconds of each."""
    import tritonclient.http

    found = {}
    with tritonclient.http.InferenceServerClient(server.http_url) as client:
        for model in models:
            [entry] = client.get_inference_statistics(model)["model_stats"]
            times = entry["inference_stats"]
            found[model] = {
                "requests": int(times["success"]["count"]),
                "sessions": int(entry["inference_count"]),
                "executions": int(entry["execution_count"]),
                **{
                    f"{part}_us": round(
                        int(times[part]["ns"]) / 1e3 / max(1, int(times[part]["count"])), 1
                    )
                    for part in ("queue", "compute_input", "compute_infer", "compute_output")
                },
            }
    return found
