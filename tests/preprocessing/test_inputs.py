"""The tables of docs/reference/inputs.md, row by row."""

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.core.errors import PipelineError
from pipeline.data.fitted import Fitted
from pipeline.logs.files import find_logs
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from tests.conftest import ROOT
from tests.preprocessing.whole_log import read_interactions

SESSIONS = {"session": [1, 1, 2, 2], "item": ["a", "b", "a", "c"]}
TIMES = [f"2020-01-0{day} 00:00:0{second}" for day, second in ((1, 0), (1, 9), (2, 0), (2, 9))]


def rows_of(section: str) -> list[list[str]]:
    """Cells of the table below a heading of the page, without the header."""
    page = (ROOT / "docs" / "reference" / "inputs.md").read_text(encoding="utf-8")
    lines = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table[2:]]


def code(cell: str) -> str:
    return cell.removeprefix("`").removesuffix("`").replace("\\`", "`")


def settings_of(cell: str) -> dict[str, Any]:
    return yaml.safe_load(code(cell)) or {}


def recipe(settings: dict[str, Any]) -> Preprocess:
    base: dict[str, Any] = {"session": "session", "item": "item"}
    return Preprocess.from_dict(base | settings, "preprocess")


# --- files --------------------------------------------------------------------------------------


def csv(delimiter: str = ",", end: str = "\n", header: bool = True) -> str:
    lines = [delimiter.join(("session", "item", "time"))] if header else []
    rows = zip(SESSIONS["session"], SESSIONS["item"], TIMES, strict=True)
    return "".join(line + end for line in [*lines, *(delimiter.join(map(str, r)) for r in rows)])


def days(path: Path) -> None:
    path.mkdir()
    header, *lines = csv().splitlines(keepends=True)
    for day in (0, 1):
        (path / f"{day}.csv").write_text(header + "".join(lines[2 * day : 2 * day + 2]))


def sessions_in_rows(path: Path) -> None:
    lists = {"item": [["a", "b"], ["a", "c"]], "time": [TIMES[:2], TIMES[2:]]}
    pq.write_table(pa.table({"session": [1, 2], **lists}), path)


