"""Preprocessing in parts, and on a Dask cluster: a scheduler and workers in their own processes."""

import filecmp
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
from dask.distributed import Client
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.core.merlin import has_cudf
from pipeline.preprocessing import engine
from pipeline.preprocessing.cluster import connect
from pipeline.preprocessing.operators.encode import Encode
from pipeline.preprocessing.operators.sessions import GroupSessions
from pipeline.preprocessing.operators.target_encoding import TargetEncode
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.features import ColumnCategory, TargetEncodedFeature
from tests.conftest import ROOT, Shop


@contextmanager
def dask_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A `dask` command that runs while the block does."""
    settings = ("DASK_DATAFRAME__QUERY_PLANNING", "DASK_DATAFRAME__CONVERT_STRING")
    with subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **dict.fromkeys(settings, "False")},
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=30)


def wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    """The first match in what the process says."""
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(pattern, line):
            return match[0]
    raise AssertionError("dask ended")


@contextmanager
def scheduler() -> Iterator[str]:
    with dask_process("scheduler", "--host", "127.0.0.1", "--port", "0") as process:
        yield wait_for(process, r"tcp://[0-9.:]+")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a scheduler with two workers."""
    options = ["--no-nanny", "--nthreads", "1", "--host", "127.0.0.1"]
    with scheduler() as address, ExitStack() as running:
        processes = []
        for _ in range(2):
            local = f"--local-directory={tmp_path_factory.mktemp('worker')}"
            process = dask_process("worker", address, *options, local)
            processes.append(running.enter_context(process))
        for process in processes:
            wait_for(process, "Registered to")
        yield address


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "SHARD_ROWS", 2_000)


def files(directory: Path) -> list[str]:
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


def assert_same(one: Path, other: Path) -> None:
    assert files(one) == files(other)
    _, different, failed = filecmp.cmpfiles(one, other, files(one), shallow=False)
    assert (different, failed) == ([], [])


def test_output_does_not_depend_on_shard_size(
    shop: Shop, tmp_path: Path, small_parts: None
) -> None:
    preprocess(shop.recipe.preprocess, [shop.clicks], [], tmp_path / "parts")
    names = files(shop.data)
    assert files(tmp_path / "parts") == names
    for name in names:
        one, other = shop.data / name, tmp_path / "parts" / name
        if name == "report.json":
            assert one.read_bytes() == other.read_bytes()
        if name.endswith(".parquet"):
            left, right = pd.read_parquet(one), pd.read_parquet(other)
            assert list(left.columns) == list(right.columns)
            for column in left:
                # standardized numbers may differ in the last bit, where sums were made in parts
                flat = [np.hstack(f[column].to_numpy()) for f in (left, right)]
                if flat[0].dtype.kind == "f":
                    np.testing.assert_allclose(*flat, rtol=0, atol=1e-6)
                else:
                    np.testing.assert_array_equal(*flat)


def not_here(*_arguments: object) -> None:
    raise AssertionError("worked on in the process that asked")


