"""Evaluation over a large catalogue, and the exported model with and without Triton."""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import write_sessions
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.profile import Figures, figures_or_error, peak, reset_peak, synchronize
from benchmarks.settings import Setting
from benchmarks.shop import write_repository
from pipeline.core.columns import ITEM, SCHEMA_FILE
from pipeline.core.errors import PipelineError
from pipeline.data.loader import SessionLoader
from pipeline.data.schema import Schema
from pipeline.evaluation.targets import rank_targets
from pipeline.exporting.run import load_served
from pipeline.exporting.torchscript import example_request
from pipeline.model.build import build_model
from pipeline.model.model import Model
from pipeline.model.run import Run

_BATCH_SESSIONS = 1_024
"""Sessions of a batch, as in `pipeline evaluate`."""
_SESSION = 5
_BATCH_SIZES = (1, 16)
_CLIENTS = (1, 16)
_REPOSITORY = "repository"


def measure_evaluation(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Rank the last item of each session in the whole catalogue, with random weights."""
    device = torch.device(plan.device)
    data = plan.scratch / "evaluation"
    warm_up = max(1, plan.evaluation_sessions // 50)
    parts = {"valid": warm_up, "test": plan.evaluation_sessions}
    write_sessions(data, items=plan.catalogue, longest=plan.longest, parts=parts)
    setting = Setting(
        architecture="gpt2", masking="clm", items=plan.catalogue, d_model=plan.d_model, steps=0
    )
    schema = Schema.from_json(data / SCHEMA_FILE)
    model = build_model(schema, setting.model_config(), plan.longest, setting.train_config())
    model = model.to(device).eval()
    for name, list_lengths in (("ranks", ()), ("ranks and lists", (20,))):
        yield name, figures_or_error(partial(_time_ranks, plan, model, data, list_lengths))


def _time_ranks(plan: Plan, model: Model, data: Path, list_lengths: tuple[int, ...]) -> Figures:
    """Rank the sessions of the part `test`, after those of `valid`."""
    device = torch.device(plan.device)
    for part in ("valid", "test"):
        loader = SessionLoader(
            data,
            part,
            item=ITEM,
            features=model.inputs.feature_names,
            batch_size=_BATCH_SESSIONS,
        )
        reset_peak(device)
        synchronize(device)
        begin = time.perf_counter()
        ranked = rank_targets(model, loader, "last", list_lengths=list_lengths)
        seconds = time.perf_counter() - begin
    if len(ranked.ranks) != plan.evaluation_sessions:
        raise PipelineError(f"{len(ranked.ranks)} targets, expected one a session.")
    figures = {"sessions_per_second": len(ranked.ranks) / seconds, "work_seconds": seconds}
    return figures | peak(device)


def measure_export(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Export a model with random weights, and time the program without a server."""
    device = torch.device(plan.device)
    begin = time.perf_counter()
    repository = write_repository(
        plan.scratch,
        architecture="gpt2",
        items=plan.catalogue,
        d_model=plan.d_model,
        device="gpu" if plan.device == "cuda" else "cpu",
    )
    yield "export", {"work_seconds": time.perf_counter() - begin, "note": "with preprocessing"}
    [path] = repository.glob("*_model_v*/1/model.pt")
    program = torch.jit.load(str(path), map_location=device).eval()
    _, model = load_served(Run.open(plan.scratch / "run"))
    model = model.to(device)
    for sessions in _BATCH_SIZES:
        request = example_request(model, _SESSION, sessions).packed(model)
        yield (
            f"program, batch of {sessions}",
            figures_or_error(partial(_time_program, program, request, sessions, plan)),
        )


def _time_program(program: Any, request: Tensor, sessions: int, plan: Plan) -> Figures:
    """Return the median time of the exported program on a request of `sessions` sessions."""
    with torch.inference_mode():
        times = []
        for _ in range(plan.calls + 5):
            begin = time.perf_counter()
            program(request).cpu()
            times.append(time.perf_counter() - begin)
    middle = statistics.median(times[5:])
    figures = {"sessions_per_second": sessions / middle, "milliseconds": 1_000 * middle}
    return figures | peak(torch.device(plan.device))


def measure_serving(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Time a server of the exported model, which Triton runs on a GPU if it has a backend there."""
    from pipeline.serve.triton.ports import free_ports
    from pipeline.serve.triton.server import TritonServer

    repository: Path = plan.scratch / _REPOSITORY
    if not repository.is_dir():
        raise PipelineError("There is no exported repository.")
    with TritonServer(repository, ports=free_ports()) as server:
        server.wait_until_ready(60)
        for clients in _CLIENTS:
            yield (
                f"server, {clients} clients",
                figures_or_error(partial(_load_server, server.grpc_url, plan, clients)),
            )


def _load_server(grpc_url: str, plan: Plan, clients: int) -> Figures:
    """Return rate and latencies of requests by `clients` concurrent clients."""
    from pipeline.serve.load_test import RequestShape, load_test

    result = load_test(
        f"grpc://{grpc_url}",
        plan.scratch / _REPOSITORY,
        clients=clients,
        seconds=min(3.0, plan.calls / 20),
        shape=RequestShape(1, _SESSION),
    ).to_dict()
    if result["errors"]:
        raise PipelineError(f"Requests failed: {result['errors']}")
    return {
        "sessions_per_second": result["sessions_per_second"],
        "milliseconds": result["p50_ms"],
        "note": f"p99 {result['p99_ms']} ms",
    }
