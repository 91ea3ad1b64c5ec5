"""The GPU engine on pandas and NumPy writes the bytes of the CPU engine."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.checkouts.cases import Case
from benchmarks.checkouts.recipes import random_cases
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import DataError, PipelineError
from pipeline.core.merlin import has_cudf
from pipeline.logs import files, text
from pipeline.preprocessing.gpu import frames, reading
from pipeline.preprocessing.gpu.frames import Frames
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from tests.preprocessing.strict_frames import StrictFrames

SIZES: tuple[dict[tuple[Any, str], int], ...] = (
    {},
    {
        (files, "BLOCK_ROWS"): 97,
        (spill, "SHARD_ROWS"): 60,
        (spill, "_STEP"): 7,
        (text, "BLOCK_BYTES"): 1 << 11,
    },
)
"""Sizes of blocks and shards: one of each for a small log, and many of each."""


@contextmanager
def engine(device: Frames | None, sizes: dict[tuple[Any, str], int]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "device_frames", lambda: device)
        for (module, name), size in sizes.items():
            patch.setattr(module, name, size)
        yield


def run(case: Case, folder: Path) -> tuple[str | None, list[str]]:
    """The error, if preprocessing refuses the case, and the notes of its manifest."""
    (folder / case.name).mkdir(parents=True)
    try:
        facts = preprocess(
            Recipe.load(case.recipe).preprocess,
            [Path(path) for path in case.logs],
            [Path(path) for path in case.tests],
            folder / case.name / "data",
            base=None if case.base is None else folder / case.base / "data",
            operators=None if case.operators is None else Path(case.operators),
        )
    except PipelineError as error:
        message = f"{type(error).__name__}: {error}".replace(str(folder), "")
        return re.sub("such as '[^']*'", "such as one", message), []  # any id is an example
    return None, facts["notes"]


def contents(folder: Path) -> dict[str, Any]:
    """Bytes of sessions, schema and fitted state; numbers of the report, whose rows of counts
    stand in the order of the shards that they come from."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.*"))}
    left_out = ("manifest.json", "report.html")
    of_files: dict[str, Any] = {
        name: path.read_bytes() for name, path in paths.items() if path.name not in left_out
    }
    for name in of_files:
        if name.endswith("report.json"):
            of_files[name] = json.loads(of_files[name])
            of_files[name].pop("notes", None)
    return of_files


def compare(
    number: int, folder: Path, *, clean: bool = False, device: Frames | None = None
) -> list[str]:
    """Preprocess a random recipe by both engines; returns the notes of the GPU engine."""
    inputs, cpu, gpu = (folder / name for name in ("inputs", "cpu", "gpu"))
    inputs.mkdir(parents=True)
    sizes = SIZES[number % len(SIZES)]
    notes = []
    for case in random_cases(0, number, inputs, clean=clean):
        if case.base is not None and not (cpu / case.base / "data").exists():
            continue  # the recipe is refused
        with engine(None, sizes):
            error, notes_cpu = run(case, cpu)
        with engine(device or Frames(), sizes):
            error_gpu, notes_gpu = run(case, gpu)
        assert error == error_gpu, case.name
        expected, written = contents(cpu / case.name), contents(gpu / case.name)
        assert expected.keys() == written.keys()
        assert [name for name in expected if expected[name] != written[name]] == [], case.name
        notes += [note for note in notes_gpu if note not in notes_cpu]
    return notes


@pytest.mark.parametrize("number", range(10))
def test_random_recipes_give_the_bytes_of_the_cpu_engine(number: int, tmp_path: Path) -> None:
    compare(number, tmp_path)


@pytest.mark.parametrize("number", range(18))
def test_clean_logs_of_random_recipes_give_the_bytes_of_the_cpu_engine(
    number: int, tmp_path: Path
) -> None:
    compare(number, tmp_path, clean=True)


@pytest.mark.parametrize("number", range(8))
def test_engine_uses_what_cudf_and_cupy_have_and_moves_arrays_itself(
    number: int, tmp_path: Path
) -> None:
    compare(number, tmp_path, clean=number % 4 > 0, device=StrictFrames())


@pytest.mark.slow
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("number", range(200))
def test_many_random_recipes_give_the_bytes_of_the_cpu_engine(
    number: int, clean: bool, tmp_path: Path
) -> None:
    compare(number, tmp_path, clean=clean)


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(12))
def test_random_recipes_on_cudf_give_the_bytes_of_the_cpu_engine(
    number: int, tmp_path: Path
) -> None:
    if not has_cudf():
        pytest.skip("no CUDA device with cuDF here: install the gpu extra on a machine with a GPU")
    compare(number, tmp_path, clean=True, device=frames.CudfFrames())


