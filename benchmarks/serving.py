"""`python -m benchmarks serve`: latency and rate of a server, and of a model that does nothing.

Server and clients share one core, so that figures do not depend on the number of cores; the model
that does nothing, in the same server and run, measures only the transport.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import machine_lines
from pipeline.core.artifact import read_manifest
from pipeline.exporting import triton_config as config
from pipeline.exporting.repository import step_names
from pipeline.reports.load_plot import load_plot
from pipeline.serve.client.client import Client
from pipeline.serve.load_test import (
    NUM_REQUESTS,
    OPEN_LOOP_SHARES,
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
    """Model of a server."""

    label: str
    url: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Loads of a benchmark."""

    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seconds: float = 4.0
    shares: tuple[float, ...] = OPEN_LOOP_SHARES
    """Rates of the open loop as shares of the highest rate of the closed loop."""
    protocol: str = "grpc"


@contextmanager
def with_noop(repository: Path, scratch: Path) -> Iterator[TritonServer]:
    """Yield a server on a copy of a repository with a further model that does nothing."""
    copied = scratch / "repository"
    shutil.copytree(repository, copied)
    encoder = config.read_config(copied / read_manifest(repository, "repository")["name"])
    item = next(tensor for tensor in encoder.input if tensor.name == "item_id")
    kind = config.type_name(item)
    inputs, outputs = [config.tensor("item_id", kind)], [config.tensor("scores", "TYPE_FP32")]
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
    """Measure a server of `repository`, on one core with its clients, and the one at `against`.

    Both get the same requests. ServingError if a request is refused.
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
    """Return the result of one load."""
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
    """Return Triton's counts by model, and the mean microseconds of each step."""
    import tritonclient.http

    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    counts = {}
    with tritonclient.http.InferenceServerClient(server.http_url) as client:
        for model in models:
            [entry] = client.get_inference_statistics(model)["model_stats"]
            times = entry["inference_stats"]
            counts[model] = {
                "requests": int(times["success"]["count"]),
                "sessions": int(entry["inference_count"]),
                "executions": int(entry["execution_count"]),
            } | {
                f"{part}_us": round(
                    int(times[part]["ns"]) / 1e3 / max(1, int(times[part]["count"])), 1
                )
                for part in parts
            }
    return counts


def serving_text(result: dict[str, Any]) -> str:
    """Return tables of the loads and of the steps of the server."""
    lines = [
        *machine_lines(result),
        f"{result['model']}, {result['items']:,} items; one core for server and clients, "
        f"{result['protocol']}",
        "",
        f"{'':<28}{'clients':>8}{'a second':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
        f"{'sessions/s':>12}  errors",
    ]
    for row in result["rows"]:
        label = f"{row['target']}, {row['sessions']} of {row['interactions']}"
        clients = str(row["clients"]) if row["rate"] is None else f"{row['rate']:.0f}/s"
        errors = sum(row["errors"].values())
        lines.append(
            f"{label:<28}{clients:>8}{row['requests_per_second']:>10,.0f}{row['p50_ms']:>9.2f}"
            f"{row['p95_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['sessions_per_second']:>12,.0f}"
            f"  {errors or ''}".rstrip()
        )
    lines += [
        "",
        "clients: so many at once, each sending its next request after the answer; N/s: an open "
        "loop, latency from the time at which a request was due",
        "",
        f"{'':<28}{'requests':>10}{'executions':>12}{'queue us':>10}{'input us':>10}"
        f"{'infer us':>10}{'output us':>11}",
    ]
    for name, step in result["steps"].items():
        lines.append(
            f"{name:<28}{step['requests']:>10,}{step['executions']:>12,}{step['queue_us']:>10.0f}"
            f"{step['compute_input_us']:>10.0f}{step['compute_infer_us']:>10.0f}"
            f"{step['compute_output_us']:>11.0f}"
        )
    return "\n".join(lines)


def serving_plot(result: dict[str, Any]) -> str:
    """Return an SVG of the latency of single sessions by load, in open and closed loops."""
    loads = {
        target: [row for row in result["rows"] if row["target"] == target and row["sessions"] == 1]
        for target in result["targets"]
    }
    title = f"{result['model']}, {result['items']:,} items, {result['protocol']}, one core"
    return load_plot(title, loads)
