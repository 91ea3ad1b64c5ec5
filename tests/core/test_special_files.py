"""Pipes, devices and folders in place of files: one line at once, and never a wait."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cli.options import read_ids
from pipeline.core.artifact import read_manifest
from pipeline.core.config import read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_small
from pipeline.core.manifest import parse_manifest
from pipeline.core.signature import read_private_key, read_public_key
from pipeline.data.column_schema import read_columns
from pipeline.logs.files import find_logs, read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.model.inputs.vectors import _read as read_vectors
from pipeline.monitoring.requests import find_files
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.triton.access import read_key, read_pem
from tests.conftest import Shop


@pytest.fixture(autouse=True)
def _no_wait() -> Iterator[None]:
    """A test that waits for a pipe fails after some seconds."""

    def late(*_: object) -> None:
        raise RuntimeError("a pipe was waited for")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def make_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # the names of sockets are short
        listener.bind(path.name)
    return path


def endless(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "log.csv": lambda path: read_log(path),
    "log.parquet": lambda path: read_log(path),
    "log.jsonl": lambda path: read_log(path),
    "recipe.yaml": read_yaml,
    "ids": lambda path: read_ids(f"@{path}"),
    "key": read_key,
    "ca.pem": lambda path: read_pem(path, None, None),
    "key.pem": read_private_key,
    "key.pub": read_public_key,
    "schema.pbtxt": read_columns,
    "vectors.parquet": read_vectors,
    "requests.parquet": lambda path: find_files([path]),
    "artifact": lambda path: read_manifest(path, "data"),
}


def read_log(path: Path) -> object:
    recipe = Preprocess.from_dict({}, "recipe")
    return read_logs(recipe, find_logs(recipe, [path]), RowCounts())


@pytest.mark.parametrize("make", [make_pipe, make_folder, make_socket, endless])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_one_line(
    name: str, make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError) as caught:
        READERS[name](make(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_pipe_with_a_writer_is_read(tmp_path: Path) -> None:
    """As the shell's `<(...)`, whose text may come late."""
    reader, writer = os.pipe()
    command = "import sys, time; time.sleep(0.3); sys.stdout.write('a\\nb\\n')"
    with subprocess.Popen([sys.executable, "-c", command], stdout=writer):
        os.close(writer)
        assert read_small(Path(f"/dev/fd/{reader}")) == b"a\nb\n"
    os.close(reader)


@pytest.mark.parametrize("make", [make_pipe, make_folder, make_socket, endless])
def test_no_file_of_an_artifact_is_waited_for(
    shop: Shop, make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "data"
    shutil.copytree(shop.data, copy)
    names = ["manifest.json", *parse_manifest(copy).files]
    for name in names:
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        make(copy / name)
        with pytest.raises(PipelineError) as caught:
            read_manifest(copy, "data")
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
        (copy / name).write_bytes(content)
    read_manifest(copy, "data")
