"""`python -m benchmarks attackers`: honest clients of a server, with and without attackers.

The server, the clients of each protocol and each attacker are separate processes, attackers with
the lowest priority (nice 19): all share the cores of one machine, and the figures should show the
cost of the requests for the server, not that of sending them. Health is polled throughout.
"""

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine_lines
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ServingError

HEALTH_SECONDS = 0.05
"""Interval between health checks, each on a new connection."""
SETTLE_SECONDS = 10.0
"""Pause before the last measurement of memory."""
PROTOCOLS = ("grpc", "http")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Loads of a measurement."""

    clients: int = 16
    """Number of honest clients, half of them over each protocol."""
    attackers: int = 4
    seconds: float = 10.0
    turns: int = 3
    """Turns without and with attackers, alternately."""


class Server:
    """`pipeline serve` in a separate process."""

    def __init__(self, process: "subprocess.Popen[str]", facts: dict[str, Any]) -> None:
        self.process = process
        self.model: str = facts["model"]
        self.urls = {"http": facts["http"], "grpc": facts["grpc"]}

    def address(self, protocol: str) -> str:
        """Return HOST:PORT."""
        return self.urls[protocol].partition("//")[2]

    def processes(self) -> dict[int, str]:
        """Return the process ids of the server and its descendants, with their names."""
        return {self.process.pid: "proxy"} | dict(_below(self.process.pid))

    def resources(self) -> dict[str, int]:
        """Return total memory and open files of all processes, and their number."""
        memory = files = 0
        processes = self.processes()
        for pid in processes:
            with suppress(OSError):  # it has ended
                files += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        memory += int(line.split()[1]) * 1024
        return {"memory_bytes": memory, "files": files, "processes": len(processes)}

    def triton(self) -> list[int]:
        """Return the process ids of Triton and its models."""
        return sorted(pid for pid, name in self.processes().items() if name.startswith("triton"))


def _below(pid: int) -> Iterator[tuple[int, str]]:
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listing.read_text().split()):
            with suppress(OSError):  # it has ended
                yield child, Path(f"/proc/{child}/comm").read_text().strip()
                yield from _below(child)


@contextmanager
def serving(repository: Path, *options: str) -> Iterator[Server]:
    """Yield a server of `repository` on free ports. ServingError if it does not start."""
    words = ["serve", str(repository), "--json", *options]
    for protocol in ("http", "grpc", "metrics"):
        words += [f"--{protocol}-port", "0"]
    command = [sys.executable, "-m", "pipeline", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101
            line = process.stdout.readline()
            if not line:
                raise ServingError("The server did not start.")
            yield Server(process, json.loads(line))
        finally:
            process.terminate()


def measure_attackers(repository: Path, plan: Plan) -> dict[str, Any]:
    """Measure a server of `repository`. ServingError if it answers no honest request."""
    facts = read_manifest(repository, "repository")
    rows: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    with serving(repository) as server:
        send_loads(server, repository, plan)  # warms up
        before, tritons = server.resources(), server.triton()
        for _ in range(plan.turns):
            rows["without"].append(_measure(server, repository, plan))
            with attacking(server, plan, outcomes):
                rows["with"].append(_measure(server, repository, plan))
        time.sleep(SETTLE_SECONDS)
        after = server.resources()
        return {
            "items": facts["catalogue_items"],
            "plan": vars(plan),
            "rows": rows,
            "outcomes": outcomes,
            "before": before,
            "after": after,
            "restarted": server.triton() != tritons,
        }


@contextmanager
def attacking(server: Server, plan: Plan, outcomes: dict[str, Counter[str]]) -> Iterator[None]:
    """Run the attackers; at their end, add the outcomes of their requests to `outcomes`."""
    words = [server.address("http"), server.address("grpc"), server.model, str(plan.seconds + 1)]
    command = [sys.executable, "-m", "benchmarks.hostile", *words]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(plan.attackers)
    ]
    try:
        for process in processes:
            assert process.stdout is not None  # noqa: S101
            process.stdout.readline()
        for process in processes:
            assert process.stdin is not None  # noqa: S101
            process.stdin.write("go\n")
            process.stdin.flush()
        time.sleep(1)
        yield
        for process in processes:
            text, _ = process.communicate()
            for kind, counts in json.loads(text).items():
                outcomes[kind].update(counts)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _measure(server: Server, repository: Path, plan: Plan) -> dict[str, Any]:
    """Return the figures of honest clients, and the latencies of concurrent health checks."""
    with asking_health(server.address("http")) as health_ms:
        rows = send_loads(server, repository, plan)
    for protocol in PROTOCOLS:
        if protocol not in rows:
            raise ServingError(f"The server answers none of the requests over {protocol}.")
    return rows | {"health_ms": [round(ms, 2) for ms in health_ms]}


def send_loads(server: Server, repository: Path, plan: Plan) -> dict[str, Any]:
    """Return the figures of the honest clients by protocol, without protocols without answers."""
    loads = {}
    for protocol in PROTOCOLS:
        words = ["load-test", server.urls[protocol], "--name", server.model, "--json"]
        words += ["--repository", str(repository), "--seconds", str(plan.seconds)]
        words += ["--clients", str(plan.clients // len(PROTOCOLS))]
        loads[protocol] = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words], stdout=subprocess.PIPE, text=True
        )
    rows = {}
    for protocol, process in loads.items():
        text, _ = process.communicate()
        if process.returncode == 0:  # else the server answered none of its requests
            [load] = json.loads(text)["loads"]
            rows[protocol] = {
                key: load[key] for key in ("requests_per_second", "p50_ms", "p99_ms", "errors")
            }
    return rows


@contextmanager
def asking_health(address: str) -> Iterator[list[float]]:
    """Poll health until the end; yield the list of latencies in ms, infinite for a failure."""
    ended = threading.Event()
    times: list[float] = []

    def ask() -> None:
        while not ended.wait(HEALTH_SECONDS):
            began = time.perf_counter()
            try:
                with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
                    connection.request("GET", "/v2/health/ready")
                    is_ready = connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                is_ready = False
            times.append((time.perf_counter() - began) * 1e3 if is_ready else float("inf"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return the medians over the turns, and their ratios."""
    rows = result["rows"]
    p99 = {
        way: {p: statistics.median(row[p]["p99_ms"] for row in turns) for p in PROTOCOLS}
        for way, turns in rows.items()
    }
    health = {way: [ms for row in turns for ms in row["health_ms"]] for way, turns in rows.items()}
    return {
        "p99_ms": p99,
        "p99_ratio": {p: round(p99["with"][p] / p99["without"][p], 2) for p in PROTOCOLS},
        "health_p99_ms": {
            way: round(float(np.quantile(ms, 0.99)), 1) for way, ms in health.items()
        },
        "health_max_ms": {way: max(ms) for way, ms in health.items()},
        "errors": sum(
            sum(row[p]["errors"].values()) for turns in rows.values() for row in turns
            for p in PROTOCOLS
        ),
        "memory_ratio": round(
            result["after"]["memory_bytes"] / result["before"]["memory_bytes"], 3
        ),
    }  # fmt: skip


