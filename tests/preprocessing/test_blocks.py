"""Logs of many shapes to interactions in canonical columns."""

import csv
import gzip
import io
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DataError
from pipeline.data import values
from pipeline.data.times import NO_TIME, microseconds
from pipeline.logs.files import find_logs
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.timestamp import Timestamp
from tests.preprocessing.whole_log import Interactions, read_interactions

HOUR = 3_600 * 1_000_000
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
ROWS = [
    ("a", "x1", "2019-10-01 00:00:00 UTC", "9.5", "red"),
    ("a", "x2", "2019-10-01 00:00:02 UTC", "", "blue"),
    ("b", "x1", "2019-10-01 00:00:01 UTC", "3", ""),
]
NAMES = ("visit", "sku", "time", "price", "colour")


def recipe(**more: object) -> Preprocess:
    return Preprocess.from_dict(more, "recipe")


SHOP = {
    "session": "visit",
    "item": "sku",
    "timestamp": {"column": "time"},
    "features": [
        {"name": "price", "kind": "continuous"},
        {"name": "hue", "column": "colour", "kind": "categorical"},
    ],
}


def text_of(delimiter: str, rows: list, header: bool = True) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerows([NAMES, *rows] if header else rows)
    return stream.getvalue().encode()


def read(file: Path, **more: object) -> Interactions:
    return read_interactions(recipe(**more), [file])


def parquet(directory: Path, **columns: object) -> Path:
    file = directory / "log.parquet"
    pq.write_table(pa.table(columns), file)
    return file


def refusal(recipe: Preprocess, *files: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_interactions(recipe, list(files))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def plain(tmp_path: Path) -> Interactions:
    (tmp_path / "plain.csv").write_bytes(text_of(",", ROWS))
    return read(tmp_path / "plain.csv", **SHOP)


def test_a_log_becomes_canonical_columns(plain: Interactions) -> None:
    frame = plain.frame
    assert frame.columns.tolist() == ["session_id", "item_id", "hue", "price", "timestamp"]
    assert frame["session_id"].tolist() == ["a", "a", "b"]
    assert frame["item_id"].tolist() == ["x1", "x2", "x1"]
    assert frame["hue"].tolist() == ["red", "blue", None]
    assert frame["price"].tolist()[0::2] == [9.5, 3.0]
    assert np.isnan(frame["price"][1])
    start = 1_569_888_000 * 1_000_000
    assert frame["timestamp"].tolist() == [start, start + 2_000_000, start + 1_000_000]
    assert plain.types == {"session_id": "string", "item_id": "string", "hue": "string"}
    assert plain.timestamp_type == "string"
    assert plain.report.rows == 3
    assert plain.report.counts == {}


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("log.csv", text_of(",", ROWS), {}),
        ("log.tsv", text_of("\t", ROWS), {}),
        ("log.txt", text_of(";", ROWS), {"delimiter": ";"}),
        ("log.dat", text_of(",", ROWS, header=False), {"columns": list(NAMES)}),
        ("log.csv.gz", gzip.compress(text_of(",", ROWS), mtime=0), {}),
        ("LOG.TSV.GZ", gzip.compress(text_of("\t", ROWS), mtime=0), {}),
        ("log", text_of(",", ROWS), {"format": "csv"}),
        ("log.csv", b"\xef\xbb\xbf" + text_of(",", ROWS).replace(b"\n", b"\r\n"), {}),
        ("log.csv", text_of(",", ROWS).rstrip(b"\n"), {}),
    ],
)
def test_all_text_formats_give_equal_data(
    tmp_path: Path, plain: Interactions, name: str, content: bytes, settings: dict
) -> None:
    (tmp_path / name).write_bytes(content)
    log = read(tmp_path / name, **SHOP, **settings)
    pd.testing.assert_frame_equal(log.frame, plain.frame)


def test_parquet_gives_the_same_as_text(tmp_path: Path, plain: Interactions) -> None:
    columns = {name: [row[i] or None for row in ROWS] for i, name in enumerate(NAMES)}
    columns["price"] = [9.5, None, 3]
    columns["colour"] = pa.array(columns["colour"]).dictionary_encode()
    log = read(parquet(tmp_path, **columns), **SHOP)
    pd.testing.assert_frame_equal(log.frame, plain.frame)


