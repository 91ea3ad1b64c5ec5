"""Text formats: any bytes and any line ends are read, wherever a block ends."""

import csv
import gzip
import io
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.logs import text
from pipeline.logs.files import read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.preprocess import Preprocess


def read(file: Path, content: bytes, **keys: object) -> tuple[pa.Table, RowCounts]:
    """Write a log and read it."""
    file.write_bytes(content)
    row_counts = RowCounts()
    tables = read_logs(Preprocess.from_dict(keys, "recipe"), [file], row_counts)
    return pa.concat_tables(tables), row_counts


CHARACTERS = st.one_of(
    st.sampled_from([b" ", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"1", b"2", b"1 2", b"\xe2"]),
    st.sampled_from(["ü", "\u3000", "\x1f", "\x85", "😀", "\ufeff"]).map(str.encode),
    st.integers(0, 255).map(lambda code: bytes([code])),
)


@given(st.lists(CHARACTERS, max_size=60), st.integers(1, 30), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_read_as_sequences(
    parts: list[bytes], size: int, is_packed: bool, session_first: bool
) -> None:
    content = b"9 3\n" + b"".join(parts)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", size)
        table, row_counts = read(
            Path(folder) / ("log.gz" if is_packed else "log"),
            gzip.compress(content, mtime=0) if is_packed else content,
            format="sequences",
            session_first=session_first,
        )
    lines = re.split(rb"\r\n|\r|\n", content.replace(b"\0", b""))
    words = [re.sub(b"^(\xef\xbb\xbf)+", b"", line).split() for line in lines]
    items = [[decode(word) for word in line[session_first:]] for line in words if line]
    expected = [item for line in items for item in line]
    assert table["item_id"].to_pylist() == expected
    assert row_counts.facts(table.num_rows)["read"] == len(expected)
    assert row_counts.warnings["lines without an item"] == items.count([])


def decode(word: bytes) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        return "".join(text._WINDOWS_1252[byte] for byte in word)


@given(
    st.lists(st.lists(st.sampled_from(["a", "\n", "\r", '"', ","]), max_size=12), max_size=9),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.integers(1, 40),
)
@settings(deadline=None, max_examples=200)
def test_line_ends_inside_a_value_are_kept_wherever_a_block_ends(
    parts: list[list[str]], end: str, size: int
) -> None:
    values = ["".join([*part, "z"]) for part in [["\n"], *parts]]
    stream = io.StringIO()
    rows = [("session_id", "item_id"), *((str(n), v) for n, v in enumerate(values))]
    csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator=end).writerows(rows)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", size)
        table, _ = read(Path(folder) / "log.csv", stream.getvalue().encode())
    assert table["item_id"].to_pylist() == values