# --- which logs are read on the device ------------------------------------------------------------

RECIPE = {
    "session": "user",
    "item": "sku",
    "timestamp": {"column": "at"},
    "features": [{"name": "price", "kind": "continuous"}],
}
LINES = [
    f"{user},sku-{user * minute % 7},2024-03-0{1 + user} 10:0{minute}:00 UTC,{minute}.5"
    for user in range(1, 6)
    for minute in range(9)
]


def write_csv(folder: Path, lines: list[str], header: str = "user,sku,at,price") -> Path:
    path = folder / "log.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def write_parquet(folder: Path, **columns: pa.Array) -> Path:
    values = list(zip(*(line.split(",") for line in LINES), strict=True))
    table: dict[str, Any] = dict(zip(("user", "sku", "at"), values, strict=False))
    table["price"] = pa.array(range(len(LINES)))
    pq.write_table(pa.table(table | columns), folder / "log.parquet")
    return folder / "log.parquet"


def notes_of(path: Path, device: Frames, recipe: dict[str, Any] = RECIPE) -> list[str]:
    """Notes on why the CPU took over from the GPU engine, whose output is that of the CPU's."""
    outputs = []
    for name, of_engine in (("cpu", None), ("gpu", device)):
        with engine(of_engine, {}):
            chosen = Preprocess.from_dict(recipe, "preprocess")
            facts = preprocess(chosen, [path], [], path.with_name(name))
        outputs.append(contents(path.with_name(name)))
    assert outputs[0] == outputs[1]
    return [note for note in facts["notes"] if "was sorted by the CPU" in note]


def errors_of_both(path: Path, match: str) -> None:
    errors = []
    for name, device in (("cpu", None), ("gpu", StrictFrames())):
        with engine(device, {}), pytest.raises(DataError, match=match) as error:
            preprocess(Preprocess.from_dict(RECIPE, "preprocess"), [path], [], path.parent / name)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_clean_files_are_read_on_the_device(tmp_path: Path) -> None:
    assert notes_of(write_csv(tmp_path, LINES), StrictFrames()) == []
    times = pa.array(pd.date_range("2024-03-01", periods=len(LINES), freq="7min"))
    for name, columns in (("text", {}), ("times", {"at": times.cast(pa.timestamp("us"))})):
        (tmp_path / name).mkdir()
        assert notes_of(write_parquet(tmp_path / name, **columns), StrictFrames()) == []


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"drop_repeats": True}, {"rows with the item of the one before": 1}),
        (
            {"timestamp": {"column": "at", "earliest": "2024-03-01 00:01", "latest": "2024-03-02"}},
            {"rows before 2024-03-01 00:01": 1, "rows after 2024-03-02": 1},
        ),
        ({"duplicates": "drop"}, {"duplicated rows, dropped": 2}),
        ({"longest_session": 3}, {"rows of sessions longer than 3": 6}),
        ({"timestamp": {"column": "at", "features": ["elapsed", "hour"]}}, {}),
        ({"features": [{"name": "price", "kind": "continuous", "log": True}]}, {}),
    ],
)
def test_rules_at_their_bounds_drop_the_rows_of_the_cpu_engine(
    tmp_path: Path, settings: dict[str, Any], counts: dict[str, int]
) -> None:
    lines = [
        "1,a,2024-03-01,2",
        *["1,,2024-03-01 00:01,3"] * 2,  # a missing item is no repeat, and may be a duplicate
        *["1,b,2024-03-01 00:02:00.5,4"] * 2,
        "1,,2024-03-02T23:59:59.999999Z,",
        "2,b,2024-03-03,1e39",
        "2,a,2024-03-02 12:00:00+02:00,-1",
        "2,c,2024-03-02 12:00,1",
        "3,c,soon,1",
        ",c,2024-03-02,1",
    ]
    dropped = {"rows without a session id": 1, "rows without a usable time": 1, **counts}
    assert notes_of(write_csv(tmp_path, lines), StrictFrames(), {**RECIPE, **settings}) == []
    assert read_manifest(tmp_path / "gpu", "data")["rows"]["input"]["dropped"] == dropped


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("at", pa.array([1] * 45)),
        ("at", pa.array([1.5] * 45)),
        ("user", pa.array([None] * 45, pa.string())),
    ],
)
def test_log_without_a_usable_row_gives_the_error_of_the_cpu_engine(
    tmp_path: Path, column: str, values: pa.Array
) -> None:
    errors_of_both(write_parquet(tmp_path, **{column: values}), "no usable row")