def attackers_text(result: dict[str, Any]) -> str:
    """Return the figures as text."""
    plan, facts = result["plan"], summary(result)
    lines = [
        *machine_lines(result, result["machine"]["cores"]),
        f"{result['model']}, {result['items']:,} items; {plan['clients']} honest clients, "
        f"{plan['attackers']} attackers; medians of {plan['turns']} turns of {plan['seconds']:g} s",
        "",
        f"{'':<24}{'without attackers':>18}{'with them':>12}{'ratio':>8}",
    ]
    for protocol in PROTOCOLS:
        for key, label in (("requests_per_second", "a second"), ("p50_ms", "p50 ms")):
            values = [
                statistics.median(row[protocol][key] for row in result["rows"][way])
                for way in ("without", "with")
            ]
            lines.append(_line(f"{protocol}, {label}", *values))
        p99 = facts["p99_ms"]
        lines.append(_line(f"{protocol}, p99 ms", p99["without"][protocol], p99["with"][protocol]))
    for key, label in (("health_p99_ms", "health, p99 ms"), ("health_max_ms", "health, max ms")):
        lines.append(_line(label, facts[key]["without"], facts[key]["with"]))
    lines += ["", f"{'':<24}{'before':>18}{'after':>12}{'ratio':>8}"]
    before, after = result["before"], result["after"]
    lines.append(_line("memory MB", before["memory_bytes"] / 1e6, after["memory_bytes"] / 1e6))
    lines += [_line(key, before[key], after[key]) for key in ("files", "processes")]
    lines += [
        "",
        f"errors of honest clients: {facts['errors']}; "
        f"Triton restarted: {'yes' if result['restarted'] else 'no'}",
        "",
        "hostile requests, by outcome:",
    ]
    for kind, counts in sorted(result["outcomes"].items()):
        text = ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items()))
        lines.append(f"  {kind:<28}{text}")
    return "\n".join(lines)


def _line(label: str, first: float, second: float) -> str:
    ratio = f"{second / first:.2f}" if first else ""
    return f"{label:<24}{first:>18,.1f}{second:>12,.1f}{ratio:>8}"
