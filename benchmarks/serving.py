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

from pipeline.core.artifact import read_manifest
from pipeline.exporting import triton_config as config
from pipeline.exporting.repository import step_names
from pipeline.serve.client.client import Client
from pipeline.serve.load_test import (
    NUM_REQUESTS,
    RequestShape,
    Tensors,
    random_requests,
    send_load,
    table_values,
)
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer

NOOP = "noop"
_ONE, _TEN = RequestShape(1, 5), RequestShape(32, 10)


class Target(NamedTuple):
    """A model of a server."""

    label: str
    url: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Loads of a benchmark."""

    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seconds: float = 4.0
    shares: tuple[float, ...] = (0.5, 0.8)
    """Rates of the open loop as shares of the highest rate of the closed loop."""
    protocol: str = "grpc"


@contextmanager
def with_noop(repository: Path, scratch: Path) -> Iterator[TritonServer]:
    """A server on a copy of a repository, a model that does nothing beside it."""
    copied = scratch / "repository"
    shutil.copytree(repository, copied)
    encoder = config.read_config(copied / read_manifest(repository, "repository")["name"])
    item = next(tensor for tensor in encoder.input if tensor.name == "item_id")
    kind = config.type_name(item)
    inputs = [config.TensorConfig("item_id", kind, (-1,))]
    outputs = [config.TensorConfig("scores", "TYPE_FP32", (-1,))]
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
        with Client(url, name=name) as client:
            served = client.served
        values = table_values(repository)
        one, ten = (
            list(random_requests(served, values, shape, NUM_REQUESTS)) for shape in (_ONE, _TEN)
        )
        items = [{"item_id": tensors["item_id"]} for tensors in one]
        rows = [_row(noop, items, _ONE, clients, plan) for clients in (1, 16)]
        for target in targets:
            closed = [_row(target, one, _ONE, n, plan) for n in plan.clients]
            highest = max(row["requests_per_second"] for row in closed)
            rows += closed
            rows += [
                _row(target, one, _ONE, 32, plan, rate=round(share * highest, 1))
                for share in plan.shares
            ]
            rows += [_row(target, ten, _TEN, n, plan) for n in (1, 4)]
        return {
            "items": facts["catalogue_items"],
            "protocol": plan.protocol,
            "targets": [target.label for target in targets],
            "rows": rows,
            "steps": statistics(server, (*steps, NOOP)),
        }


def _row(
    target: Target,
    requests: list[Tensors],
    shape: RequestShape,
    clients: int,
    plan: Plan,
    rate: float | None = None,
) -> dict[str, Any]:
    """Result of one load."""
    result = send_load(
        target.url,
        target.model,
        requests,
        clients=clients,
        seconds=plan.seconds,
        rate=rate,
        shape=shape,
        outputs=("scores",) if target.model == NOOP else ("item_ids", "scores"),
    )
    return {"target": target.label, **result.to_dict()}


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