def test_files_are_read_as_one_log(tmp_path: Path, plain: Interactions) -> None:
    files = []
    for number, rows in enumerate((ROWS[:1], [], ROWS[1:])):
        files.append(tmp_path / f"{number}.csv")
        files[-1].write_bytes(text_of(",", rows))
    log = read_interactions(recipe(**SHOP), files)
    pd.testing.assert_frame_equal(log.frame, plain.frame)
    assert log.report.rows == 3


def test_lists_hold_whole_sessions(tmp_path: Path) -> None:
    file = parquet(
        tmp_path,
        visit=["a", "b", "c", "d"],
        sku=pa.array([["x1", "x2"], ["x1"], [], None]),
        price=pa.array([[1, 2], [3], [], None], pa.large_list(pa.float64())),
        device=["phone", None, "desktop", "tablet"],
    )
    features = [
        {"name": "price", "kind": "continuous"},
        {"name": "device", "kind": "categorical", "of": "session"},
    ]
    log = read(file, session="visit", item="sku", features=features)
    assert log.frame["session_id"].tolist() == ["a", "a", "b"]
    assert log.frame["item_id"].tolist() == ["x1", "x2", "x1"]
    assert log.frame["price"].tolist() == [1, 2, 3]
    assert log.frame["device"].tolist() == ["phone", "phone", None]
    assert log.frame["timestamp"].tolist() == [0, 1, 2]  # the order of the rows
    assert log.timestamp_type is None
    assert log.report.facts(3)["counted"] == {"rows of lists without an item": 2}


def test_lists_of_one_length_are_lists_too(tmp_path: Path) -> None:
    pairs = pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2))
    file = parquet(tmp_path, session_id=[7, 8], item_id=pairs)
    assert read(file).frame["item_id"].tolist() == [1, 2, 3, 4]


def test_lists_that_do_not_match_are_refused(tmp_path: Path) -> None:
    prices = {"features": [{"name": "price", "kind": "continuous"}]}
    lists = pa.array([[1, 2], [3]])
    file = parquet(tmp_path, session_id=[1, 2], item_id=lists, price=[[1.0], [2.0]])
    assert "lists of price and of item_id differ in length" in refusal(recipe(**prices), file)
    file = parquet(tmp_path, session_id=[1, 2], item_id=[1, 2], price=lists)
    assert "price is a list column but the item is not" in refusal(recipe(**prices), file)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_line_may_be_a_session(tmp_path: Path, compress: type) -> None:
    (tmp_path / "log.gz" if compress is gzip.compress else tmp_path / "log").write_bytes(
        compress(b"7 x1 x2\n\n8\n9 x3\r\n")
    )
    (file,) = tmp_path.iterdir()
    log = read(file, format="sequences")
    assert log.frame["session_id"].tolist() == [7, 7, 9]
    assert log.frame["item_id"].tolist() == ["x1", "x2", "x3"]
    assert log.report.rows == 3
    assert log.report.counts == {"lines without an item": 1}


def test_sessions_without_an_id_stay_apart_across_files_of_one_name(tmp_path: Path) -> None:
    files = []
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        files.append(tmp_path / day / "log.txt")
        files[-1].write_text("1 2\n3 4\n")
    log = read_interactions(recipe(format="sequences", session_first=False), files)
    assert log.frame.groupby("session_id")["item_id"].agg(list).tolist() == [[1, 2], [3, 4]] * 2


@given(st.integers(1, len(text_of(",", ROWS[-1:], header=False))))
@settings(deadline=None)
def test_truncated_last_line_is_not_fatal(
    tmp_path_factory: pytest.TempPathFactory, missing: int
) -> None:
    file = tmp_path_factory.mktemp("log") / "log.csv"
    whole = text_of(",", ROWS)
    file.write_bytes(whole[:-missing])
    log = read(file, **SHOP)
    assert log.frame["item_id"].tolist()[:2] == ["x1", "x2"]
    last = whole[:-missing].rsplit(b"\n", 1)[1]
    skipped = log.report.counts.get("lines with another number of columns", 0)
    assert skipped == (0 < last.count(b",") < 4 or (last != b"" and b"," not in last))
    assert log.report.rows == 2 + (last != b"")


