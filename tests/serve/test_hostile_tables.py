"""Tables of items and request logs that would take the machine: one line, seconds, little memory.

`pipeline serve --page --items` reads the first, `pipeline monitor` the second.
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.monitoring.requests import read_requests
from pipeline.serve.page.item_table import ItemColumns, ItemTable
from pipeline.serve.request_log.options import EXPERIMENT_KEY

READ = """
import json, resource, sys, time
from pathlib import Path
import pyarrow as pa
from pipeline.core.errors import PipelineError
from pipeline.monitoring.requests import read_requests
from pipeline.serve.page.item_table import ItemColumns, ItemTable

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def read_items(file):
    columns = ItemColumns(file=file, title="title")
    columns.check()
    return ItemTable.read(columns, "id").titles

def read_log(file):
    return read_requests([file], pa.array(["a"])).times

before, results = peak(), {}
for file in map(Path, sys.argv[2:]):
    start = time.monotonic()
    try:
        line = f"{len(globals()[sys.argv[1]](file))} values"
    except PipelineError as error:
        line = str(error)
    results[file.name] = line, time.monotonic() - start, peak() - before
print(json.dumps(results))
"""
MANY = 9_000_000


def read_in_child(kind: str, files: list[Path]) -> dict[str, tuple[str, float, int]]:
    """Line, seconds and megabytes of each file; the megabytes are those of all up to it."""
    done = subprocess.run(
        [sys.executable, "-c", READ, f"read_{kind}", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, tuple[str, float, int]] = json.loads(done.stdout)
    assert results.keys() == {file.name for file in files}
    for name, (line, seconds, megabytes) in results.items():
        assert "\n" not in line
        assert len(line) < 600
        assert seconds < 5, (name, seconds)
        assert megabytes < 500, (name, megabytes)
    return results


def test_item_tables_end_in_seconds_with_one_line(tmp_path: Path) -> None:
    header = b"id,title\n"
    long = gzip.compress(header) + gzip.compress(b"a" * (8 << 20)) * 16
    (tmp_path / "line.csv.gz").write_bytes(long)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(header + b"1,1\n" * 3_900_000))
    zeros = pa.array(np.zeros(MANY, np.int32))
    ids = pa.array(np.arange(MANY, dtype=np.int32))
    for name, keys in (("rows", zeros), ("ids", ids)):
        pq.write_table(
            pa.table({"id": keys, "title": zeros}),
            tmp_path / f"{name}.parquet",
            compression="zstd",
            use_dictionary=False,
            column_encoding={"id": "DELTA_BINARY_PACKED", "title": "PLAIN"},
        )
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + bytes(range(255)) + b"\x10\0\0\0PAR1")
    (tmp_path / "lies.parquet").write_bytes(b"PAR1\xff\xff\xff\x7fPAR1")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "folder.csv").mkdir()
    refused = sorted(tmp_path.iterdir())
    deep = b"[" * 200_000 + b"]" * 200_000
    (tmp_path / "deep.jsonl").write_bytes(b'{"id":"a","title":%s}\n{"id":"b","title":"B"}\n' % deep)
    (tmp_path / "field.csv").write_bytes(header + b"a," + b"x" * (32 << 20) + b"\nb,B\n")
    read = [tmp_path / "deep.jsonl", tmp_path / "field.csv"]
    results = read_in_child("items", refused + read)
    for file in refused:
        assert str(file) in results[file.name][0]
    for file in read:  # without the line, as any log
        assert results[file.name][0] == "1 values"


def test_a_table_of_many_items_is_read(tmp_path: Path) -> None:
    """More rows than are free, in blocks, and the first row of an item counts."""
    rows = "".join(f"{n},title {n}\n" for n in range(260_000))
    (tmp_path / "items.csv").write_text(f"id,title\n{rows}7,later\n")
    table = ItemTable.read(ItemColumns(file=tmp_path / "items.csv", title="title"), "id")
    assert len(table.titles) == 260_000
    assert table.titles["7"] == "title 7"


def log(num_rows: int, **columns: Any) -> pa.Table:
    """Rows of a request log, of which some columns are others."""
    lists = pa.array([["a"]] * num_rows, pa.list_(pa.string()))
    ones = np.ones(num_rows, np.int64)
    values = {
        "time": pa.array(ones).cast(pa.timestamp("us", "UTC")),
        "session": pa.array(["s"] * num_rows),
        "model": pa.array(["shop"] * num_rows),
        "version": pa.array(ones),
        "experiment": pa.nulls(num_rows, pa.string()),
        "arm": pa.nulls(num_rows, pa.string()),
        "k": pa.array(ones).cast(pa.int32()),
        "items": lists,
        "recommendations": lists,
    }
    return pa.table(values | columns)


def lists_of(num_values: int, value: str) -> pa.Array:
    """Two lists that repeat a value."""
    indices = pa.array(np.zeros(num_values, np.int32))
    texts = pa.DictionaryArray.from_arrays(indices, [value]).cast(pa.string())
    return pa.ListArray.from_arrays(pa.array([0, 1, num_values], pa.int32()), texts)


def experiment(text: bytes) -> pa.Table:
    return log(2).replace_schema_metadata({EXPERIMENT_KEY: text})


LOGS: dict[str, Callable[[], pa.Table]] = {
    "rows": lambda: log(3_000_000),
    "lists": lambda: log(2, items=lists_of(MANY, "a"), recommendations=lists_of(MANY, "a")),
    "long ids": lambda: log(2, items=lists_of(60, "a" * (1 << 20))),
    "long names": lambda: log(100, session=pa.array(["a" * (1 << 20)] * 100)),
    "deep experiment": lambda: experiment(b'{"name": ' + b"[" * 200_000),
    "NaN as a share": lambda: experiment(b'{"name": "x", "arms": [{"name": "a", "share": NaN}]}'),
    "a name twice": lambda: experiment(b'{"name": "x", "name": "y", "arms": []}'),
    "many arms": lambda: experiment(b'{"arms": [' + b"1," * 1_000_000 + b"1]}"),
    "list of experiments": lambda: experiment(b"[1]"),
    "no UTF-8": lambda: experiment(b'"\xff"'),
    "no id": lambda: log(2, items=pa.array([[None]] * 2, pa.list_(pa.string()))),
    "no list": lambda: log(2, recommendations=pa.nulls(2, pa.list_(pa.string()))),
    "no time": lambda: log(2, time=pa.nulls(2, pa.timestamp("us", "UTC"))),
    "no version": lambda: log(2, version=pa.nulls(2, pa.int64())),
    "a late time": lambda: log(2, time=pa.array([2**62] * 2, pa.timestamp("us", "UTC"))),
    "an early time": lambda: log(2, time=pa.array([-1, 1], pa.timestamp("us", "UTC"))),
    "text as time": lambda: log(2, time=pa.array(["now"] * 2)),
    "objects as ids": lambda: log(2, items=pa.array([{"a": 1}] * 2)),
    "another column": lambda: log(2).drop_columns(["k"]),
}


def test_request_logs_end_in_seconds_with_one_line(tmp_path: Path) -> None:
    for name, make in LOGS.items():
        (tmp_path / name).mkdir()
        pq.write_table(make(), tmp_path / name / "requests-1.parquet", compression="zstd")
    pq.write_table(log(2), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "whole.parquet").unlink()
    contents = {
        "empty": b"",
        "cut": whole[:-20],
        "no footer": b"PAR1" * 10,
        "zeros": bytes(1 << 20),
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "requests-1.parquet").write_bytes(content)
    for name in ("pipe", "device", "loop", "folder"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "requests-1.parquet")
    (tmp_path / "device" / "requests-1.parquet").symlink_to("/dev/zero")
    (tmp_path / "loop" / "requests-1.parquet").symlink_to("requests-1.parquet")
    (tmp_path / "folder" / "requests-1.parquet").mkdir()
    folders = sorted(tmp_path.iterdir())
    for name, (line, _, _) in read_in_child("log", folders).items():
        assert line.startswith(f"{tmp_path / name / 'requests-1.parquet'} "), line


@pytest.mark.parametrize("text", [None, b"null", b'{"name": "x", "arms": []}'])
def test_a_log_of_requests_that_are_alike_is_read(tmp_path: Path, text: bytes | None) -> None:
    """As of a load test with one session: only the times differ."""
    times = np.cumsum(np.random.default_rng(0).integers(1, 5_000, 600_000))
    table = log(600_000, time=pa.array(times).cast(pa.timestamp("us", "UTC")))
    if text is not None:
        table = table.replace_schema_metadata({EXPERIMENT_KEY: text})
    pq.write_table(table, tmp_path / "requests-1.parquet", compression="zstd")
    assert len(read_requests([tmp_path], pa.array(["a"])).times) == 600_000