def test_lost_worker_does_not_change_the_output(
    shop: Shop, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--no-nanny", "--nthreads", "1", "--host", "127.0.0.1"]
    with scheduler() as address, ExitStack() as running:
        processes = [
            running.enter_context(
                dask_process("worker", address, *options, f"--local-directory={tmp_path / name}")
            )
            for name in ("one", "two")
        ]
        for process in processes:
            wait_for(process, "Registered to")
        sessions_of = engine.sessions_of

        def kill_one(*arguments: object) -> object:
            results = sessions_of(*arguments)
            yield next(results)  # and others are under way
            processes[0].kill()
            yield from results

        monkeypatch.setattr(engine, "sessions_of", kill_one)
        arguments = (shop.recipe.preprocess, [shop.clicks], [])
        preprocess(*arguments, tmp_path / "there", cluster=address)
        processes[1].kill()
        # and with the last one gone it is one line
        monkeypatch.setattr("pipeline.preprocessing.cluster._CONNECT_SECONDS", 1)
        with pytest.raises(PipelineError) as caught:
            preprocess(*arguments, tmp_path / "never", cluster=address)
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setattr(spill, "SHARD_ROWS", 2_000)
    preprocess(*arguments, tmp_path / "here")
    assert_same(tmp_path / "here", tmp_path / "there")


def test_cluster_writes_the_same_bytes_as_threads(
    shop: Shop, tmp_path: Path, small_parts: None, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = shop.recipe.preprocess
    features = [
        ColumnCategory(
            name="more_0",
            kind="categorical",
            column="category",
            values_per_interaction=2,
            separator="-",
            hash_buckets=3,
        ),
        TargetEncodedFeature(
            name="more_1", kind="continuous", column="category", of="item", mean_of="price"
        ),
    ]
    recipe = recipe.model_copy(update={"features": (*recipe.features, *features)})
    preprocess(recipe, [shop.clicks], [], tmp_path / "here")
    with monkeypatch.context() as patched:
        for operator in (GroupSessions, Encode, TargetEncode):  # in this process alone
            patched.setattr(operator, "transform", not_here)
        preprocess(recipe, [shop.clicks], [], tmp_path / "there", cluster=cluster)
    assert_same(tmp_path / "here", tmp_path / "there")
    read_manifest(tmp_path / "there", "data")
    # afterwards nothing is left of the cluster in this process
    preprocess(recipe, [shop.clicks], [], tmp_path / "again")
    assert_same(tmp_path / "here", tmp_path / "again")


def test_local_workers_give_the_same_output_and_end(
    shop: Shop, tmp_path: Path, small_parts: None
) -> None:
    before = children()
    preprocess(shop.recipe.preprocess, [shop.clicks], [], tmp_path / "here")
    preprocess(shop.recipe.preprocess, [shop.clicks], [], tmp_path / "there", cluster="local")
    assert_same(tmp_path / "here", tmp_path / "there")
    left = {pid: name for pid, name in children().items() if pid not in before}
    assert all("resource_tracker" in name for name in left.values()), left


def test_local_cluster_listens_on_loopback_and_any_port() -> None:
    with socket.socket() as taken, warnings.catch_warnings():
        with suppress(OSError):  # taken by another process
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        warnings.simplefilter("error")
        with connect("local") as client:
            served = client.run_on_scheduler(http_address)
            workers = client.scheduler_info()["workers"]
    assert served[0] == "127.0.0.1"
    assert served[1] != 8787
    assert all(address.startswith("tcp://127.0.0.1:") for address in workers)


def http_address(dask_scheduler: Any) -> tuple[str, int]:
    return dask_scheduler.http_server.address, dask_scheduler.http_server.port


def test_local_cuda_without_gpu_reports_one_line(shop: Shop, tmp_path: Path) -> None:
    if has_cudf():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="needs a GPU and the gpu extra"):
        preprocess(shop.recipe.preprocess, [shop.clicks], [], tmp_path / "x", cluster="local-cuda")
    assert not (tmp_path / "x").exists()


def children() -> dict[int, str]:
    """Command lines of this process's children."""
    commands = {}
    for listed in Path("/proc/self/task").glob("*/children"):
        for pid in listed.read_text().split():
            with suppress(OSError):
                commands[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text()
    return commands


def test_the_command_takes_the_cluster_from_the_environment_where_it_is_not_empty(
    shop: Shop, tmp_path: Path, cluster: str
) -> None:
    recipe = ROOT / "configs" / "demo.yaml"
    arguments = ["preprocess", str(shop.clicks), "--recipe", str(recipe), "--json", "--out"]
    for name, address in (("there", cluster), ("here", "")):
        runner = CliRunner(env={"PIPELINE_CLUSTER": address})
        result = runner.invoke(app, [*arguments, str(tmp_path / name)], catch_exceptions=False)
        assert result.exit_code == 0
        assert json.loads(result.stdout)["catalogue_items"] == 200
    assert_same(tmp_path / "here", tmp_path / "there")


def test_a_client_that_never_came_up_does_not_stay_the_scheduler() -> None:
    """Not even where the error that it raised, and with it the client, is kept."""
    address = "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match="No Dask scheduler") as kept, connect(address):
        pass
    assert kept.value.__context__ is not None
    assert dask.config.get("scheduler", None) is None
    with pytest.raises(ValueError, match="No clients found"):
        Client.current()


def test_unreachable_or_unusable_cluster_reports_one_line(
    shop: Shop, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.preprocessing.cluster._CONNECT_SECONDS", 1)
    arguments = (shop.recipe.preprocess, [shop.clicks], [], tmp_path / "data")
    with scheduler() as lonely:
        for address, words in (
            ("tcp://127.0.0.1:9", "No Dask scheduler answers at 'tcp://127.0.0.1:9'"),
            ("nowhere", "--cluster is 'nowhere', expected local, local-cuda, or the address"),
            ("http://127.0.0.1:9", "No Dask scheduler answers"),
            (lonely, "has no worker"),
        ):
            with pytest.raises(ConfigError, match=words) as caught:
                preprocess(*arguments, cluster=address)
            assert "\n" not in str(caught.value)
    # as if the folder were not there for the workers: no file is a link
    monkeypatch.setattr("pipeline.preprocessing.cluster.os.path.isfile", os.path.islink)
    with pytest.raises(ConfigError, match=r"worker at tcp://\S+ does not see"):
        preprocess(*arguments, cluster=cluster)
    assert not (tmp_path / "data").exists()