def test_broken_lines_are_counted_where_there_are_many(tmp_path: Path) -> None:
    good = "".join(f"{n},{n}\n" for n in range(50_000))
    broken = "1\n2,3,4\n" * 1_000
    (tmp_path / "log.csv").write_text(f"session_id,item_id\n{good}{broken}{good}")
    log = read(tmp_path / "log.csv")
    assert log.report.counts == {"lines with another number of columns": 2_000}
    assert log.report.rows == 102_000
    assert log.frame["item_id"].tolist() == [*range(50_000)] * 2


def test_quotes_and_delimiters_inside_values_are_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('session_id,item_id\n1,"a, ""b"""\n1,"c"\n')
    assert read(tmp_path / "log.csv").frame["item_id"].tolist() == ['a, "b"', "c"]


def test_ids_with_leading_zeros_stay_text(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("session_id,item_id\n1,00123\n1,123\n")
    log = read(tmp_path / "log.csv")
    assert log.frame["item_id"].tolist() == ["00123", "123"]
    assert log.types["item_id"] == "string"
    assert log.types["session_id"] == "int64"


IDS = st.one_of(
    st.integers(-(2**63) + 2, 2**63 - 1).map(str),
    st.integers(0, 999).map(str),
    st.sampled_from(["007", "+1", "-0", "1.0", "1e3", "0x10", " 1", "1 ", "nan", "NULL", "٣", "-"]),
    st.text(st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]), min_size=1),
)


@given(st.lists(IDS, min_size=1, max_size=6))
@settings(deadline=None)
def test_no_id_is_changed_by_reading(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    file = tmp_path_factory.mktemp("log") / "log.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("session_id", "item_id"), *((1, value) for value in ids)])
    log = read(file)
    assert [str(value) for value in log.frame["item_id"]] == ids
    whole = all(value.isascii() and value.lstrip("-").isdigit() for value in ids)
    canonical = whole and all(str(int(value)) == value for value in ids)
    assert log.types["item_id"] == ("int64" if canonical else "string")


def test_ids_that_are_numbers_in_one_file_and_text_in_another_are_text(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("session_id,item_id\n1,10\n")
    (tmp_path / "2.csv").write_text("session_id,item_id\n1,b\n")
    pq.write_table(pa.table({"session_id": [2], "item_id": [10]}), tmp_path / "3.parquet")
    files = sorted(tmp_path.iterdir())
    log = read_interactions(recipe(), files)
    assert log.frame["item_id"].tolist() == ["10", "b", "10"]
    assert log.frame["session_id"].tolist() == [1, 1, 2]
    assert log.types == {"session_id": "int64", "item_id": "string"}


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([5, None, 7]), [5, None, 7]),
        (pa.array([5, None, 7], pa.uint8()), [5, None, 7]),
        (pa.array([5.0, None, 7.0]), [5, None, 7]),  # what pandas makes of a gap
        (pa.array([5.0, float("nan"), 7.0]), [5, None, 7]),
        (pa.array([5, None, 7]).dictionary_encode(), [5, None, 7]),
        (pa.array(["5", "", "7"]), [5, None, 7]),
        (pa.array(["5", None, "7"], pa.large_string()), [5, None, 7]),
        (pa.array([2053013555631882655, None, 2053013555631882656]),
         [2053013555631882655, None, 2053013555631882656]),
        (pa.array([2**63, None, 7], pa.uint64()), ["9223372036854775808", None, "7"]),
        (pa.array([5.5, None, 7.0]), ["5.5", None, "7"]),
        (pa.array([5.5, float("nan"), 7.0]), ["5.5", None, "7"]),
        (pa.array([5, None, 0]).cast(pa.decimal128(21, 2)), [5, None, 0]),
        (pa.array([5.5, None, 0.0]).cast(pa.decimal256(19, 8)), ["5.50000000", None, "0"]),
        (pa.array([-2.5, None, 700.0]).cast(pa.decimal128(9, 1)), ["-2.5", None, "700"]),
        (pa.array([b"x", None, b"y"]), ["x", None, "y"]),
        (pa.array([b"x", None, b"y"], pa.large_binary()), ["x", None, "y"]),
        (pa.array([True, None, False]), ["true", None, "false"]),
        (pa.array(["x", "", "y"]), ["x", None, "y"]),
    ],
)  # fmt: skip
def test_ids_of_every_arrow_type_are_integers_or_text(
    tmp_path: Path, array: pa.Array, expected: list
) -> None:
    log = read(parquet(tmp_path, session_id=[1, 1, 1], item_id=array))
    ids = [None if pd.isna(value) else value for value in log.frame["item_id"].tolist()]
    assert ids == expected
    assert log.types["item_id"] == ("int64" if isinstance(expected[0], int) else "string")


