"""`python -m benchmarks soak`: a server under concurrent load, attacks, exports and kills.

Honest clients and attackers run as in `attackers`; every minute the server loads a new export, and
every few minutes the process of a model is killed. At the end the launcher itself is killed by
SIGKILL, and the remaining processes and files are counted.
"""

import os
import signal
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attackers import (
    PROTOCOLS,
    SETTLE_SECONDS,
    Server,
    asking_health,
    attacking,
    send_loads,
    serving,
)
from benchmarks.attackers import Plan as AttackPlan
from benchmarks.machine import machine_lines
from benchmarks.shop import write_repository
from pipeline.exporting.run import export

EXPORT_SECONDS, KILL_SECONDS = 60.0, 200.0
"""Intervals of the exports and of the kills: `serve` restarts Triton five times in ten minutes."""
WINDOW_SECONDS = 20.0
"""Duration of one load; clients of the next one open new connections."""
ORPHAN_SECONDS = 30.0
"""Time in which all processes must end after the launcher."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the one place of POSIX shared memory on Linux


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Load of a soak test."""

    minutes: float = 30.0
    clients: int = 16
    attackers: int = 4


def measure_soak(folder: Path, plan: Plan) -> dict[str, Any]:
    """Measure a server of a random model; `folder` is for its files."""
    repository = write_repository(folder, architecture="xlnet", items=200, d_model=32)
    load = AttackPlan(clients=plan.clients, attackers=plan.attackers, seconds=WINDOW_SECONDS)
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    errors: Counter[str] = Counter()
    windows: list[dict[str, Any]] = []
    shared_before = _shared_memory()
    kills: list[str] = []
    num_exports = [0]

    def export_again() -> None:
        export(folder / "run", repository)
        num_exports[0] += 1

    with serving(repository, "--reload", "2") as server:
        send_loads(server, repository, load)  # warms up
        before = server.resources() | {"shared_memory": len(_shared_memory() - shared_before)}
        until = time.monotonic() + plan.minutes * 60
        with (
            repeating(EXPORT_SECONDS, export_again),
            repeating(KILL_SECONDS, lambda: kills.append(kill_instance(server))),
        ):
            while time.monotonic() < until:
                with (
                    attacking(server, load, outcomes),
                    asking_health(server.address("http")) as health_ms,
                ):
                    window = send_loads(server, repository, load)
                for figures in window.values():
                    errors.update(figures.pop("errors"))
                memory = server.resources()["memory_bytes"]
                windows.append(window | {"health_ms": health_ms, "memory_bytes": memory})
        send_loads(server, repository, load)
        time.sleep(SETTLE_SECONDS)
        after = server.resources() | {"shared_memory": len(_shared_memory() - shared_before)}
        processes = server.processes()
        server.process.send_signal(signal.SIGKILL)
        left = _left(processes)
    return {
        "plan": vars(plan),
        "windows": windows,
        "errors": errors,
        "outcomes": outcomes,
        "exports": num_exports[0],
        "kills": kills,
        "before": before,
        "after": after,
        "left_processes": left,
        "left_shared_memory": len(_shared_memory() - shared_before),
    }


@contextmanager
def repeating(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` periodically in another thread while the block runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def kill_instance(server: Server) -> str:
    """Kill the process of one model, each in turn; return `model`, or `none` without one."""
    instances = [pid for pid, name in server.processes().items() if name.startswith("triton_py")]
    if not instances:  # Triton is restarting
        return "none"
    with suppress(ProcessLookupError):
        os.kill(instances[int(time.monotonic()) % len(instances)], signal.SIGKILL)
    return "model"


def _shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("triton_*")}


def _left(processes: dict[int, str]) -> int:
    """Return how many processes still run after the launcher."""
    until = time.monotonic() + ORPHAN_SECONDS
    left = list(processes)[1:]
    while left and time.monotonic() < until:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        time.sleep(0.2)
    return len(left)


def soak_text(result: dict[str, Any]) -> str:
    """Return the figures as text."""
    plan, windows = result["plan"], result["windows"]
    lines = [
        *machine_lines(result, result["machine"]["cores"]),
        f"{plan['minutes']:g} minutes, {plan['clients']} honest clients, {plan['attackers']} "
        f"attackers; {result['exports']} exports, {result['kills'].count('model')} kills; "
        f"{len(windows)} windows of {WINDOW_SECONDS:g} s",
        "",
        f"{'':<24}{'median window':>16}{'worst':>12}",
    ]
    for protocol in PROTOCOLS:
        p99 = [window[protocol]["p99_ms"] for window in windows if protocol in window]
        lines.append(
            f"{protocol + ', p99 ms':<24}{statistics.median(p99):>16,.1f}{max(p99):>12,.1f}"
        )
    answered = [np.array([ms for ms in row["health_ms"] if ms < np.inf]) for row in windows]
    health = [float(np.quantile(times, 0.99)) for times in answered if len(times)]
    lines.append(f"{'health, p99 ms':<24}{statistics.median(health):>16,.1f}{max(health):>12,.1f}")
    asked = sum(len(row["health_ms"]) for row in windows)
    lines.append(f"health: {asked - sum(map(len, answered))} of {asked} times not ready")
    early, late = (windows[i]["memory_bytes"] / 1e6 for i in (len(windows) // 4, -1))
    lines.append(f"memory MB after a quarter of the time {early:,.1f}, at its end {late:,.1f}")
    lines += ["", f"{'':<24}{'before':>16}{'after':>12}"]
    before, after = result["before"], result["after"]
    memory = [facts["memory_bytes"] / 1e6 for facts in (before, after)]
    lines.append(f"{'memory MB':<24}{memory[0]:>16,.1f}{memory[1]:>12,.1f}")
    lines += [
        f"{key:<24}{before[key]:>16,}{after[key]:>12,}"
        for key in ("files", "processes", "shared_memory")
    ]
    lines += [
        "",
        f"left {ORPHAN_SECONDS:g} s after the launcher was killed: {result['left_processes']} "
        f"processes, {result['left_shared_memory']} files in /dev/shm",
        "",
        f"errors of honest clients: {sum(result['errors'].values())}",
        *(f"  {count:>6} {text}" for text, count in result["errors"].most_common()),
        f"hostile requests: {sum(map(Counter.total, result['outcomes'].values())):,}",
    ]
    return "\n".join(lines)
