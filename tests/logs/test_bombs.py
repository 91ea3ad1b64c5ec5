"""Logs of a few bytes that would take the machine: one line, seconds and little memory."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import DataError
from pipeline.logs.files import read_logs
from pipeline.logs.json_lines import Fields, JsonLines
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.preprocess import Preprocess

HEADER = b"session_id,item_id\n"
PIECE = 8 << 20
READ = """
import json, resource, sys, time
from pathlib import Path
from pipeline.core.errors import DataError
from pipeline.logs.files import read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.preprocess import Preprocess

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

before, results = peak(), {}
for file in map(Path, sys.argv[1:]):
    start, line = time.monotonic(), None
    counts = RowCounts()
    try:
        tables = read_logs(Preprocess.from_dict({}, "recipe"), [file], counts)
        line = f"{sum(t.num_rows for t in tables)} rows, {sum(counts.dropped.values())} dropped"
    except DataError as error:
        line = str(error)
    results[file.name] = line, time.monotonic() - start, peak() - before
print(json.dumps(results))
"""


def text_bombs(folder: Path) -> None:
    """Compressed texts of 128 MiB: one line, a header, empty lines, NUL bytes, an open quote."""
    for name, piece in (
        ("line", b"a" * PIECE),
        ("newlines", b"\n" * PIECE),
        ("nul", bytes(PIECE)),
        ("rows", b"1,1\n" * (PIECE // 4)),
        ("quote", b'"' + b"a,\n" * (PIECE // 3)),
    ):
        packed = gzip.compress(HEADER) + gzip.compress(piece) * 16
        (folder / f"{name}.csv.gz").write_bytes(packed)
    line = b"a" * PIECE
    (folder / "header.csv.gz").write_bytes(gzip.compress(line) * 16)
    (folder / "line.csv.bz2").write_bytes(bz2.compress(HEADER) + bz2.compress(line) * 16)
    (folder / "line.csv.xz").write_bytes(lzma.compress(HEADER) + lzma.compress(line) * 16)
    packed = pa.compress(line, "zstd", asbytes=True)
    (folder / "line.csv.zst").write_bytes(pa.compress(HEADER, "zstd", asbytes=True) + packed * 16)
    (folder / "line.jsonl.gz").write_bytes(
        gzip.compress(b'{"item_id": "') + gzip.compress(line) * 16
    )
    with zipfile.ZipFile(folder / "line.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("line.csv", HEADER + line * 16)


def nested_bombs(folder: Path) -> None:
    """Texts whose structure is the bomb: values, columns, levels and digits."""
    (folder / "commas.csv").write_bytes(HEADER + b"," * 4_000_000)
    (folder / "columns.csv").write_bytes(b",".join(b"c%d" % n for n in range(500_000)) + b"\n1\n")
    row = b'{"session_id": "s", "item_id": "i", "x": %s}\n'
    (folder / "lists.jsonl").write_bytes(row % (b"[" * 100_000 + b"]" * 100_000))
    (folder / "objects.jsonl").write_bytes(row % (b'{"a":' * 100_000 + b"1" + b"}" * 100_000))
    (folder / "levels.jsonl").write_bytes(row % (b"[" * 900 + b"]" * 900) * 1_000)
    field = '{"session_id": "s", "item_id": "i", "x": {"f%d": 1}}\n'
    fields = "".join(field % (n % 2_000) for n in range(60_000))
    (folder / "fields.jsonl").write_text(fields)
    keys = ",".join(f'"k{n}":1' for n in range(200_000))
    (folder / "keys.jsonl").write_bytes(row % f"{{{keys}}}".encode())
    (folder / "digits.jsonl").write_bytes(row % (b"9" * 4_000_000))


def parquet_bombs(folder: Path) -> None:
    """Few values many times over: rows, lists, long texts, and a footer that lies."""
    zeros = pa.array(np.zeros(12_000_000, np.int8))
    sessions = zeros.cast(pa.int32())
    pq.write_table(
        pa.table({"session_id": sessions, "item_id": sessions}),
        folder / "rows.parquet",
        compression="zstd",
        row_group_size=12_000_000,
    )
    lists = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
    pq.write_table(
        pa.table({"session_id": ["s"], "item_id": lists}),
        folder / "list.parquet",
        compression="zstd",
    )
    long = "a" * (80 << 20)
    pq.write_table(
        pa.table({"session_id": ["s"], "item_id": [long]}),
        folder / "page.parquet",
        compression="zstd",
    )
    text = np.random.default_rng(0).bytes(1 << 20).hex()
    items = pa.DictionaryArray.from_arrays(pa.array(np.zeros(400_000, np.int32)), [text])
    pq.write_table(
        pa.table({"session_id": sessions[:400_000], "item_id": items}),
        folder / "dictionary.parquet",
        dictionary_pagesize_limit=1 << 30,
    )
    items = pa.DictionaryArray.from_arrays(items.indices, [text[:3_000]])
    pq.write_table(
        pa.table({"session_id": sessions[:400_000], "item_id": items}), folder / "repeats.parquet"
    )
    whole = (folder / "list.parquet").read_bytes()
    (folder / "footer.parquet").write_bytes(whole[:-8] + b"\xff\xff\xff\x7fPAR1")


def varint(number: int) -> bytes:
    """Whole number of Thrift's compact protocol."""
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def write_footer(file: Path, columns: list[bytes], num_groups: int, group: bytes) -> None:
    """Write a Parquet file of one row without data: its columns as int32, its groups as they are.

    A group has no column where `group` is a struct without one.
    """
    root = b"\x48\x01a\x15" + varint(2 * len(columns)) + b"\0"
    leaves = [b"\x15\x02\x25\0\x18" + varint(len(name)) + name + b"\0" for name in columns]
    schema = b"\x15\x02\x19\xfc" + varint(len(columns) + 1) + root + b"".join(leaves)
    footer = schema + b"\x16\x02\x19\xfc" + varint(num_groups) + group * num_groups + b"\0"
    file.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def footer_bombs(folder: Path) -> None:
    """Row groups and columns that are many, empty, or only in the footer."""
    columns = [b"session_id", b"item_id"]
    empty = b"\x19\x0c\x16\0\x16\0\0"
    chunks = b"\x19\xfc" + varint(340_000) + b"\x26\0\0" * 340_000 + b"\x16\0\x16\0\0"
    write_footer(folder / "no-groups.parquet", columns, 0, empty)
    write_footer(folder / "empty-group.parquet", columns, 1, empty)
    write_footer(folder / "empty-groups.parquet", columns, 140_000, empty)
    write_footer(folder / "chunks.parquet", columns, 1, chunks)
    write_footer(folder / "more-chunks.parquet", columns, 8, chunks)
    write_footer(folder / "columns.parquet", columns + [b"a"] * 125_000, 1, empty)
    write_footer(folder / "more-columns.parquet", columns + [b"a"] * 1_000_000, 1, empty)
    ids = pa.array([1], pa.int32())
    table = pa.table(dict.fromkeys(["session_id", "item_id"], ids))
    with pq.ParquetWriter(folder / "groups.parquet", table.schema) as writer:
        for _ in range(30_000):
            writer.write_table(table)
    names = ["session_id", "item_id", *(f"c{n}" for n in range(40_000))]
    pq.write_table(pa.table(dict.fromkeys(names, ids)), folder / "wide.parquet")