def test_types_that_were_fitted_are_kept_and_other_values_become_unknown(tmp_path: Path) -> None:
    largest = 2**63 - 1
    ids = ["7", "", "x", "007", "1.5", str(largest), str(largest + 1), str(-largest), "9" * 30]
    file = parquet(tmp_path, session_id=[1] * 9, item_id=ids)
    log = read_interactions(recipe(), [file], {"session_id": "int64", "item_id": "int64"})
    unknown = values.UNKNOWN_INTEGER
    ids = [None if pd.isna(value) else value for value in log.frame["item_id"].tolist()]
    assert ids == [7, None, unknown, unknown, unknown, largest, unknown, -largest, unknown]
    log = read_interactions(recipe(), [file], {"session_id": "string", "item_id": "string"})
    assert log.frame["item_id"].tolist()[:3] == ["7", None, "x"]


def test_session_ids_of_another_type_than_those_learned_stay_apart(tmp_path: Path) -> None:
    file = parquet(tmp_path, session_id=["u1", "u1", "u2"], item_id=[1, 2, 3])
    log = read_interactions(recipe(), [file], {"session_id": "int64", "item_id": "int64"})
    assert log.frame["session_id"].tolist() == ["u1", "u1", "u2"]


def test_rows_without_a_session_are_dropped_and_counted(tmp_path: Path) -> None:
    file = parquet(tmp_path, session_id=["a", None, "", "b"], item_id=[1, 2, 3, None])
    log = read(file)
    assert log.frame["session_id"].tolist() == ["a", "b"]
    assert log.report.counts == {"rows without a session id": 2}
    assert pd.isna(log.frame["item_id"][1])  # an item that is missing stays an interaction


def test_unusable_numbers_are_missing_and_counted(tmp_path: Path) -> None:
    prices = {"features": [{"name": "price", "kind": "continuous"}]}
    texts = ["1.5", "", "abc", "inf", "-inf", "nan", "1e400", "1e39", " 2 ", "-3", "1e3"]
    expected = [1.5, None, None, None, None, None, None, None, 2.0, -3.0, 1000.0]
    file = parquet(tmp_path, session_id=[1] * 11, item_id=[1] * 11, price=texts)
    log = read(file, **prices)
    assert [None if np.isnan(v) else v for v in log.frame["price"]] == expected
    assert log.report.counts == {"values of price that are no usable number": 6}


@pytest.mark.parametrize(
    ("array", "expected", "bad"),
    [
        (pa.array([1.5, None, float("nan"), float("inf")]), [1.5, None, None, None], 1),
        (pa.array([2**60 + 1, None, -3, 0]), [2.0**60, None, -3, 0], 0),  # not exact in float64
        (pa.array([1, None, 3, 0], pa.uint8()), [1, None, 3, 0], 0),
        (pa.array([None] * 4, pa.null()), [None] * 4, 0),
        (pa.array([1.5, None, 2, 3]).cast(pa.decimal128(5, 2)), [1.5, None, 2, 3], 0),
        (pa.array(["1.5", None, "2", "x"]).dictionary_encode(), [1.5, None, 2, None], 1),
    ],
)
def test_numbers_of_every_arrow_type_are_read(
    tmp_path: Path, array: pa.Array, expected: list, bad: int
) -> None:
    file = parquet(tmp_path, session_id=[1] * 4, item_id=[1] * 4, price=array)
    log = read(file, features=[{"name": "price", "kind": "continuous"}])
    assert [None if np.isnan(v) else v for v in log.frame["price"]] == expected
    assert log.report.counts.total() == bad


