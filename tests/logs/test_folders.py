"""Columns in the names of folders."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import DataError
from pipeline.logs.files import column_names, find_logs, read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.gpu.frames import Frames
from pipeline.preprocessing.gpu.reading import NotOnDeviceError, read_clean
from pipeline.recipe.preprocess import Preprocess

RECIPE = Preprocess.from_dict(
    {
        "timestamp": {"column": "day"},
        "features": [{"name": "shop", "kind": "categorical"}],
    },
    "recipe",
)


def csv(file: Path, rows: pa.Table) -> None:
    lines = [",".join(map(str, row.values())) for row in rows.to_pylist()]
    file.with_suffix(".csv").write_text("\n".join([",".join(rows.column_names), *lines]))


def jsonl(file: Path, rows: pa.Table) -> None:
    lines = [json.dumps(row) for row in rows.to_pylist()]
    file.with_suffix(".jsonl").write_text("\n".join(lines))


def parquet(file: Path, rows: pa.Table) -> None:
    pq.write_table(rows, file.with_suffix(".parquet"))


def tables(paths: list[Path]) -> pa.Table:
    return pa.concat_tables(read_logs(RECIPE, find_logs(RECIPE, paths), RowCounts()))


@pytest.mark.parametrize("write", [csv, jsonl, parquet])
def test_folders_give_the_columns_that_the_recipe_names(
    write: Callable[[Path, pa.Table], None], tmp_path: Path
) -> None:
    for day, shop in (("2020-01-01", "a%2Fb"), ("2020-01-02", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / "log" / f"day={day}" / f"shop={shop}" / "other=1"
        folder.mkdir(parents=True)
        write(folder / "part", pa.table({"session_id": [1, 1], "item_id": [2, 3]}))
    table = tables([tmp_path / "log"])
    assert table["timestamp"].to_pylist() == ["2020-01-01"] * 2 + ["2020-01-02"] * 2
    assert table["shop"].to_pylist() == ["a/b", "a/b", None, None]
    names = column_names(RECIPE, find_logs(RECIPE, [tmp_path / "log"]))
    assert names == {"session_id", "item_id", "day", "shop"}


def test_folders_as_arrow_writes_them_are_read(tmp_path: Path) -> None:
    rows = {"session_id": [1, 1, 2], "item_id": [4, 5, 6], "day": ["2020-01-01"] * 3}
    log = pa.table(rows | {"shop": ["x y", "ü", "x y"]})
    pa.dataset.write_dataset(
        log, tmp_path, format="parquet", partitioning=["day", "shop"], partitioning_flavor="hive"
    )
    read = tables([tmp_path]).rename_columns({"timestamp": "day"})
    assert read.sort_by("item_id").to_pydict() == log.select(read.column_names).to_pydict()


def test_column_of_the_file_comes_before_that_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "day=2020-01-01" / "shop=a"
    folder.mkdir(parents=True)
    parquet(folder / "part", pa.table({"session_id": [1], "item_id": [2], "day": ["2021-01-01"]}))
    assert tables([tmp_path])["timestamp"].to_pylist() == ["2021-01-01"]


def test_file_outside_the_folders_lacks_their_column(tmp_path: Path) -> None:
    parquet(tmp_path / "part", pa.table({"session_id": [1], "item_id": [2], "shop": ["a"]}))
    with pytest.raises(DataError, match="has no column for timestamp"):
        tables([tmp_path])


def test_gpu_reader_leaves_folders_to_the_cpu(tmp_path: Path) -> None:
    for write in (csv, parquet):
        folder = tmp_path / write.__name__ / "day=2020-01-01" / "shop=a"
        folder.mkdir(parents=True)
        write(folder / "part", pa.table({"session_id": [1], "item_id": [2]}))
        with pytest.raises(NotOnDeviceError, match="column"):
            read_clean(Frames(), RECIPE, find_logs(RECIPE, [folder]))


def test_folder_of_nvtabular_is_a_log_of_its_parquet_files(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular

        frame = pd.DataFrame({"session_id": [1, 1, 2], "item_id": [4, 5, 6]})
        workflow = nvtabular.Workflow(["session_id", "item_id"] >> nvtabular.ops.Operator())
        workflow.fit_transform(nvtabular.Dataset(frame)).to_parquet(str(tmp_path / "log"))
    names = {file.name for file in (tmp_path / "log").iterdir()}
    assert {"schema.pbtxt", "_file_list.txt", "_metadata"} <= names
    (tmp_path / "log" / "stats.json").write_text("{}")
    recipe = Preprocess.from_dict({}, "recipe")
    files = find_logs(recipe, [tmp_path / "log"])
    assert {file.suffix for file in files} == {".parquet"}
    table = pa.concat_tables(read_logs(recipe, files, RowCounts()))
    assert table.to_pydict() == {"session_id": [1, 1, 2], "item_id": [4, 5, 6]}