@pytest.mark.parametrize("make", [text_bombs, nested_bombs, parquet_bombs, footer_bombs])
def test_bombs_end_in_seconds_with_one_line(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(
        [sys.executable, "-c", READ, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, (line, seconds, megabytes) in json.loads(done.stdout).items():
        assert "\n" not in line
        is_kept = " dropped" in line  # lines of it are no rows, as in any log
        assert is_kept or line.startswith(f"{tmp_path / name} "), line
        assert seconds < 5, (name, seconds)
        assert megabytes < 500, (name, megabytes)


def read(file: Path) -> tuple[pa.Table, RowCounts]:
    row_counts = RowCounts()
    tables = read_logs(Preprocess.from_dict({}, "recipe"), [file], row_counts)
    return pa.concat_tables(tables), row_counts


def test_a_log_that_repeats_itself_is_read(tmp_path: Path) -> None:
    """Far more than a log compresses, and below the bounds."""
    rows = b"".join(b"%d,item-%d\n" % (n, n % 7) for n in range(200_000)) * 8
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(HEADER + rows, 1))
    assert read(tmp_path / "log.csv.gz")[0].num_rows == 1_600_000
    numbers = pa.array(np.zeros(3_000_000, np.int64))
    pq.write_table(pa.table({"session_id": numbers, "item_id": numbers}), tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet")[0].num_rows == 3_000_000


def test_many_small_row_groups_are_read(tmp_path: Path) -> None:
    ids = pa.array(range(100), pa.int32())
    table = pa.table({"session_id": ids, "item_id": ids})
    with pq.ParquetWriter(tmp_path / "log.parquet", table.schema) as writer:
        for _ in range(4_000):
            writer.write_table(table)
    assert read(tmp_path / "log.parquet")[0].num_rows == 400_000


def test_long_texts_of_a_dictionary_are_read_in_small_blocks(tmp_path: Path) -> None:
    """Where one is far longer than the others, as in a log of addresses."""
    indices = np.ones(6_000, np.int32)
    indices[0] = 0
    items = pa.DictionaryArray.from_arrays(pa.array(indices), ["a" * 100_000, "short"])
    table = pa.table({"session_id": pa.array(range(6_000)), "item_id": items})
    pq.write_table(table, tmp_path / "log.parquet")
    file, counts = tmp_path / "log.parquet", RowCounts()
    blocks = read_logs(Preprocess.from_dict({}, "recipe"), [file], counts)
    assert [*map(len, blocks)] == [6_000]
    assert max(len(chunk) for chunk in blocks[0]["item_id"].chunks) < 3_000


def test_texts_of_a_column_with_a_dot_in_its_name_are_bounded(tmp_path: Path) -> None:
    items = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000, np.int32)), ["a" * 100_000])
    table = pa.table({"session_id": pa.array(range(2_000)), "item.id": items})
    file = tmp_path / "log.parquet"
    pq.write_table(table, file, compression="zstd")
    recipe = Preprocess.from_dict({"item": "item.id"}, "recipe")
    with pytest.raises(DataError, match=r"repeats texts of 'item.id' to 200,000,000 bytes"):
        read_logs(recipe, [file], RowCounts())


