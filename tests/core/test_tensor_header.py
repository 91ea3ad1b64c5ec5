"""Headers of safetensors files that cost the machine, or say a thing twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.errors import ArtifactError
from pipeline.core.tensor_header import MOST_TENSORS
from pipeline.model.model_files import read_tensors, write_tensors

READ = """
import json, resource, sys, time
from pathlib import Path
from pipeline.core.errors import ArtifactError
from pipeline.model.model_files import read_tensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

results = {}
for path in map(Path, sys.argv[1:]):
    before, start = peak(), time.monotonic()
    try:
        line = str(len(read_tensors(path)))
    except ArtifactError as error:
        line = str(error)
    results[path.stem] = line, time.monotonic() - start, peak() - before
print(json.dumps(results))
"""
ONE: dict[str, Any] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TEXT = json.dumps(ONE)


def many(number: int) -> bytes:
    names = (
        f'"t{n}": {json.dumps({**ONE, "data_offsets": [4 * n, 4 * n + 4]})}' for n in range(number)
    )
    return f"{{{', '.join(names)}}}".encode()


HEADERS: dict[str, tuple[bytes, int, str]] = {
    "a name twice": (f'{{"a": {TEXT}, "a": {TEXT}}}'.encode(), 4, "'a' occurs twice"),
    "an escaped name twice": (
        f'{{"a": {TEXT}, "\\u0061": {TEXT}}}'.encode(),
        4,
        "'a' occurs twice",
    ),
    "a key twice": (f'{{"a": {TEXT[:-1]}, "dtype": "F32"}}}}'.encode(), 4, "'dtype' occurs twice"),
    "the same bytes": (f'{{"a": {TEXT}, "b": {TEXT}}}'.encode(), 4, "begin at 0, expected 4"),
    "beyond the end": (f'{{"a": {TEXT}}}'.encode(), 3, "have 4 bytes, and the file has 3"),
    "bytes of no tensor": (f'{{"a": {TEXT}}}'.encode(), 8, "have 4 bytes, and the file has 8"),
    "a list": (b"[]", 0, "no object"),
    "text as a tensor": (b'{"a": "b"}', 0, "no place in the file"),
    "text as a place": (b'{"a": {"data_offsets": "ab"}}', 0, "begin at a"),
    "NaN": (b'{"a": {"data_offsets": [NaN, 4]}}', 4, "NaN is no number"),
    "deep": (b'{"a": ' + b"[" * 200_000, 0, "nested too deep"),
    "no UTF-8": (b'{"\xff": 1}', 0, "utf-8"),
    "another type": (f'{{"a": {TEXT.replace("F32", "F99")}}}'.encode(), 4, "F99"),
    "another size": (f'{{"a": {TEXT.replace("[1]", "[2]")}}}'.encode(), 4, "tensor"),
    "200,000 names": (many(200_000), 800_000, "header of 1"),
    "25,000 names": (many(25_000), 100_000, "25,000 tensors, of which up to 10,000"),
    "most names": (many(MOST_TENSORS), 4 * MOST_TENSORS, str(MOST_TENSORS)),
}


def test_headers_end_in_seconds_with_one_line(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in HEADERS}
    for name, (header, num_bytes, _) in HEADERS.items():
        files[name].write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, files.values())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.keys() == files.keys()
    for name, (line, seconds, megabytes) in results.items():
        assert HEADERS[name][2] in line
        assert "\n" not in line
        assert len(line) < 400
        is_read = name == "most names"
        assert is_read or line.startswith(f"{files[name]} is missing or damaged: ")
        assert seconds < 5, (name, seconds)
        assert megabytes < 500, (name, megabytes)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\xff" * 7, (9).to_bytes(8, "little") + b"{}"]
)
def test_a_length_that_is_not_the_headers_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArtifactError, match="x is missing or damaged: a header of "):
        read_tensors(tmp_path / "x")


def test_a_pipe_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing"):
        with pytest.raises(ArtifactError, match=f"{name} is missing or damaged: "):
            read_tensors(tmp_path / name)


def test_tensors_are_read_as_written(tmp_path: Path) -> None:
    tensors = {
        "empty": torch.zeros(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "a\n\u202e": torch.arange(5),
    }
    for written in (tensors, {}):
        write_tensors(written, tmp_path / "x")
        read = read_tensors(tmp_path / "x")
        assert read.keys() == written.keys()
        assert all(torch.equal(read[name], value) for name, value in written.items())