def test_damaged_files_give_the_error_of_the_cpu_engine(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    errors_of_both(path, "cannot be read as parquet")
    errors_of_both(write_csv(tmp_path, LINES, "user,sku,when,price"), "no column for")


def test_text_in_a_test_log_of_integers_is_unknown_and_no_repeat(tmp_path: Path) -> None:
    log, test_log = tmp_path / "log.csv", tmp_path / "test.csv"
    log.write_text("user,sku,at,price\n" + "1,7,2024-03-01,1\n1,8,2024-03-02,1\n" * 3)
    test_log.write_text("user,sku,at,price\n" + "a,x,2024-03-03,1\na,y,2024-03-04,1\n" * 2)
    recipe = Preprocess.from_dict({**RECIPE, "drop_repeats": True}, "preprocess")
    for name, device in (("cpu", None), ("gpu", StrictFrames())):
        with engine(device, {}):
            facts = preprocess(recipe, [log], [test_log], tmp_path / name)
    assert contents(tmp_path / "cpu") == contents(tmp_path / "gpu")
    assert (facts["notes"], facts["rows"]["test"]["kept"]) == ([], 4)


def test_sessions_cut_at_gaps_are_in_the_order_of_the_cpu_engine(tmp_path: Path) -> None:
    """Ids sort as text after the cut, and as integers before it: 9 and 10, 9-2 and 9-10."""
    lines = [
        f"{user},a{minute},2024-03-01 {hour}:0{minute}:00,1"
        for user in (9, 10, 100, 11)
        for hour in range(10, 22)
        for minute in range(2)
    ]
    recipe = {**RECIPE, "session_gap": "30m"}
    assert notes_of(write_csv(tmp_path, lines), StrictFrames(), recipe) == []
    sessions = pq.read_table(tmp_path / "gpu" / "sessions" / "train")["session_id"].to_pylist()
    assert len(sessions) == 48
    assert sessions == sorted(sessions)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ('1,"a, b",2024-03-01 10:00:00 UTC,1', "quotes or lines to repair in log.csv"),
        ("1,a,2024-03-01 10:00:00 UTC", "quotes or lines to repair in log.csv"),
        ("1,a,2024-03-01 10:00:00 UTC,1,2", "quotes or lines to repair in log.csv"),
        ("1,a,2024-03-01\n1,a,2024-03-01,1,2", "quotes or lines to repair in log.csv"),
        ("1, a,2024-03-01 10:00:00 UTC,1", "quotes or lines to repair in log.csv"),
        ("user,sku,at,price", "quotes or lines to repair in log.csv"),
        ("1,a,2024-03-01 10:00:00 UTC,1\r", "quotes or lines to repair in log.csv"),
        ("1,\0a,2024-03-01 10:00:00 UTC,1", "log.csv is damaged"),
    ],
)
def test_csv_to_repair_is_left_to_the_cpu(tmp_path: Path, line: str, note: str) -> None:
    path = write_csv(tmp_path, [*LINES[:9], line, *LINES[9:]])
    assert notes_of(path, StrictFrames()) == [f"The log was sorted by the CPU: {note}."]


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"sku": pa.array(["a\0"] * 45)}, "text of item_id to repair"),
        ({"user": pa.array([True] * 45)}, "column 'user' of type bool"),
        ({"at": pa.array(["2024-03-01\0"] * 45)}, "text of timestamp to repair"),
        ({"at": pa.array([b"2024-03-01"] * 44 + [b"\xff"]).view("str")}, "text of timestamp to"),
        ({"sku": pa.array([b"a\xff"] * 45).view("str")}, "text of item_id to repair"),
        ({"sku": pa.array(["a"] * 45).dictionary_encode()}, "column 'sku' of type dictionary<"),
        ({"at": pa.array([0] * 45, pa.timestamp("s", "UTC"))}, "column 'at' of type timestamp[ms,"),
    ],
)
def test_parquet_of_other_types_is_left_to_the_cpu(
    tmp_path: Path, columns: dict[str, pa.Array], note: str
) -> None:
    notes = notes_of(write_parquet(tmp_path, **columns), StrictFrames())
    assert any(line.startswith(f"The log was sorted by the CPU: {note}") for line in notes)


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"order": ["price"]}, "`order`"),
        ({"missing": ["sku-1"]}, "`missing`"),
        ({"decimal": "."}, "`decimal`"),
        ({"quote": "none"}, "`quote: none`"),
        (
            {"timestamp": {"column": "at", "format": "%Y-%m-%d %H:%M:%S UTC"}},
            "`timestamp.format`",
        ),
    ],
)
def test_recipes_of_the_cpu_reader_are_encoded_on_the_device(
    tmp_path: Path, settings: dict[str, Any], note: str
) -> None:
    notes = notes_of(write_csv(tmp_path, LINES), StrictFrames(), {**RECIPE, **settings})
    assert f"The log was sorted by the CPU: {note}." in notes


