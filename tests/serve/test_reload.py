"""A server goes from one export to the next while it is asked."""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.exporting.versions import rollback
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.client import Client
from pipeline.serve.run import describe, running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.training.run import train
from tests.conftest import ROOT, SESSION, Shop


class Load(threading.Thread):
    """Sends requests without a pause until `over` is set."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.answers: dict[tuple, int] = defaultdict(int)
        self.error: Exception | None = None
        self.over = threading.Event()

    def run(self) -> None:
        try:
            with Client(self.url) as client:
                while not self.over.is_set():
                    answer = client.recommend([SESSION], 5)
                    first = round(float(answer.scores[0, 0]), 4)
                    self.answers[(*answer.items[0].tolist(), first)] += 1
                    time.sleep(0.002)
        except Exception as error:
            self.error = error


class Probe(threading.Thread):
    """Asks for the health of a server, as a load balancer does, until `over` is set."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.statuses: set[int] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            with closing(http.client.HTTPConnection(self.address, timeout=10)) as connection:
                connection.request("GET", "/v2/health/ready")
                self.statuses.add(connection.getresponse().status)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def other_run(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose lists and scores differ."""
    run = tmp_path_factory.mktemp("other") / "run"
    recipe: Recipe = shop.recipe
    train(shop.data, recipe.model, recipe.train.model_copy(update={"seed": 9}), run)
    return run


def test_reload_fails_no_request_and_mixes_no_versions(
    shop: Shop, other_run: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    export(shop.run, repository)
    with running_server(repository, ports=free_ports(), reload_seconds=1) as server:
        urls = [f"http://{server.http_url}", f"grpc://{server.grpc_url}"]
        loads = [Load(url) for url in urls]
        probe = Probe(server.http_url)
        for thread in (*loads, probe):
            thread.start()
        for runs in (1, 2, 3):  # first, second, and back to the first
            deadline = time.monotonic() + 60
            if runs > 1:
                export(other_run if runs == 2 else shop.run, repository)
                before = dict(loads[0].answers)
                newest = set() if runs == 2 else {next(iter(before))}
                while not {a for a, n in loads[0].answers.items() if n > before.get(a, 0)} & (
                    newest or set(loads[0].answers) - set(before)
                ):
                    assert time.monotonic() < deadline, "the newer export is not served"
                    assert all(load.error is None for load in loads), loads
                    time.sleep(0.2)
            time.sleep(1)
        for thread in (*loads, probe):
            thread.over.set()
            thread.join()
    assert probe.statuses == {200}
    for load in loads:
        assert load.error is None
        # one list for each run: nothing of one export ran with anything of another
        assert len(load.answers) == 2, load.answers


@pytest.mark.slow
def test_models_of_one_repository_are_served_side_by_side(
    shop: Shop, other_run: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    export(shop.run, repository)
    export(other_run, repository, ExportOptions(name="other"))
    with running_server(repository, ports=free_ports(), reload_seconds=1) as server:

        def lists(name: str) -> tuple[int, list[str]]:
            with Client(f"grpc://{server.grpc_url}", name=name) as client:
                return client.served.version, client.recommend([SESSION], 20).items[0].tolist()

        first, second = lists("recommender"), lists("other")
        assert (first[0], second[0]) == (1, 2)
        assert first[1] != second[1]
        export(other_run, repository)  # a new version of one of them
        deadline = time.monotonic() + 60
        while lists("recommender") != (3, second[1]):
            assert time.monotonic() < deadline, "the newer export is not served"
            assert lists("other") == second
            time.sleep(0.2)
        assert lists("other") == second
        assert describe(repository, server)["other_models"] == ["other"]


def test_serve_says_which_version_it_takes_up_also_after_a_rollback(
    shop: Shop, other_run: Path, tmp_path: Path
) -> None:
    repository, errors = tmp_path / "repository", tmp_path / "stderr"
    export(shop.run, repository)
    command = ["serve", str(repository), "--reload", "1"]
    ports = [f"--{kind}-port=0" for kind in ("http", "grpc", "metrics")]
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *command, *ports, "--json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stream,
        )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["grpc"]

        def wait_for(*lines: str) -> None:
            deadline = time.monotonic() + 60
            while errors.read_text().splitlines() != list(lines):
                assert time.monotonic() < deadline, errors.read_text()
                time.sleep(0.2)

        def first_list() -> list[str]:
            with Client(url) as client:
                return client.recommend([SESSION], 5).items[0].tolist()

        load = Load(url)
        load.start()
        before = first_list()
        export(other_run, repository)
        newer = "Serving version 2 of recommender, in place of version 1."
        wait_for(newer)
        assert first_list() != before
        rollback(repository)
        wait_for(newer, "Serving version 1 of recommender, in place of version 2.")
        assert first_list() == before
        load.over.set()
        load.join()
        assert load.error is None
        assert len(load.answers) == 2
    finally:
        process.terminate()
        process.wait(60)