def test_numbers_without_a_logarithm_in_float32_are_missing_where_one_is_asked(
    tmp_path: Path,
) -> None:
    prices = [-1.0, -2.0, -1 + 1e-12, -0.5, 0.0]
    file = parquet(tmp_path, session_id=[1] * 5, item_id=[1] * 5, price=prices)
    log = read(file, features=[{"name": "price", "kind": "continuous", "log": True}])
    assert log.frame["price"].isna().tolist() == [True, True, True, False, False]
    assert log.report.counts == {"values of price that are no usable number": 3}


# --- time ---------------------------------------------------------------------------------------

EPOCH = datetime(1970, 1, 1)
TIMES = st.datetimes(datetime(1700, 1, 1), datetime(2199, 12, 31, 23, 59, 59, 999_999))


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def parsed(array: pa.Array, unit: str) -> tuple[list[int | None], str]:
    times, kind = microseconds([array], Timestamp(column="t", unit=unit))
    return [None if t == NO_TIME else t for t in times.tolist()], kind


@given(st.lists(TIMES, min_size=1, max_size=4))
@settings(deadline=None)
def test_one_moment_reads_the_same_in_every_notation(moments: list[datetime]) -> None:
    exact = [micros(moment) for moment in moments]
    naive = pa.array(moments, pa.timestamp("us"))
    assert parsed(naive, "iso") == (exact, "string")
    zoned = pa.array([m.replace(tzinfo=UTC) for m in moments], pa.timestamp("us", "Asia/Tokyo"))
    assert parsed(zoned, "s") == (exact, "string")  # Parquet's own times have their unit
    assert parsed(pa.array(moments, pa.timestamp("ns")), "iso") == (exact, "string")
    for text in (
        [m.isoformat() for m in moments],
        [m.isoformat(" ") + " UTC" for m in moments],
        [m.isoformat() + "Z" for m in moments],
    ):
        assert parsed(pa.array(text), "iso") == (exact, "string")
        assert parsed(pa.array(text).dictionary_encode().dictionary_decode(), "iso")[0] == exact
    assert parsed(pa.array(exact), "us") == (exact, "int64")
    assert parsed(pa.array([str(time) for time in exact]), "us") == (exact, "int64")
    assert parsed(pa.array([1000 * time for time in exact]), "ns") == (exact, "int64")
    for unit, factor in UNITS.items():
        whole = [time // factor for time in exact]
        assert parsed(pa.array(whole), unit) == ([time * factor for time in whole], "int64")


@given(TIMES, st.integers(-23 * 60 - 59, 23 * 60 + 59), st.booleans(), st.sampled_from(["", " "]))
def test_a_zone_is_taken_into_account(
    moment: datetime, minutes: int, colon: bool, space: str
) -> None:
    zone = timezone(timedelta(minutes=minutes))
    local = moment.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)
    if not 1700 <= local.year <= 2199:
        return
    sign = "-" if minutes < 0 else "+"
    offset = f"{sign}{abs(minutes) // 60:02}{':' * colon}{abs(minutes) % 60:02}"
    assert parsed(pa.array([local.isoformat() + space + offset]), "iso")[0] == [micros(moment)]


@given(st.integers(-4 * 10**9, 7 * 10**9), st.integers(0, 999))
def test_seconds_with_a_fraction_keep_their_milliseconds(seconds: int, milliseconds: int) -> None:
    exact = seconds * 1_000_000 + milliseconds * 1_000
    assert parsed(pa.array([exact / 1e6]), "s") == ([exact], "float64")
    assert parsed(pa.array([f"{seconds}", f"{exact / 1e6}", "x", ""]), "s") == (
        [seconds * 1_000_000, exact, None, None],
        "float64",
    )


