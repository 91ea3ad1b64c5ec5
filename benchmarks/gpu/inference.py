"""Evaluation over a large catalogue, and the exported model with and without Triton."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.data import write_sessions
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.profile import Figures, peak, reset_peak, synchronize
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
    for list_lengths in ((), (20,)):
        for part in parts:
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
        yield ("ranks and lists" if list_lengths else "ranks"), figures | peak(device)


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
        with torch.inference_mode():
            times = []
            for _ in range(plan.calls + 5):
                begin = time.perf_counter()
                program(request).cpu()
                times.append(time.perf_counter() - begin)
        middle = statistics.median(times[5:])
        figures = {"sessions_per_second": sessions / middle, "milliseconds": 1_000 * middle}
        yield f"program, batch of {sessions}", figures | peak(device)


def measure_serving(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Time a server of the exported model, which Triton runs on a GPU if it has a backend there."""
    from pipeline.serve.load_test import RequestShape, load_test
    from pipeline.serve.triton.ports import free_ports
    from pipeline.serve.triton.server import TritonServer

    repository: Path = plan.scratch / _REPOSITORY
    if not repository.is_dir():
        raise PipelineError("There is no exported repository.")
    with TritonServer(repository, ports=free_ports()) as server:
        server.wait_until_ready(60)
        for clients in _CLIENTS:
            result = load_test(
                f"grpc://{server.grpc_url}",
                repository,
                clients=clients,
                seconds=min(3.0, plan.calls / 20),
                shape=RequestShape(1, _SESSION),
            ).to_dict()
            if result["errors"]:
                raise PipelineError(f"Requests failed: {result['errors']}")
            yield (
                f"server, {clients} clients",
                {
                    "sessions_per_second": result["sessions_per_second"],
                    "milliseconds": result["p50_ms"],
                    "note": f"p99 {result['p99_ms']} ms",
                },
            )
