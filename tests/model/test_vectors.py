"""Pretrained vectors from files, by raw id."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import ConfigError, DataError
from pipeline.model.inputs.vectors import read_vectors

VECTORS = [[1.0, 2.0], [3.0, 5.0], [9.0, 9.0]]


def parquet(directory: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), directory / "vectors.parquet")
    return directory / "vectors.parquet"


def text(directory: Path, content: str, name: str = "vectors.csv") -> Path:
    (directory / name).write_text(content, encoding="utf-8")
    return directory / name


FILES = {
    "lists": lambda d: parquet(d, item=["b", "a", "x"], vector=VECTORS),
    "lists of one size": lambda d: parquet(
        d, item=["b", "a", "x"], vector=pa.array(VECTORS, pa.list_(pa.float32(), 2))
    ),
    "columns": lambda d: parquet(d, item=["b", "a", "x"], v0=[1, 3, 9], v1=[2.0, 5.0, 9.0]),
    "categories": lambda d: parquet(
        d, item=pa.array(["b", "a", "x"]).dictionary_encode(), vector=VECTORS
    ),
    "csv": lambda d: text(d, "item,v0,v1\nb,1,2\na,3,5\nx,9,9\n"),
    "tsv": lambda d: text(d, "item\tv0\tv1\nb\t1\t2\na\t3\t5\nx\t9\t9\n", "vectors.tsv"),
    "csv of lists": lambda d: text(d, 'item,vector\nb,"[1.0, 2.0]"\na,"[3, 5]"\nx,9 9\n'),
}


@pytest.mark.parametrize("file", FILES)
def test_vectors_stand_in_the_order_of_the_indices(file: str, tmp_path: Path) -> None:
    matrix, missing = read_vectors(FILES[file](tmp_path), ["a", "c", "b"])
    # c is not in the file: the mean of a and b; x is no item
    assert matrix.tolist() == [[0, 0], [0, 0], [0, 0], [3, 5], [2, 3.5], [1, 2]]
    assert missing == 1


def test_ids_may_be_integers(tmp_path: Path) -> None:
    columns = parquet(tmp_path, item=pa.array([7, 5], pa.int32()), v=[0.5, 1.5])
    for file in (columns, text(tmp_path, "item,v\n7,0.5\n5,1.5\n")):
        several: list[Any] = [[5, 7], np.array([5, 7]), pa.array([5, 7])]
        for ids in several:
            matrix, missing = read_vectors(file, ids)
            assert matrix.tolist() == [[0], [0], [0], [1.5], [0.5]]
            assert missing == 0


def test_text_ids_of_a_csv_keep_their_zeros(tmp_path: Path) -> None:
    file = text(tmp_path, "item,v\n007,1\n7,2\n")
    assert read_vectors(file, ["7", "007"])[0].tolist()[3:] == [[2], [1]]


def test_the_id_column_may_be_named(tmp_path: Path) -> None:
    file = parquet(tmp_path, vector=VECTORS, item=["b", "a", "x"])
    assert read_vectors(file, ["x"], id_column="item")[0].tolist()[3:] == [[9, 9]]


def test_no_ids_have_reserved_rows_alone(tmp_path: Path) -> None:
    matrix, missing = read_vectors(parquet(tmp_path, item=["b"], v=[1.0]), [])
    assert (tuple(matrix.shape), missing) == ((3, 1), 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "none.parquet", "none.parquet does not exist. Expected a column of ids"),
        (lambda d: d, "is no file"),
        (lambda d: text(d, "a", "vectors.npy"), "ends in .parquet, .csv or .tsv"),
        (lambda d: text(d, "no parquet", "v.parquet"), "cannot be read"),
        (lambda d: text(d, ""), "cannot be read"),
        (lambda d: text(d, "item,v\n"), "has no rows"),
        (lambda d: text(d, "item\na\n"), "has the columns 'item'"),
        (lambda d: text(d, "item,v,v\na,1,2\n"), "has the columns 'item', 'v', 'v'"),
        (lambda d: text(d, "item,v0,v1\na,1,b\n"), "'v1' holds no numbers"),
        (lambda d: text(d, "item,v\na,x y\n"), "'v' holds no numbers"),
        (lambda d: text(d, "item,v0,v1\na,1,\nb,1,2\n"), "that of 'a' is the first"),
        (lambda d: text(d, "item,v0,v1\na,1,inf\nb,1,2\n"), "1 vectors have numbers"),
        (lambda d: text(d, "item,v0,v1\na,1,1e300\nb,1,2\n"), "1 vectors have numbers"),
        (lambda d: text(d, "item,v\na,1 2\nb,1\n"), "vectors of 1 to 2 numbers"),
        (lambda d: text(d, "item,v\na,1\na,2\nb,3\n"), "1 ids occur more than once, 'a'"),
        (lambda d: text(d, "item,v\na,1\n,2\n"), "1 rows have no id in 'item'"),
        (lambda d: text(d, "item,v\nA,1\nB,2\n"), "none of the 2 ids: it begins with 'A'"),
        (lambda d: parquet(d, item=[1, 2], v=[0.1, 0.2]), "are int64, those of the log are text"),
        (lambda d: parquet(d, item=["a", "b"], v=[[1.0], [1.0, 2.0]]), "vectors of 1 to 2 numbers"),
        (lambda d: parquet(d, item=["a", "b"], v=[[1.0], None]), "vectors of 0 to 1 numbers"),
        (
            lambda d: parquet(d, item=["a"], v=pa.array([[]], pa.list_(pa.float32()))),
            "vectors of 0 to 0 numbers",
        ),
        (lambda d: parquet(d, item=["a", "b"], v=[["x"], ["y"]]), "'v' holds no numbers"),
        (lambda d: parquet(d, item=["a"], v=[[1.0]], w=[2.0]), "'v' holds no numbers"),
        (lambda d: parquet(d, item=["a"], v=[True]), "'v' holds no numbers"),
        (lambda d: parquet(d, item=["a", "b"], v=[[1.0], [float("nan")]]), "that of 'b'"),
    ],
)
def test_a_file_without_one_vector_an_id_is_refused_in_one_line(
    make: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    file = make(tmp_path)
    with pytest.raises(DataError) as caught:
        read_vectors(file, ["a", "b"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_of_another_type_than_those_of_the_file_are_refused(tmp_path: Path) -> None:
    for file in (text(tmp_path, "item,v\n5,1\nb,2\n"), parquet(tmp_path, item=["5"], v=[1.0])):
        with pytest.raises(DataError, match="integers"):
            read_vectors(file, [5, 6])
    with pytest.raises(ConfigError, match="ids are double"):
        read_vectors(file, pa.array([0.5]))
    mixed: list[Any] = ["a", 1]
    with pytest.raises(ConfigError, match="neither text nor integers"):
        read_vectors(file, mixed)
    with pytest.raises(DataError, match="has no column 'id'"):
        read_vectors(file, ["5"], id_column="id")
