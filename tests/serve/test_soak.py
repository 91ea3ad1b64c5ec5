"""Half an hour's worth of mixed load, while versions change and model processes are killed.

`uv run pytest -m slow -s -n 0 tests/serve/test_soak.py` prints what came of it.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, ServingError
from pipeline.exporting.run import export
from pipeline.in_process import open_run
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.answers import Answer
from pipeline.serve.client.client import Client
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.training.run import train
from tests.conftest import Shop
from tests.serve.test_filters import sessions

REQUESTS = 36_000
"""20 a second for 30 minutes."""
KINDS = 150
"""Different requests."""
CLIENTS = 4
RELOADS, KILLS = 10, 2
NOTICING_SECONDS = 40.0
"""How long it may take to notice that a model's process is gone, and to start Triton anew; here
with several exports of the last two minutes beside each other."""


class Asked(NamedTuple):
    """One request, and what each of the two runs answers, offline."""

    sessions: list[dict[str, Any]]
    k: int
    filters: dict[str, Any]
    expected: list[Answer]


@pytest.fixture(scope="module")
def runs(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two that answer differently."""
    other = tmp_path_factory.mktemp("other") / "run"
    recipe: Recipe = shop.recipe
    train(shop.data, recipe.model, recipe.train.model_copy(update={"seed": 9}), other)
    return [shop.run, other]


@pytest.fixture(scope="module")
def asked(runs: list[Path]) -> list[Asked]:
    """One session, many, long ones, filters and all lengths of lists."""
    random = np.random.default_rng(4)
    catalogue = [f"sku-{i:05}" for i in range(200)]
    with ExitStack() as stack:
        local = [stack.enter_context(open_run(run)) for run in runs]
        requests = []
        for turn in range(KINDS):
            size = 1 if turn % 3 else int(random.integers(2, 40))
            batch = sessions(random, size, catalogue)
            if turn % 7 == 0:
                batch[0] = {"item_id": random.choice(catalogue, 300).tolist()}
            filters: dict[str, Any] = {}
            if turn % 4 == 0:
                filters["exclude"] = random.choice(catalogue, 30).tolist()
            if turn % 5 == 0:
                filters["candidates"] = random.choice(catalogue, 50).tolist()
            if turn % 2:
                filters["filter_seen"] = True
            k = int(random.integers(1, 30))
            expected = [one.recommend(batch, k, **filters) for one in local]
            requests.append(Asked(batch, k, filters, expected))
    return requests


class Load:
    """Clients that ask in turn until all requests are asked."""

    def __init__(self, urls: list[str], asked: list[Asked]) -> None:
        self.asked = asked
        self.left = iter(range(REQUESTS))
        self.lock = threading.Lock()
        self.done = 0
        self.versions: Counter[int] = Counter()
        self.refused = 0
        self.failures: list[tuple[float, str]] = []
        self.wrong: list[str] = []
        self.threads = [
            threading.Thread(target=self.run, args=(urls[i % len(urls)],), daemon=True)
            for i in range(CLIENTS)
        ]

    def run(self, url: str) -> None:
        with Client(url) as client:
            while (number := self.next()) is not None:
                one = self.asked[number % KINDS]
                try:
                    if number % 50 == 0:
                        self.malformed(client)
                    answer = client.recommend(one.sessions, one.k, **one.filters)
                except ServingError as error:
                    self.failures.append((time.monotonic(), str(error)))
                    time.sleep(0.1)  # as a client would, who asks again
                    continue
                except BaseException as error:
                    self.wrong.append(repr(error))
                    raise
                equal = [same(answer, expected) for expected in one.expected]
                if not any(equal):
                    self.wrong.append(f"request {number % KINDS} got {answer.items[0].tolist()}")
                with self.lock:
                    self.versions[equal.index(True) if any(equal) else -1] += 1

    def next(self) -> int | None:
        with self.lock:
            number = next(self.left, None)
            self.done = REQUESTS if number is None else number
            return number

    def malformed(self, client: Client) -> None:
        """A request that must be refused, with its own reason."""
        try:
            client.infer({"item_id": np.array([["a"]], object), "k": np.array([[0]], np.int32)})
        except ServingError as error:
            if "k is 0" not in str(error):
                raise
            with self.lock:
                self.refused += 1
        else:
            raise ConfigError("k = 0 was answered")