def packed(codec: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(pa.compress(csv().encode(), codec, asbytes=True))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("log.csv", csv())


def json_lines() -> str:
    rows = zip(SESSIONS["session"], SESSIONS["item"], TIMES, strict=True)
    return "".join(json.dumps({"session": s, "item": i, "time": t}) + "\n" for s, i, t in rows)


def events(path: Path) -> None:
    rows = list(zip(SESSIONS["item"], TIMES, strict=True))
    lines = [
        {"session": session, "events": [{"item": item, "time": time} for item, time in part]}
        for session, part in ((1, rows[:2]), (2, rows[2:]))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def folders(path: Path) -> None:
    for day, part in ((1, slice(2)), (2, slice(2, 4))):
        folder = path / f"day=2020-01-0{day}"
        folder.mkdir(parents=True)
        columns = {name: values[part] for name, values in SESSIONS.items()}
        pq.write_table(pa.table({**columns, "second": [0, 9]}), folder / "part.parquet")


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "`log.csv`": ("log.csv", lambda p: p.write_text(csv())),
    "`log.tsv`": ("log.tsv", lambda p: p.write_text(csv("\t"))),
    "`log.txt`": ("log.txt", lambda p: p.write_text(csv())),
    "`log.dat`": ("log.dat", lambda p: p.write_text(csv(";"))),
    "`log.csv.gz`": ("log.csv.gz", lambda p: p.write_bytes(gzip.compress(csv().encode()))),
    "`log.parquet`": (
        "log.parquet",
        lambda p: pq.write_table(pa.table({**SESSIONS, "time": TIMES}), p),
    ),
    "`log.csv` without a header": ("log.csv", lambda p: p.write_text(csv(header=False))),
    "`log.csv` in UTF-16": ("log.csv", lambda p: p.write_text(csv(), encoding="utf-16")),
    "`log.csv` in UTF-16 without a byte order mark": (
        "log.csv",
        lambda p: p.write_text(csv(), encoding="utf-16-le"),
    ),
    "`log.csv` with CRLF and a byte order mark": (
        "log.csv",
        lambda p: p.write_bytes(csv(end="\r\n").encode("utf-8-sig")),
    ),
    "`log.csv.zst`": ("log.csv.zst", packed("zstd")),
    "`log.csv.bz2`": ("log.csv.bz2", lambda p: p.write_bytes(bz2.compress(csv().encode()))),
    "`log.csv.xz`": ("log.csv.xz", lambda p: p.write_bytes(lzma.compress(csv().encode()))),
    "`log.csv.zip`": ("log.csv.zip", zipped),
    "`log.jsonl`": ("log.jsonl", lambda p: p.write_text(json_lines())),
    "`log.jsonl.gz`": (
        "log.jsonl.gz",
        lambda p: p.write_bytes(gzip.compress(json_lines().encode())),
    ),
    "`log.jsonl` with a comma after each line": (
        "log.jsonl",
        lambda p: p.write_text(json_lines().replace("}\n", "},\n")),
    ),
    "`log.jsonl` with a session a line, its events in a list": ("log.jsonl", events),
    "`log.dat` with `::` between values": (
        "log.dat",
        lambda p: p.write_text(csv("::", header=False)),
    ),
    "`log.inter` of RecBole": (
        "log.inter",
        lambda p: p.write_text(
            csv("\t").replace("session\titem\ttime", "session:token\titem:token\ttime:token")
        ),
    ),
    "`log/` with a file a day": ("log", days),
    "`log/day=2020-01-01/part.parquet`, the time in the folder's name and a column of seconds": (
        "log",
        folders,
    ),
    "`log.parquet` with a session a row, its items and times as lists": (
        "log.parquet",
        sessions_in_rows,
    ),
}


def test_every_file_of_the_page_has_a_case() -> None:
    assert [row[0] for row in rows_of("Files")] == list(FILES)


@pytest.mark.parametrize("row", rows_of("Files"), ids=lambda row: row[0])
def test_a_file_of_the_page_gives_the_same_interactions(row: list[str], tmp_path: Path) -> None:
    name, write = FILES[row[0]]
    write(tmp_path / name)
    log = read_interactions(
        recipe({"timestamp": {"column": "time"}, **settings_of(row[1])}),
        find_logs(recipe({}), [tmp_path / name]),
    )
    assert log.frame["session_id"].tolist() == SESSIONS["session"]
    assert log.frame["item_id"].tolist() == SESSIONS["item"]
    times = [time[:10] for time in TIMES] if name == "log" and "day=" in row[0] else TIMES
    expected = np.array(times, "datetime64[us]").astype(np.int64)
    assert log.frame["timestamp"].tolist() == expected.tolist()


# --- values -------------------------------------------------------------------------------------


def read_value(tmp_path: Path, settings: dict[str, Any], **cells: str) -> Any:
    """Interactions of a log of one row that has the cells."""
    row = {"session": "1", "item": "a", "time": "2020-01-01", **cells}
    (tmp_path / "log.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    return read_interactions(recipe(settings), [tmp_path / "log.csv"]).frame


@pytest.mark.parametrize("row", rows_of("Times"), ids=lambda row: code(row[0]))
def test_a_time_of_the_page_is_read_as_it_says(row: list[str], tmp_path: Path) -> None:
    written, settings, expected = row
    timestamp = {"column": "time", **settings_of(settings)}
    cell = f'"{code(written)}"'
    if expected == "dropped":
        with pytest.raises(PipelineError, match="1 rows without a usable time"):
            read_value(tmp_path, {"timestamp": timestamp}, time=cell)
    else:
        frame = read_value(tmp_path, {"timestamp": timestamp}, time=cell)
        assert frame["timestamp"].tolist() == [int(np.datetime64(expected, "us").astype(np.int64))]


@pytest.mark.parametrize("row", rows_of("Numbers"), ids=lambda row: "-".join(map(code, row[:2])))
def test_a_number_of_the_page_is_read_as_it_says(row: list[str], tmp_path: Path) -> None:
    written, settings, expected = row
    features = [{"name": "price", "kind": "continuous"}]
    settings_of_row = {"features": features, **settings_of(settings)}
    (number,) = read_value(tmp_path, settings_of_row, price=f'"{code(written)}"')["price"]
    assert np.isnan(number) if expected == "missing" else number == float(expected)


@pytest.mark.parametrize(
    "row", rows_of("Ids and categories"), ids=lambda row: "-".join(map(code, row[:2]))
)
def test_an_id_of_the_page_is_read_as_it_says(row: list[str], tmp_path: Path) -> None:
    written, settings, expected = row
    (item,) = read_value(tmp_path, settings_of(settings), item=code(written))["item_id"]
    assert pd.isna(item) if expected == "missing" else item == expected


# --- messages -----------------------------------------------------------------------------------


def log_of(path: Path, items: list[Any], times: list[Any], sessions: list[Any]) -> Path:
    pq.write_table(pa.table({"session": sessions, "item": items, "time": times}), path)
    return path


def spoken(path: Path, settings: dict[str, Any]) -> str:
    """Notes of preprocessing a log, or its error."""
    try:
        facts = preprocess(recipe(settings), [path], [], path.parent / "data")
    except PipelineError as error:
        return str(error)
    return "\n".join(facts["notes"])


SECONDS = {"column": "time", "unit": "s"}
ABC = list("abca")
PAIRS = [1, 1, 2, 2]


def item_table(folder: Path) -> str:
    (folder / "items.csv").write_text("item,brand\nx1,p\nx2,q\n")
    table = {"item_table": {"file": str(folder / "items.csv")}}
    features = [{"name": "brand", "kind": "categorical", "of": "item", "table": True}]
    path = log_of(folder / "l.parquet", ABC, TIMES, PAIRS)
    return spoken(path, {"timestamp": {"column": "time"}, "features": features, **table})


def continued(folder: Path) -> str:
    earlier = log_of(folder / "earlier.parquet", list("xyxz"), TIMES, PAIRS)
    settings = recipe({"timestamp": {"column": "time"}})
    preprocess(settings, [earlier], [], folder / "earlier")
    later = log_of(folder / "later.parquet", ABC, TIMES, PAIRS)
    facts = preprocess(settings, [later], [], folder / "data", base=folder / "earlier")
    return "\n".join(facts["notes"])


def repeated_key(folder: Path) -> str:
    section = "preprocess:\n  session: s\n  item: i\n"
    (folder / "r.yaml").write_text(f"{section}model: {{}}\ntrain: {{}}\n{section}")
    with pytest.raises(PipelineError) as error:
        Recipe.load(folder / "r.yaml")
    return str(error.value).replace("line 1 and", "line 2 and")


def tags(folder: Path) -> str:
    table = pa.table({"session": PAIRS, "item": ABC, "tags": ["a|b", "['a', 'b']", "b|c", "c|a"]})
    pq.write_table(table, folder / "l.parquet")
    return spoken(folder / "l.parquet", {"features": [{"name": "tags", "kind": "categorical"}]})


def noted(items: list[Any], times: list[Any], sessions: list[Any], timestamp: Any = None) -> Any:
    """Case that preprocesses a log of these columns."""
    settings = {} if timestamp is None else {"timestamp": timestamp}
    return lambda f: spoken(log_of(f / "l.parquet", items, times, sessions), settings)


MESSAGES: dict[str, Callable[[Path], str]] = {
    "milliseconds read as seconds": noted(ABC, [1577836800000] * 4, PAIRS, SECONDS),
    "text read as seconds": noted(ABC, TIMES, PAIRS, SECONDS),
    "dates as numbers read as seconds": noted(ABC, [20200101] * 4, PAIRS, SECONDS),
    "days of a spreadsheet read as seconds": noted(
        ABC, [43831.5 + n for n in range(4)], PAIRS, SECONDS
    ),
    "`20200101103000` as text": noted(ABC, ["20200101103000"] * 4, PAIRS, {"column": "time"}),
    "times of which too few are read": noted(
        ABC, [TIMES[0], "soon", TIMES[2], None], PAIRS, {"column": "time"}
    ),
    "items named NULL and None": noted(["a", "NULL", "None", "a"], TIMES, PAIRS),
    "items that differ in `.0` alone": noted(["a", "12.0", "12", "a"], TIMES, PAIRS),
    "items that differ in a space of no width": noted(["a", "a\u200b", "b", "a"], TIMES, PAIRS),
    "items named -1": noted([-1, 5, 6, 5], TIMES, PAIRS),
    "long ids rounded by a spreadsheet": noted(["1.23457E+12", "5", "6", "5"], TIMES, PAIRS),
    "tags in a cell": tags,
    "a session named null of most rows": noted(
        ABC * 500, TIMES * 500, ["null"] * 1500 + ["1"] * 500
    ),
    "sessions that last days": noted(
        ABC, ["2020-01-01", "2020-01-09"] * 2, PAIRS, {"column": "time"}
    ),
    "sessions of one row each": noted(ABC * 5, TIMES * 5, [*range(18), 18, 18]),
    "rows of one day in each session": noted(
        ABC, ["2020-01-01"] * 2 + ["2020-01-02"] * 2, PAIRS, {"column": "time"}
    ),
    "an item table with other ids": item_table,
    "a log of other ids with `--from`": continued,
    "a key twice in the recipe": repeated_key,
}


def test_every_message_of_the_page_has_a_case() -> None:
    assert [row[0] for row in rows_of("Messages")] == list(MESSAGES)


@pytest.mark.parametrize("row", rows_of("Messages"), ids=lambda row: row[0])
def test_the_command_says_a_message_of_the_page(row: list[str], tmp_path: Path) -> None:
    message = MESSAGES[row[0]](tmp_path)
    for part in row[1].split("`; `"):
        assert code(part) in message


def test_a_log_without_oddities_has_no_note(tmp_path: Path) -> None:
    path = log_of(tmp_path / "l.parquet", ABC, TIMES, PAIRS)
    assert spoken(path, {"timestamp": {"column": "time"}}) == ""


def test_order_decides_between_equal_times(tmp_path: Path) -> None:
    items = list("abcd")
    table = {"session": PAIRS, "item": items, "time": ["2020-01-01"] * 4, "step": [2, 1, None, 10]}
    pq.write_table(pa.table(table), tmp_path / "l.parquet")
    settings = {"timestamp": {"column": "time"}, "order": ["step"]}
    preprocess(recipe(settings), [tmp_path / "l.parquet"], [], tmp_path / "data")
    fitted = Fitted.read(tmp_path / "data")
    names = dict(enumerate(fitted.item.values.to_pylist(), fitted.item.first))
    sessions = pq.read_table(tmp_path / "data" / "sessions" / "train")["item_id"].to_pylist()
    assert [[names[index] for index in session] for session in sessions] == [list("ba"), list("dc")]


def test_examples_name_the_value_and_its_row(tmp_path: Path) -> None:
    times = [*TIMES[:3], "soon"]
    path = log_of(tmp_path / "l.parquet", ABC, times, PAIRS)
    facts = preprocess(recipe({"timestamp": {"column": "time"}}), [path], [], tmp_path / "data")
    assert facts["rows"]["input"]["examples"] == {"rows without a usable time": "'soon' in row 4"}
