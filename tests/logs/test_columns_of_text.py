"""Separators of text, names of columns, and the messages about columns that a file lacks."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.core.errors import DataError
from pipeline.logs.files import find_logs, read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.gpu.frames import Frames
from pipeline.preprocessing.gpu.log import read_on_device
from pipeline.preprocessing.gpu.reading import NotOnDeviceError
from pipeline.recipe.preprocess import Preprocess


def read(file: Path, content: str, **keys: Any) -> tuple[dict[str, list[Any]], RowCounts]:
    file.write_text(content)
    recipe, row_counts = Preprocess.from_dict(keys, "recipe"), RowCounts()
    tables = read_logs(recipe, find_logs(recipe, [file]), row_counts)
    return pa.concat_tables(tables).to_pydict(), row_counts


def refusal(file: Path, content: str, **keys: Any) -> str:
    with pytest.raises(DataError) as error:
        read(file, content, **keys)
    return str(error.value)


def test_ratings_of_movielens_are_read(tmp_path: Path) -> None:
    table, row_counts = read(
        tmp_path / "ratings.dat",
        "1::1193::5::978300760\n1::661::3\n1::66:1::3::978302109\n",
        delimiter="::",
        columns=["user", "movie", "rating", "time"],
        session="user",
        item="movie",
        timestamp={"column": "time", "unit": "s"},
    )
    assert table == {
        "session_id": ["1", "1"],
        "item_id": ["1193", "66:1"],
        "timestamp": ["978300760", "978302109"],
    }
    assert row_counts.examples == {"lines with another number of columns": "'1::661::3'"}


def test_separator_inside_quotes_is_part_of_the_value(tmp_path: Path) -> None:
    content = 'session_id||item_id\n1||"a||b"\n2||c,"d"\nsession_id||item_id\n3||"x" y\n'
    table, row_counts = read(tmp_path / "log.csv", content, delimiter="||")
    assert table == {"session_id": ["1", "2", "3"], "item_id": ["a||b", 'c,"d"', '"x" y']}
    assert row_counts.examples == {"lines that repeat the header": "'session_id||item_id'"}


INTER = "user_id:token\titem_id:token\ttimestamp:float\n7\t8\t10\n7\t9\t20\n"


@pytest.mark.parametrize("suffix", ["", ":token"])
def test_atomic_files_of_recbole_are_read(suffix: str, tmp_path: Path) -> None:
    keys = {"session": f"user_id{suffix}", "item": f"item_id{suffix}"}
    time = "timestamp:float" if suffix else "timestamp"
    timestamp = {"column": time, "unit": "s"}
    table, _ = read(tmp_path / "ml.inter", INTER, timestamp=timestamp, **keys)
    assert table == {
        "session_id": ["7", "7"],
        "item_id": ["8", "9"],
        "timestamp": ["10", "20"],
    }


def test_gpu_reader_leaves_separators_of_several_characters_to_the_cpu(tmp_path: Path) -> None:
    recipe = Preprocess.from_dict({"delimiter": "::"}, "recipe")
    (tmp_path / "log.csv").write_text("session_id::item_id\n1::2\n")
    with pytest.raises(NotOnDeviceError, match="`delimiter` of several characters"):
        read_on_device(Frames(), recipe, [tmp_path / "log.csv"])


@pytest.mark.parametrize("separator", [";", "\t", "|", "::"])
def test_message_names_the_separator_of_the_header(separator: str, tmp_path: Path) -> None:
    content = separator.join(["session_id", "item_id", "price\n"]) + separator.join("128\n")
    message = refusal(tmp_path / "log.csv", content)
    assert f"The columns look separated by {separator!r}: set `delimiter` to that." in message


def test_message_names_a_comma_where_the_recipe_has_another_separator(tmp_path: Path) -> None:
    message = refusal(tmp_path / "log.csv", "session_id,item_id\n1,2\n", delimiter=";")
    assert "The columns look separated by ','" in message


@pytest.mark.parametrize(
    ("names", "keys", "expected"),
    [
        ("session_id,ItemID,x", {}, "no column for item_id. Found: 'session_id', 'ItemID', 'x'."),
        ("session_id,ItemID,x", {}, "Correct `item` in the recipe: the closest is 'ItemID'."),
        ("sesion_id,item_id,x", {}, "Correct `session` in the recipe: the closest is 'sesion_id'."),
        ("session_id,zzz,yyy", {}, "Correct `item` in the recipe."),
        (
            "session_id,item_id,times",
            {"timestamp": {"column": "time"}},
            "column for timestamp, column 'time'. Found: 'session_id', 'item_id', 'times'. "
            "Correct `timestamp.column` in the recipe: the closest is 'times'.",
        ),
        (
            "session_id,item_id,brands",
            {"features": [{"name": "b", "kind": "categorical", "column": "brand"}]},
            "Correct `features` in the recipe: the closest is 'brands'.",
        ),
    ],
)
def test_message_names_the_key_of_the_recipe_and_the_closest_column(
    names: str, keys: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert expected in refusal(tmp_path / "log.csv", f"{names}\n1,2,3\n", **keys)
