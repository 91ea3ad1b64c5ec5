"""Logs by glob, on standard input, on a web server and in fsspec's memory."""

import fcntl
import functools
import gzip
import http.server
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import DataError
from pipeline.data.fingerprint import data_fingerprint
from pipeline.logs.files import find_logs, read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.logs.sources import local_logs
from pipeline.recipe.preprocess import Preprocess

RECIPE = Preprocess.from_dict({}, "recipe")
CSV = b"session_id,item_id\n1,2\n1,3\n"


def read(*addresses: str, out: Path, recipe: Preprocess = RECIPE) -> tuple[list[object], str]:
    """Items of the logs and their fingerprint; nothing is left beside `out`."""
    before = sorted(out.parent.iterdir())
    with local_logs(addresses, out) as paths:
        files = find_logs(recipe, paths)
        tables = read_logs(recipe, files, RowCounts())
        fingerprint = data_fingerprint(recipe, files, [])
    assert sorted(out.parent.iterdir()) == before
    return [item for table in tables for item in table["item_id"].to_pylist()], fingerprint


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a web server of the folder `site`."""
    (tmp_path / "site").mkdir()
    handler = functools.partial(_Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_file_of_a_web_server_is_read(server: str, tmp_path: Path) -> None:
    (tmp_path / "site" / "log.csv.gz").write_bytes(gzip.compress(CSV))
    items, first = read(f"{server}/log.csv.gz?token=1", out=tmp_path / "out")
    assert items == ["2", "3"]
    assert read(f"{server}/log.csv.gz", out=tmp_path / "out")[1] == first
    (tmp_path / "site" / "log.csv.gz").write_bytes(gzip.compress(CSV + b"1,4\n"))
    items, other = read(f"{server}/log.csv.gz", out=tmp_path / "out")
    assert items == ["2", "3", "4"]
    assert other != first


def test_missing_file_of_a_web_server_is_named(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://.*/none\.csv does not exist"):
        read(f"{server}/none.csv", out=tmp_path / "out")


def test_web_server_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"http://127\.0\.0\.1:9/log\.csv cannot be read: "
    ) as error:
        read("http://127.0.0.1:9/log.csv", out=tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    storage = fsspec.filesystem("memory")
    yield storage
    storage.rm("/logs", recursive=True)


def test_folder_of_remote_storage_is_read_with_the_columns_of_its_folders(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    for day in ("1", "2"):
        memory.pipe_file(f"/logs/shop/session_id={day}/log.csv", f"item_id\n{day}\n".encode())
    memory.pipe_file("/logs/shop/_SUCCESS", b"")
    memory.pipe_file("/logs/other.csv", CSV)
    assert read("memory://logs/shop", out=tmp_path / "out")[0] == ["1", "2"]


def test_glob_of_remote_storage_may_match_folders_and_any_name(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    for name in ("1/a#1.csv", "1/a#2.csv", "2/a?3.csv"):
        content = f"session_id,item_id\n1,{name}\n".encode()
        memory.pipe_file(f"/logs/session_id={name}", content)
    items = ["1/a#1.csv", "1/a#2.csv", "2/a?3.csv"]
    assert read("memory://logs/session_id=[0-9]", out=tmp_path / "out")[0] == items
    assert read("memory://logs/session_id=2/a?3.csv", out=tmp_path / "out")[0] == items[2:]


def test_glob_of_remote_storage_is_read_by_name(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    for name in ("b.csv", "a.csv", "c.txt", "_a.csv"):
        memory.pipe_file(f"/logs/{name}", f"session_id,item_id\n1,{name}\n".encode())
    assert read("memory://logs/*.csv", out=tmp_path / "out")[0] == ["a.csv", "b.csv"]
    with pytest.raises(DataError, match=r"memory://logs/\*\.tsv matches no file"):
        read("memory://logs/*.tsv", out=tmp_path / "out")


def test_storage_that_is_not_installed_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"Run `pip install s3fs` first"):
        read("s3://bucket/log.csv", out=tmp_path / "out")
    with pytest.raises(DataError, match=r"xyz://log\.csv cannot be read: .*xyz"):
        read("xyz://log.csv", out=tmp_path / "out")


def test_glob_stands_for_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.csv", "a.csv", "_c.csv", "sub/d.csv", "[e].csv"):
        (tmp_path / name).write_text(f"session_id,item_id\n1,{name}\n")
    for address, items in (
        ("*.csv", ["[e].csv", "a.csv", "b.csv"]),
        ("[ab].csv", ["a.csv", "b.csv"]),
        ("**/d.csv", ["sub/d.csv"]),
        ("[e].csv", ["[e].csv"]),
    ):
        assert read(f"{tmp_path}/{address}", out=tmp_path / "out")[0] == items
    with pytest.raises(DataError, match="matches no file"):
        read(f"{tmp_path}/*.tsv", out=tmp_path / "out")


def parquet(**columns: list[object]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "keys", "items"),
    [
        (CSV, {}, ["2", "3"]),
        (gzip.compress(CSV), {}, ["2", "3"]),
        (CSV.replace(b",", b"\t"), {"delimiter": "\t"}, ["2", "3"]),
        (b'{"session_id": 1, "item_id": 2}\n', {}, [2]),
        (parquet(session_id=[1], item_id=[2]), {}, [2]),
        (b"1 2 3\n", {"format": "sequences"}, ["2", "3"]),
    ],
    ids=["csv", "csv.gz", "tsv", "jsonl", "parquet", "sequences"],
)
def test_standard_input_is_read(
    content: bytes,
    keys: dict[str, str],
    items: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    recipe = Preprocess.from_dict(keys, "recipe")
    assert read("-", out=tmp_path / "out", recipe=recipe)[0] == items


def test_command_reads_a_remote_log_again_only_if_it_changed(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text("preprocess: {split: {}}\n")
    out = tmp_path / "out"
    command = ["preprocess", "memory://logs/log.csv", "--recipe", str(tmp_path / "r.yaml")]
    reads = []
    for content in (CSV, CSV, CSV + b"1,4\n"):
        memory.pipe_file("/logs/log.csv", content)
        before = out.stat().st_ino if out.exists() else 0
        CliRunner().invoke(
            app, [*command, "--out", str(out), "--if-needed"], catch_exceptions=False
        )
        reads.append(out.stat().st_ino != before)
    assert reads == [True, False, True]
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml", "out"}


def test_copies_that_a_killed_run_left_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, in_use = (tmp_path / f".out.logs-{digit * 16}" for digit in "ab")
    for folder in (left, in_use):
        folder.mkdir()
        (folder / "log.csv").write_bytes(CSV)
    descriptor = os.open(in_use, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as the run that reads them
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CSV)))
    with local_logs(["-"], tmp_path / "out") as paths:
        assert [path.name for path in paths] == ["stdin.csv"]
    os.close(descriptor)
    assert list(tmp_path.iterdir()) == [in_use]
