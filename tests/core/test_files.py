"""Atomic writes of single files, and logs that are hashed once."""

import errno
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.core import files
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.files import atomic_write, new_parquet, write_text


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_an_atomic_write_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_text(path, "old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["report.html"]


def test_an_exception_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_text(path, "old")
    with pytest.raises(TypeError), atomic_write(path) as partial, partial.open("w") as stream:
        stream.writelines(["half", b"no text"])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["report.html"]


def test_parquet_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    table = pa.table({"item": [1, 2]})
    for _ in range(2):
        with new_parquet(path, table.schema) as append:
            append(table)
            append(table)
    assert pq.read_table(path)["item"].to_pylist() == [1, 2, 1, 2]
    pq.write_table(table, path)
    with pytest.raises(ConfigError, match="is left alone"), new_parquet(path, table.schema):
        pass


def test_preprocess_hashes_each_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cli.main import app
    from pipeline.data import fingerprint

    for name in ("logs/a.csv", "logs/b.csv", "test.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("session_id,item_id\n1,a\n1,b\n2,a\n2,b\n")
    (tmp_path / "shop.yaml").write_text("preprocess: {session: session_id}\n")
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return files.hash_file(path)

    monkeypatch.setattr(fingerprint, "hash_file", count)
    monkeypatch.chdir(tmp_path)
    arguments = "preprocess logs --recipe shop.yaml --test test.csv --out data"
    outcome = CliRunner().invoke(app, arguments.split(), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert sorted(hashed) == ["a.csv", "b.csv", "test.csv"]


def test_leftovers_of_killed_writers_go_and_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    dead = tmp_path / f".report.html.partial-{0:016x}"
    other = tmp_path / f".report2.html.partial-{0:016x}"
    dead.write_text("half")
    other.write_text("of another file")
    with atomic_write(path) as partial:
        assert not dead.exists()
        partial.write_text("first")
        with pytest.raises(ArtifactError, match="is being written by another process"):
            write_text(path, "second")
    assert path.read_text() == "first"
    assert names_in(tmp_path) == [other.name, "report.html"]


def write_to_a_full_disk(path: Path, name: str | None) -> None:
    with atomic_write(path) as partial:
        file = None if name is None else str(partial / name)
        raise OSError(errno.ENOSPC, "No space left on device", file)


@pytest.mark.parametrize("name", [None, "", "part-0"])
def test_error_of_the_disk_names_the_output(tmp_path: Path, name: str | None) -> None:
    path = tmp_path / "lists.parquet"
    with pytest.raises(ArtifactError, match=r"lists\.parquet was not written: .*No space left"):
        write_to_a_full_disk(path, name)
    assert names_in(tmp_path) == []


def test_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"clicks\.csv"), atomic_write(tmp_path / "x"):
        (tmp_path / "clicks.csv").open()


def test_array_that_the_disk_does_not_take_is_an_error(tmp_path: Path) -> None:
    array = np.arange(500)
    files.write_array(tmp_path / "array.npy", array)
    np.save(tmp_path / "by_numpy.npy", array)
    assert (tmp_path / "array.npy").read_bytes() == (tmp_path / "by_numpy.npy").read_bytes()
    with pytest.raises(OSError, match="No space left"):
        files.write_array(Path("/dev/full"), array)