def with_last_page_first(file: Path, column: int) -> bytes:
    """Return a file whose column has its last data page, of the same rows, before the others."""
    content, chunk = file.read_bytes(), pq.read_metadata(file).row_group(0).column(column)
    start = chunk.data_page_offset
    stop = chunk.dictionary_page_offset + chunk.total_compressed_size
    header = content[start : start + 3]
    second = content.index(header, start + 1)
    assert second < stop
    moved = content[second:stop] + content[start:second]
    return content[:start] + moved + content[stop:]


def test_texts_of_a_dictionary_behind_a_page_without_it_are_bounded(tmp_path: Path) -> None:
    items = pa.array(["a" * 100_000] * 2_000 + ["b"])
    table = pa.table({"session_id": pa.array(range(2_001)), "item_id": items})
    file = tmp_path / "log.parquet"
    pq.write_table(
        table, file, compression="zstd", write_batch_size=2_000, write_statistics=False,
        dictionary_pagesize_limit=1_000,
    )  # fmt: skip
    file.write_bytes(with_last_page_first(file, 1))
    lengths = pc.binary_length(pq.read_table(file)["item_id"])
    assert lengths[:2].to_pylist() == [1, 100_000]
    with pytest.raises(DataError, match=r"repeats texts of 'item_id' to 200,000,001 bytes"):
        read(file)


def test_objects_with_rare_fields_are_read_in_parts(tmp_path: Path) -> None:
    """Thousands of fields among objects that have few of them each."""
    row = '{"session_id": %d, "item_id": "i", "tag_%d": 1}\n'
    (tmp_path / "log.jsonl").write_text("".join(row % (n, n % 400) for n in range(60_000)))
    file, counts = tmp_path / "log.jsonl", RowCounts()
    blocks = JsonLines(file, counts, Fields(frozenset(), frozenset())).tables()
    cells = [block.num_rows * block.num_columns for block in blocks]
    assert len(cells) > 1
    assert max(cells) <= 10_000_000
    assert read(file)[0]["session_id"].to_pylist() == [*range(60_000)]


def test_a_line_with_too_many_values_or_levels_is_dropped_alone(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(HEADER + b"1,a\n" + b"," * 2_000_000 + b"\n2,b\n")
    table, counts = read(tmp_path / "log.csv")
    assert table["item_id"].to_pylist() == ["a", "b"]
    assert counts.dropped["lines with another number of columns"] == 1
    row = b'{"session_id": %d, "item_id": "a", "x": %s}\n'
    deep = row % (2, b"[" * 100_000 + b"]" * 100_000)
    brackets = row % (3, b'"' + b"[" * 2_000 + b'"')  # in a text they are no levels
    (tmp_path / "log.jsonl").write_bytes(row % (1, b"1") + deep + row % (4, b"[[[1]]]"))
    table, counts = read(tmp_path / "log.jsonl")
    assert table["session_id"].to_pylist() == ["1", "4"]
    assert sum(counts.dropped.values()) == 1
    (tmp_path / "log.jsonl").write_bytes(row % (1, b'"x"') + brackets)
    assert read(tmp_path / "log.jsonl")[0].num_rows == 2