@pytest.mark.parametrize(
    ("array", "unit", "expected"),
    [
        (pa.array(["2019-10-01", None, "", "yesterday"]), "iso", [1_569_888_000, None, None, None]),
        (pa.array(["2019-10-01 24:00", "2019-02-30"]), "iso", [None, None]),
        (pa.array([1_569_888_000, None]), "iso", [None, None]),  # a number is no text
        (pa.array([10, None, -10]), "s", [10, None, -10]),
        (pa.array([10**10, None], pa.int64()), "ns", [10, None]),
        (pa.array([10**10, None], pa.uint64()), "ns", [10, None]),
        (pa.array([2**64 - 1, 2**63, 5 * 10**6], pa.uint64()), "us", [None, None, 5]),
        (pa.array([2**62, -(2**62), 2**40]), "s", [None, None, 2**40]),
        (pa.array([float("nan"), float("inf"), 1e300, 2.0]), "ms", [None, None, None, 0.002]),
        (pa.array([18_170, None], pa.date32()), "iso", [18_170 * 86_400, None]),
        (pa.array([2**31 - 1, -1], pa.date32()), "iso", [None, -86_400]),
        (pa.array([86_400_000, None], pa.date64()), "iso", [86_400, None]),
        (pa.array([2**60, None, -1], pa.timestamp("s")), "iso", [None, None, -1]),
        (pa.array([2**62, 5], pa.timestamp("ms", "Asia/Tokyo")), "iso", [None, 0.005]),
        (pa.array([2**63 - 1, -(2**62) - 10, 5], pa.timestamp("us")), "iso", [None, None, 5e-6]),
        (pa.array([-1, 1_999], pa.timestamp("ns")), "iso", [-1e-6, 1e-6]),
        (pa.array([None, None], pa.null()), "iso", [None, None]),
        (pa.array([None, None], pa.null()), "s", [None, None]),
    ],
)
def test_invalid_times_are_missing(array: pa.Array, unit: str, expected: list) -> None:
    seconds = [None if t is None else t / 1_000_000 for t in parsed(array, unit)[0]]
    assert seconds == expected


def test_rows_without_a_usable_time_are_dropped_and_counted(tmp_path: Path) -> None:
    file = parquet(
        tmp_path, session_id=[1, 1, 1], item_id=[1, 2, 3], t=pa.array([None, 5, 10**5], pa.int64())
    )
    for unit in ("s", "ms", "us", "ns"):
        log = read(file, timestamp={"column": "t", "unit": unit})
        assert log.frame["item_id"].tolist() == [2, 3]
        assert log.report.counts == {"rows without a usable time": 1}


# --- what cannot be read ------------------------------------------------------------------------


def test_duplicate_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("session_id,item_id,item_id\n1,2,3\n")
    expected = "has 2 columns named 'item_id'. Name them apart."
    assert expected in refusal(recipe(), tmp_path / "log.csv")
    headerless = recipe(columns=["session_id", "item_id", "item_id"])
    assert expected in refusal(headerless, tmp_path / "log.csv")


def test_duration_column_is_refused_as_timestamp(tmp_path: Path) -> None:
    for kind in (pa.duration("s"), pa.time32("s")):
        file = parquet(tmp_path, session_id=[1], item_id=[1], t=pa.array([5], kind))
        message = refusal(recipe(timestamp={"column": "t", "unit": "s"}), file)
        assert "expected times, not durations" in message


