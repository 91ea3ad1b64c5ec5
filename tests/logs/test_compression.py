"""Compressed logs: recognised by their content, read up to the damage."""

import bz2
import gzip
import io
import lzma
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.core.errors import DataError
from pipeline.logs.compression import compression_of
from pipeline.logs.files import find_logs, read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.gpu.frames import Frames
from pipeline.preprocessing.gpu.reading import NotOnDeviceError, read_clean
from pipeline.recipe.preprocess import Preprocess


def zipped(content: bytes, *names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        archive.writestr("__MACOSX/._log", b"x")
        for name in names or ("folder/log.csv",):
            archive.writestr(name, content)
    return stream.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
}
CSV = b"session_id,item_id\n" + b"".join(b"%d,%d\n" % (n, n % 7) for n in range(3_000))
JSON = b"".join(b'{"session_id": %d, "item_id": %d}\n' % (n, n % 7) for n in range(3_000))
SEQUENCES = b"".join(b"%d %d\n" % (n, n % 7) for n in range(3_000))


def read(file: Path, **keys: object) -> tuple[pa.Table, RowCounts]:
    recipe, row_counts = Preprocess.from_dict(keys, "recipe"), RowCounts()
    return pa.concat_tables(read_logs(recipe, find_logs(recipe, [file]), row_counts)), row_counts


def check(table: pa.Table) -> None:
    assert list(map(int, table["session_id"].to_pylist())) == list(range(3_000))
    assert list(map(int, table["item_id"].to_pylist())) == [n % 7 for n in range(3_000)]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("name", "content", "keys"),
    [
        ("log.csv", CSV, {}),
        ("LOG.TSV", CSV.replace(b",", b"\t"), {}),
        ("log.jsonl", JSON, {}),
        ("log", SEQUENCES, {"format": "sequences"}),
    ],
)
def test_text_is_read_compressed(
    suffix: str, name: str, content: bytes, keys: dict[str, object], tmp_path: Path
) -> None:
    named, unnamed = tmp_path / f"{name}.{suffix}", tmp_path / name
    for file in (named, unnamed):
        file.write_bytes(COMPRESS[suffix](content))
        table, row_counts = read(file, **keys)
        check(table)
        assert not row_counts.counts


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_named_as_compressed_is_read_as_text(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"log.csv.{suffix}").write_bytes(CSV)
    check(read(tmp_path / f"log.csv.{suffix}")[0])


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2"])
def test_compressed_files_put_together_are_read_whole(suffix: str, tmp_path: Path) -> None:
    half = len(CSV) // 2
    parts = (COMPRESS[suffix](CSV[:half]), COMPRESS[suffix](CSV[half:]))
    (tmp_path / "log.csv").write_bytes(b"".join(parts))
    check(read(tmp_path / "log.csv")[0])


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_lines_before_the_cut_are_kept(suffix: str, tmp_path: Path) -> None:
    lines = [f"{random.Random(n).getrandbits(60)},{n}\n" for n in range(200_000)]
    content = COMPRESS[suffix]("".join(["session_id,item_id\n", *lines]).encode())
    (tmp_path / "log.csv").write_bytes(content[: len(content) * 3 // 4])
    table, row_counts = read(tmp_path / "log.csv")
    assert 0 < table.num_rows < len(lines)
    items = list(map(int, table["item_id"].to_pylist()))
    assert items == list(range(table.num_rows))
    assert row_counts.warnings["files cut off or damaged"] == 1
    assert row_counts.facts(table.num_rows)["read"] == row_counts.rows


@pytest.mark.parametrize("suffix", COMPRESS)
def test_file_damaged_from_its_beginning_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"log.csv.{suffix}").write_bytes(COMPRESS[suffix](b"\0")[:4] + b"\0" * 40)
    with pytest.raises(DataError, match="file, or damaged from its beginning"):
        read(tmp_path / f"log.csv.{suffix}")


def test_format_of_a_zip_is_that_of_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_bytes(zipped(JSON, "train.jsonl"))
    check(read(tmp_path / "archive.zip")[0])


def test_zip_of_several_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv.zip").write_bytes(zipped(CSV, "a.csv", "b.csv"))
    with pytest.raises(DataError, match=r"holds 2 files\. Expected a zip of one log"):
        read(tmp_path / "log.csv.zip")


def test_gpu_reader_leaves_all_but_gzip_to_the_cpu(tmp_path: Path) -> None:
    recipe = Preprocess.from_dict({}, "recipe")
    for suffix, compress in COMPRESS.items():
        file = tmp_path / f"log.csv.{suffix}"
        file.write_bytes(compress(CSV))
        if compression_of(file) == "gzip":
            assert len(read_clean(Frames(), recipe, [file]).frame) == 3_000
        else:
            with pytest.raises(NotOnDeviceError, match="compression other than gzip"):
                read_clean(Frames(), recipe, [file])
    (tmp_path / "log.jsonl").write_bytes(JSON)
    with pytest.raises(NotOnDeviceError, match="logs as jsonl"):
        read_clean(Frames(), recipe, [tmp_path / "log.jsonl"])
