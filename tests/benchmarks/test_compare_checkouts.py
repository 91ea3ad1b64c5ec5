"""The comparison of two checkouts, on small files with known differences."""

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from benchmarks.checkouts.differences import (
    Ignored,
    answer_differences,
    compare_folders,
    file_difference,
)
from benchmarks.checkouts.recipes import random_cases
from benchmarks.checkouts.requests import Tensor, encoded


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "before", tmp_path / "after"
    for folder in folders:
        folder.mkdir()
    return folders


def test_different_value_of_a_table_is_reported_with_column_and_row(
    pair: tuple[Path, Path],
) -> None:
    files = [folder / "part-0.parquet" for folder in pair]
    for file, last in zip(files, (3.0, float("nan")), strict=True):
        pq.write_table(pa.table({"a": [1, 2], "b": pa.array([[0.0], [1.0, last]])}), file)
    assert file_difference(*files) == "column b, row 1: [1.0, 3.0] != [1.0, nan]"
    assert file_difference(files[0], files[0]) is None


def test_different_type_or_compression_of_a_table_is_reported(pair: tuple[Path, Path]) -> None:
    files = [folder / "part-0.parquet" for folder in pair]
    pq.write_table(pa.table({"a": pa.array([1], pa.int64())}), files[0])
    pq.write_table(pa.table({"a": pa.array([1], pa.int32())}), files[1])
    assert file_difference(*files) == "column a (int64) != a (int32)"
    pq.write_table(pa.table({"a": pa.array([1], pa.int64())}), files[1], compression="gzip")
    assert file_difference(*files) == "the same values in other bytes"


def test_different_bit_of_a_weight_is_reported(pair: tuple[Path, Path]) -> None:
    files = [folder / "model.safetensors" for folder in pair]
    weights = np.ones((2, 3), np.float32)
    save_file({"head": weights}, files[0])
    weights[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    save_file({"head": weights}, files[1])
    difference = file_difference(*files)
    assert difference is not None
    assert difference.startswith("head, weight 5: ")


def test_only_timings_and_versions_of_a_manifest_may_differ(pair: tuple[Path, Path]) -> None:
    files = [folder / "manifest.json" for folder in pair]
    manifest = {"written_by": "1", "files": {"b": 1, "a": 2}, "facts": {"seconds": 3, "rows": [7]}}
    files[0].write_text(json.dumps(manifest))
    manifest |= {"written_by": "2", "files": {"a": 5, "b": 6}, "facts": {"seconds": 9, "rows": [7]}}
    files[1].write_text(json.dumps(manifest))
    assert file_difference(*files) is None
    manifest["facts"] = {"seconds": 9, "rows": [8]}
    files[1].write_text(json.dumps(manifest))
    assert file_difference(*files) == ".facts.rows[0]: 7 != 8"
    assert file_difference(*files, keys=("rows",)) is None


def test_fitted_state_is_compared_byte_for_byte(pair: tuple[Path, Path]) -> None:
    files = [folder / "fitted.json" for folder in pair]
    files[0].write_text('{"seconds": 1}')
    files[1].write_text('{"seconds": 2}')
    assert file_difference(*files) == ".seconds: 1 != 2"
    files[1].write_text('{"seconds":1}')
    assert file_difference(*files) == "the same values in other bytes"


def test_missing_file_is_reported_unless_ignored(pair: tuple[Path, Path]) -> None:
    (pair[1] / "extra.txt").write_text("")
    assert compare_folders(*pair, Ignored()) == {"extra.txt": "only AFTER"}
    assert compare_folders(*pair, Ignored(files=("extra.*",))) == {}


def _answer(status: int, scores: list[float]) -> str:
    content = np.array(scores, "<f4").tobytes()
    output = {"name": "scores", "datatype": "FP32", "shape": [1, len(scores)]}
    header = json.dumps(
        {"outputs": [output | {"parameters": {"binary_data_size": len(content)}}]}
    ).encode()
    body = base64.b64encode(header + content).decode()
    return json.dumps({"status": status, "header_bytes": str(len(header)), "body": body}) + "\n"


def test_refused_requests_are_compared_by_status_answers_by_tensors(
    pair: tuple[Path, Path],
) -> None:
    files = [folder / "answers.jsonl" for folder in pair]
    files[0].write_text(_answer(200, [2, 1]) + _answer(400, [1]) + _answer(400, [1]))
    files[1].write_text(_answer(200, [2, 0]) + _answer(400, [3]) + _answer(200, [1]))
    assert list(answer_differences(*files)) == [
        "request 0: scores, value 1: 1.0 != 0.0",
        None,
        "request 2: status 400 != 200",
    ]


def test_equal_seeds_give_equal_recipes_and_logs(pair: tuple[Path, Path]) -> None:
    for folder in pair:
        for number in range(6):
            random_cases(3, number, folder)
    # tables beside the log are named by their path
    comparisons = compare_folders(*pair, Ignored(files=("*/recipe.yaml",)))
    assert len(comparisons) > 6
    assert set(comparisons.values()) == {None}


def test_request_header_holds_the_bytes_of_each_tensor() -> None:
    header_bytes, body = encoded({"item_id": Tensor("BYTES", [["ü", "ab"]])}, ["scores"])
    header = json.loads(body[:header_bytes])
    assert header["inputs"][0]["shape"] == [1, 2]
    assert header["inputs"][0]["parameters"]["binary_data_size"] == len(body) - header_bytes
    assert body[header_bytes:] == b"\x02\0\0\0\xc3\xbc\x02\0\0\0ab"