def test_missing_column_error_lists_the_columns(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(text_of(",", ROWS))
    message = refusal(recipe(**{**SHOP, "item": "product"}), tmp_path / "log.csv")
    assert "no column for item_id, column 'product'" in message
    assert "Found: 'visit', 'sku', 'time', 'price', 'colour'" in message
    message = refusal(recipe(session="visit", delimiter=";"), tmp_path / "log.csv")
    assert "The columns look separated by ',': set `delimiter` to that." in message
    file = parquet(tmp_path, session_id=[1], sku=[2])
    assert "no column for item_id. Found: 'session_id', 'sku'" in refusal(recipe(), file)
    headerless = recipe(columns=["session_id", "sku"])
    assert "no column for item_id" in refusal(headerless, tmp_path / "log.csv")


def test_files_are_listed_and_checked_without_reading(tmp_path: Path) -> None:
    good, other = tmp_path / "log.csv", tmp_path / "log.xlsx"
    for file in (good, other):
        file.write_bytes(b"\xff")
    assert find_logs(recipe(), [good]) == [good]
    assert find_logs(recipe(format="csv"), [other]) == [other]
    with pytest.raises(DataError, match="cannot tell the format"):
        find_logs(recipe(), [good, other])
    with pytest.raises(DataError, match=r"none.csv does not exist"):
        find_logs(recipe(format="csv"), [good, tmp_path / "none.csv"])


def test_folder_expands_to_its_logs_by_name(tmp_path: Path) -> None:
    names = ["b.csv", "a.parquet", "day=2/x.tsv.gz", "day=1/x.csv"]
    for name in [*names, "_SUCCESS", ".a.parquet.crc", ".tmp/x.csv", "day=1/_log/y.csv"]:
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / name).touch()
    (tmp_path / "more.csv").touch()
    logs = find_logs(recipe(), [tmp_path / "more.csv", tmp_path / "logs"])
    assert logs[0] == tmp_path / "more.csv"
    assert [f.relative_to(tmp_path / "logs").as_posix() for f in logs[1:]] == sorted(names)
    (tmp_path / "logs" / "notes.md").touch()
    with pytest.raises(DataError, match=r"notes.md: cannot tell the format"):
        find_logs(recipe(), [tmp_path / "logs"])
    (tmp_path / "logs" / "notes.md").unlink()
    # links count, also one that leads nowhere or to where it comes from
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.csv").touch()
    (tmp_path / "logs" / "day=3").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "logs" / "round").symlink_to(tmp_path / "logs")
    logs = find_logs(recipe(), [tmp_path / "logs"])
    assert [f.name for f in logs] == ["a.parquet", "b.csv", "x.csv", "x.tsv.gz", "z.csv"]
    (tmp_path / "logs" / "gone.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"gone.csv does not exist"):
        find_logs(recipe(), [tmp_path / "logs"])
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none holds no file"):
        find_logs(recipe(), [tmp_path / "none"])


def test_unreadable_folder_reports_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1" / "a.csv").touch()
    (tmp_path / "day=2").mkdir()
    listed = Path.iterdir

    def refuse(path: Path) -> object:
        if path.name == "day=2":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)  # root, who may run this, reads everything
    with pytest.raises(DataError, match=r"day=2 cannot be read: Permission denied"):
        find_logs(recipe(), [tmp_path])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.csv does not exist" in refusal(recipe(), tmp_path / "none.csv")
    assert "is no file" in refusal(recipe(), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("log.csv", b"", "no usable row among 0 (1 empty files). Expected a log with rows."),
        ("log.csv", b"\n\n", "(1 empty files)"),
        ("log.csv.gz", gzip.compress(b"", mtime=0), "(1 empty files)"),
        ("log.csv", b"session_id,item_id\n", "no usable row among 0 (1 empty files)"),
        ("log.csv", b"session_id,item_id\n,1\n", "(1 rows without a session id)"),
        (
            "log.csv",
            b"session_id,item_id\n1\n",
            "(1 lines with another number of columns (such as '1'))",
        ),
        ("log.csv.gz", b"\x1f\x8b\0session_id,item_id\n1,2\n", "cannot be read as csv"),
        ("log.csv.gz", gzip.compress(text_of(",", ROWS), mtime=0)[:10], "damaged from its begin"),
        ("log.parquet", b"PAR1", "cannot be read as parquet"),
        ("log.parquet", b"", "(1 empty files)"),
        ("log.xlsx", b"", "cannot tell the format from the name"),
    ],
)
def test_a_file_without_anything_usable_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(recipe(), tmp_path / name)
    assert name in message
    assert expected in message


def test_an_empty_sequence_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    assert "(1 empty files)" in refusal(recipe(format="sequences"), tmp_path / "log")
    (tmp_path / "log").write_text("1\n2\n")
    assert "(2 lines without an item)" in refusal(recipe(format="sequences"), tmp_path / "log")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([{"a": 1}]), "Correct `item` in the recipe: the closest is 'item_id.a'."),
        (pa.array([[[1], [2]]]), "item_id holds list<"),
    ],
)
def test_a_column_of_another_kind_is_refused(
    tmp_path: Path, column: pa.Array, expected: str
) -> None:
    assert expected in refusal(recipe(), parquet(tmp_path, session_id=[1], item_id=column))