def same(actual: Answer, expected: Answer) -> bool:
    finite = ~np.isneginf(expected.scores)
    return (
        actual.items.shape == expected.items.shape
        and actual.items[finite].tolist() == expected.items[finite].tolist()
        and bool((np.isneginf(actual.scores) == ~finite).all())
        and np.allclose(actual.scores[finite], expected.scores[finite], rtol=0, atol=1e-4)
    )


def children(pid: int) -> Iterator[int]:
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            yield child
            yield from children(child)


def resident(pid: int) -> int:
    """Bytes of Triton and its model processes, what they share counted once."""
    total = 0
    for process in (pid, *children(pid)):
        try:
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def model_processes(pid: int, name: str) -> list[int]:
    pids = []
    for process in children(pid):
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
        if "triton_python_backend_stub" in command[0] and any(name in word for word in command):
            pids.append(process)
    return pids


@pytest.mark.slow
def test_load_during_reloads_and_killed_processes(
    shop: Shop, runs: list[Path], asked: list[Asked], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    export(shop.run, repository)
    kills: list[float] = []
    sizes: list[int] = []
    with running_server(
        repository,
        ports=free_ports(),
        reload_seconds=1,
        restarts=5,
        log_path=tmp_path / "triton.log",
    ) as server:
        load = Load([f"http://{server.http_url}", f"grpc://{server.grpc_url}"], asked)
        began = time.monotonic()
        for thread in load.threads:
            thread.start()

        def reach(share: float) -> None:
            while load.done < share * REQUESTS and any(t.is_alive() for t in load.threads):
                assert not load.wrong, load.wrong[:3]
                time.sleep(0.05)

        for turn in range(RELOADS):
            reach((turn + 0.5) / (RELOADS + 1))
            export(runs[(turn + 1) % 2], repository)
            version = turn + 2
            until = time.monotonic() + 60
            before = load.versions[(turn + 1) % 2]
            while load.versions[(turn + 1) % 2] < before + 20:
                assert time.monotonic() < until, f"version {version} is not served"
                assert not load.wrong, load.wrong[:3]
                time.sleep(0.05)
            if turn in (3, 7):
                name = ("requests", "model")[len(kills)]
                [process] = model_processes(server.pid, f"recommender_{name}_v{version}")
                kills.append(time.monotonic())
                os.kill(process, signal.SIGKILL)
            reach((turn + 1.2) / (RELOADS + 1))
            sizes.append(resident(server.pid))
        for thread in load.threads:
            thread.join()
        seconds = time.monotonic() - began
    assert len(kills) == KILLS
    answered = sum(load.versions.values())
    late = [
        (after, message)
        for at, message in load.failures
        if not 0
        <= (after := min((at - kill for kill in kills if kill <= at), default=-1.0))
        <= NOTICING_SECONDS
    ]
    spans = [
        max(
            (at - kill for at, _ in load.failures if 0 <= at - kill < NOTICING_SECONDS), default=0.0
        )
        for kill in kills
    ]
    print(
        f"\n{answered:,} of {REQUESTS:,} requests answered in {seconds:.0f} s, each as one of the "
        f"two runs answers offline; {len(load.failures)} failed, the last "
        f"{' and '.join(f'{span:.2f}' for span in spans)} s after the kills; {load.refused} "
        f"malformed ones refused; {RELOADS} reloads\nMiB after each: "
        f"{' '.join(str(size >> 20) for size in sizes)}\n"
        f"{Counter(message for _, message in load.failures)}"
    )
    assert load.wrong == []
    assert answered + len(load.failures) == REQUESTS, "every request has an end"
    assert load.refused >= REQUESTS // 50 - len(load.failures)
    assert late == []
    # what is allocated once is there after some versions: from then on it must not grow
    assert max(sizes[-3:]) <= 1.05 * max(sizes[2:5]) + (16 << 20)
