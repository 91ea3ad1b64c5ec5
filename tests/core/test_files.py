"""Atomic writes of single files, and logs that are hashed once."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.core import files
from pipeline.core.errors import ConfigError
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
