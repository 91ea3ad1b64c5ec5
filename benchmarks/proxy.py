"""`python -m benchmarks proxy`: cost of the proxy in front of Triton.

Loads go through the proxy of a server and directly to its Triton, in turn, from separate processes.
The processor time is that of the proxy's process, divided by its requests.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_lines
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ServingError
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Loads of a benchmark."""

    clients: tuple[int, ...] = (1, 16)
    seconds: float = 3.0
    turns: int = 4


def measure_proxy(repository: Path, plan: Plan) -> dict[str, Any]:
    """Measure a server of `repository` with its proxy and without. ServingError for an error."""
    facts = read_manifest(repository, "repository")
    rows = []
    with running_server(repository, ports=free_ports()) as server:
        outer, inner = server.ports, server.triton_ports
        for protocol, proxy_port, triton_port in (
            ("grpc", outer.grpc, inner.grpc),
            ("http", outer.http, inner.http),
        ):
            for clients in plan.clients:
                turns: dict[str, list[dict[str, float]]] = {"proxy": [], "triton": []}
                for _ in range(plan.turns):
                    for way, port in (("proxy", proxy_port), ("triton", triton_port)):
                        url = f"{protocol}://127.0.0.1:{port}"
                        turns[way].append(_load(url, facts["name"], repository, clients, plan))
                medians = {
                    way: {key: statistics.median(turn[key] for turn in results) for key in _KEYS}
                    for way, results in turns.items()
                }
                rows.append({"protocol": protocol, "clients": clients, "turns": turns, **medians})
    return {"items": facts["catalogue_items"], "seconds": plan.seconds, "rows": rows}


_KEYS = ("requests_per_second", "p50_ms", "p99_ms", "processor_ms")


def _load(url: str, name: str, repository: Path, clients: int, plan: Plan) -> dict[str, float]:
    """Return the figures of one load, with this process's processor time per request."""
    words = ["load-test", url, "--name", name, "--repository", repository, "--json"]
    words += ["--clients", clients, "--seconds", plan.seconds]
    began = time.process_time()
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, words)], capture_output=True, text=True
    )
    used = time.process_time() - began
    if result.returncode != 0:
        raise ServingError(result.stderr.strip())
    [row] = json.loads(result.stdout)["loads"]
    if row["errors"]:
        raise ServingError(f"{url} refused requests: {row['errors']}")
    row["processor_ms"] = round(used / row["requests"] * 1e3, 3)
    return {key: row[key] for key in _KEYS}


def proxy_text(result: dict[str, Any]) -> str:
    """Return a table of the loads, with medians of all turns."""
    head = f"{'':<14}{'requests a second':>24}{'p50 ms':>18}{'processor ms':>14}"
    lines = [
        *machine_lines(result, result["machine"]["cores"]),
        f"{result['model']}, {result['items']:,} items; medians of "
        f"{len(result['rows'][0]['turns']['proxy'])} turns of {result['seconds']:g} s",
        "",
        head,
        f"{'clients':<14}{'Triton':>12}{'proxy':>12}{'Triton':>9}{'proxy':>9}{'a request':>14}",
    ]
    for row in result["rows"]:
        triton, proxy = row["triton"], row["proxy"]
        lines.append(
            f"{row['protocol'] + ', ' + str(row['clients']):<14}"
            f"{triton['requests_per_second']:>12,.0f}{proxy['requests_per_second']:>12,.0f}"
            f"{triton['p50_ms']:>9.2f}{proxy['p50_ms']:>9.2f}{proxy['processor_ms']:>14.3f}"
        )
    return "\n".join(lines)