class SmallDevice(Frames):
    """A device with little free memory."""

    def free_bytes(self) -> int:
        return 1000


class FullDevice(Frames):
    """A device whose memory does not suffice."""

    def read_csv(self, *_arguments: Any) -> Any:
        raise MemoryError


@pytest.mark.parametrize(
    ("device", "note"),
    [
        (SmallDevice(), "it may not fit into the memory of the GPU"),
        (FullDevice(), "the memory of the GPU was full"),
    ],
)
def test_log_larger_than_the_memory_goes_by_shards(
    tmp_path: Path, device: Frames, note: str
) -> None:
    path = write_csv(tmp_path, LINES)
    assert notes_of(path, device) == [f"The log was sorted by the CPU: {note}."]


# --- what differs between the two pairs of modules ------------------------------------------------


def all_frames() -> list[Any]:
    """pandas, and cuDF where there is a device."""
    reason = "no CUDA device with cuDF here"
    is_missing = pytest.mark.skipif(not has_cudf(), reason=reason)
    return [Frames, pytest.param("cudf", marks=[pytest.mark.gpu, is_missing])]


@pytest.fixture(params=all_frames())
def device(request: pytest.FixtureRequest) -> Frames:
    return frames.CudfFrames() if request.param == "cudf" else request.param()


def test_columns_of_parquet_keep_integers_and_missing_values(
    device: Frames, tmp_path: Path
) -> None:
    large = 2**62 + 1
    columns = {
        "whole": pa.array([large, None, 3], pa.int64()),
        "real": pa.array([0.5, None, float("nan")]),
        "text": pa.array(["b", None, "a"]),
        "other": pa.array([1, 2, 3]),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    frame = device.read_parquet(tmp_path / "log.parquet", ["text", "real", "whole"])
    assert device.host(frame["whole"].fillna(0).astype("int64").values).tolist() == [large, 0, 3]
    assert device.host(frame["whole"].isna().values).tolist() == [False, True, False]
    numbers = device.host(frame["real"].fillna(0).astype("float64").values)
    is_missing = device.host(frame["real"].isna().values)
    assert np.where(is_missing, np.nan, numbers)[0] == 0.5
    assert np.isnan(np.where(is_missing, np.nan, numbers)[1:]).all()
    codes, distinct = frame["text"].factorize()
    codes = device.host(device.arrays.asarray(codes)).tolist()
    assert codes[1] == -1
    assert [device.arrow(distinct)[codes[row]].as_py() for row in (0, 2)] == ["b", "a"]


def test_lines_of_csv_are_text_with_empty_values_missing_or_empty(device: Frames) -> None:
    block = b"007;NA;\nx y;nan;a\n"
    frame = device.read_csv(block, ["id", "no", "word"], ["word", "id"], ";")
    assert device.arrow(frame["id"]).to_pylist() == ["007", "x y"]
    assert device.arrow(frame["word"]).to_pylist() in ([None, "a"], ["", "a"])
    both = device.concatenate([frame, frame])
    assert device.arrow(both["id"]).to_pylist() == ["007", "x y"] * 2


def test_text_sorts_by_code_point_and_is_cut_by_character(device: Frames) -> None:
    texts = ["b", "a", "É", "Z", "ab", "�", "😀", "10", "9"]
    order = device.host(device.series(pa.array(texts)).argsort().values)
    assert [texts[row] for row in order] == sorted(texts)
    parts = device.series(pa.array(["2024-03-01 10:00", None, "Größe"])).str
    assert device.arrow(parts.slice(0, 10)).to_pylist() == ["2024-03-01", None, "Größe"]
    assert device.arrow(parts.slice(10, None)).to_pylist() == [" 10:00", None, ""]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), max_size=40))
@settings(deadline=None, max_examples=30)
def test_order_is_stable(pairs: list[tuple[int, int]]) -> None:
    first, second = (np.array([pair[n] for pair in pairs], np.int64) for n in (0, 1))
    expected = sorted(range(len(pairs)), key=lambda row: pairs[row])
    for device in [Frames(), StrictFrames(), *([frames.CudfFrames()] if has_cudf() else [])]:
        arrays = device.arrays
        order = device.order_by(arrays.asarray(first), arrays.asarray(second))
        assert device.host(order).tolist() == expected


def test_blocks_have_the_rows_of_the_cpu_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_ROWS", 10)
    assert reading._block_rows([[10, 10, 3], [4], [4]]) == [10, 10, 11]
    assert reading._block_rows([[7, 7, 7], [2]]) == [14, 9]
