"""Dirty logs: counted, dropped or repaired by a stated rule (docs/reference/log-rules.md)."""

import datetime
import gzip
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli.preprocess import data_text
from pipeline.core.errors import ConfigError, DataError
from pipeline.logs import text as logbytes
from pipeline.logs.columns import decode_text
from pipeline.logs.files import read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from tests.preprocessing.damage import make_case
from tests.preprocessing.sorted_log import sort
from tests.preprocessing.whole_log import Interactions, read_interactions

HEAD = "session_id,item_id,t\n"


def recipe(**more: object) -> Preprocess:
    return Preprocess.from_dict(more, "recipe")


def read(*files: Path, **more: object) -> Interactions:
    return read_interactions(recipe(**more), list(files))


def text(folder: Path, content: str | bytes, name: str = "log.csv") -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


# --- one rule each -----------------------------------------------------------------------------


def test_empty_files_are_skipped_and_counted(tmp_path: Path) -> None:
    good = text(tmp_path, HEAD + "1,2,3\n")
    pq.write_table(pa.table({"session_id": pa.array([], pa.int64())}), tmp_path / "rows.parquet")
    empty = [
        text(tmp_path, b"", "0.csv"),
        text(tmp_path, "another,header\n\n", "head.csv"),
        text(tmp_path, b"", "0.csv.gz"),
        text(tmp_path, gzip.compress(b"\xef\xbb\xbf", mtime=0), "mark.csv.gz"),
        text(tmp_path, b"\0" * 9, "nul.csv"),
        text(tmp_path, b"", "0.parquet"),
        tmp_path / "rows.parquet",
    ]
    log = read(*empty, good)
    assert log.report.warnings == {"empty files": 7}
    assert log.frame["item_id"].tolist() == [2]
    assert len(read_logs(recipe(), [*empty, good], RowCounts())) == 1, "so does `recommend --input`"
    with pytest.raises(DataError, match=r"no usable row among 0 \(.*7 empty files"):
        read(*empty)


def test_rows_before_the_damage_of_an_archive_are_kept(tmp_path: Path) -> None:
    chance = random.Random(1)
    lines = [f"{n},{chance.random()},{n}\n" for n in range(20_000)]
    whole = gzip.compress((HEAD + "".join(lines)).encode(), mtime=0)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    for content in (whole[:-100], whole[: len(whole) // 2], bytes(broken), whole + b"garbage"):
        log = read(text(tmp_path, content, "log.csv.gz"))
        facts = log.report.facts(len(log.frame))
        assert facts["counted"] == {"files cut off or damaged": 1}
        assert log.frame["session_id"].tolist()[:5_000] == list(range(5_000))
        assert facts.get("dropped", {}).get("lines cut off with their file", 0) <= 1
    assert len(read(text(tmp_path, whole * 2 + b"\0" * 512, "log.csv.gz")).frame) == 40_000
    cut = gzip.compress(b"1 2 3\n4 5 6", mtime=0)[:-1]
    log = read(text(tmp_path, cut, "log.gz"), format="sequences")
    assert log.frame["item_id"].tolist() == [2, 3]
    assert log.report.dropped == {"interactions of a line cut off with its file": 2}


def test_a_damaged_parquet_file_is_refused_in_one_line(tmp_path: Path) -> None:
    table = pa.table({"session_id": list(range(9_000)), "item_id": list(range(9_000))})
    pq.write_table(table, tmp_path / "log.parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:4], b"\0" + whole[2_000:]):
        with pytest.raises(DataError, match=r"log.parquet cannot be read as parquet: [^\n]+$"):
            read(text(tmp_path, content, "log.parquet"))


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "cp1252", "utf-8"])
def test_an_encoding_is_recognised(tmp_path: Path, codec: str) -> None:
    content = HEAD + "".join(f"ü{n},Öl €,{n}\n" for n in range(9))
    log = read(text(tmp_path, content.encode(codec)))
    assert log.frame["session_id"].tolist() == [f"ü{n}" for n in range(9)]
    assert set(log.frame["item_id"]) == {"Öl €"}
    expected = {"values that are no UTF-8, read as Windows-1252": 18} if codec == "cp1252" else {}
    assert log.report.counts == expected


def test_encodings_may_be_mixed_within_a_line(tmp_path: Path) -> None:
    line = "für,".encode() + "für,1\n".encode("cp1252") + b"\x81,1,1\n\xff,2\n"
    log = read(text(tmp_path, HEAD.encode() + line))
    assert log.frame["session_id"].tolist() == ["für", "\x81"]
    assert log.frame["item_id"].tolist() == ["für", "1"]
    assert log.report.dropped == {"lines with another number of columns": 1}
    head = HEAD.replace("item_id", "stück").encode("cp1252")
    assert read(text(tmp_path, head + b"1,2,3\n"), item="stück").frame["item_id"].tolist() == [2]


def test_parquet_has_its_text_repaired_too(tmp_path: Path) -> None:
    broken = pa.array([b"a\xfc", b"b\0c", None])
    for column in (
        pa.StringArray.from_buffers(3, *broken.buffers()[1:], broken.buffers()[0]),
        pa.StringArray.from_buffers(
            3, *broken.buffers()[1:], broken.buffers()[0]
        ).dictionary_encode(),
    ):
        pq.write_table(pa.table({"session_id": [1, 1, 1], "item_id": column}), tmp_path / "l.pq")
        log = read(tmp_path / "l.pq")
        assert log.frame["item_id"].tolist() == ["aü", "bc", None]
        assert log.report.repaired == {
            "values that are no UTF-8, read as Windows-1252": 1,
            "NUL bytes taken out": 1,
        }


UUIDS = [UUID(int=number << 64) for number in (1, 2)]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([u.bytes for u in UUIDS], pa.binary(16)), [str(u) for u in UUIDS]),
        (pa.array([u.bytes for u in UUIDS], pa.binary()), [str(u) for u in UUIDS]),
        (pa.array([u.bytes for u in UUIDS]).dictionary_encode(), [str(u) for u in UUIDS]),
        (pa.array([b"a\0b", b"a\0c"]), ["610062", "610063"]),
        (pa.array([b"a\0", b"a\1"], pa.large_binary()), ["6100", "6101"]),
        (pa.array([b"ab", b"\0\0"], pa.binary(2)), ["ab", "0000"]),
        (
            pa.array([b"\xe4" * 16, b"abc\xe9" * 4]),
            [str(UUID("e4" * 16)), str(UUID("616263e9" * 4))],
        ),
        (pa.array([b"0123456789abcdef", "é".encode() * 8]), ["0123456789abcdef", "é" * 8]),
        (pa.array([b"a\xfc", b"b"]), ["aü", "b"]),  # text that Spark wrote as bytes
        (pa.array([b"ab", b"cd"], pa.binary(2)), ["ab", "cd"]),
    ],
)
def test_bytes_that_are_no_text_are_hexadecimal(
    tmp_path: Path, column: pa.Array, expected: list[str]
) -> None:
    pq.write_table(pa.table({"session_id": [1, 1], "item_id": column}), tmp_path / "l.pq")
    # ids that are all digits become integers
    assert list(map(str, read(tmp_path / "l.pq").frame["item_id"])) == expected


@given(st.lists(st.binary(min_size=1, max_size=17) | st.just(b"text"), min_size=1, max_size=6))
@settings(deadline=None)
def test_bytes_are_read_as_if_they_were_alone(values: list[bytes]) -> None:
    together = decode_text(pa.chunked_array([pa.array(values)]), "i", "log", RowCounts())
    for value, text_of_value in zip(values, together.to_pylist(), strict=True):
        alone = decode_text(pa.chunked_array([pa.array([value])]), "i", "log", RowCounts())
        assert alone.to_pylist() == [text_of_value]


def test_unclosed_quote_loses_one_line(tmp_path: Path) -> None:
    lines = '1,"a,1\n2,b,2\n3,"c, d",3\n4,"e\nf",4\n5,g,"5'
    log = read(text(tmp_path, HEAD + lines))
    assert log.frame["session_id"].tolist() == [2, 3, 4]
    assert log.frame["item_id"].tolist() == ["b", "c, d", "e\nf"]
    assert log.report.facts(3) == {
        "read": 5,
        "kept": 3,
        "dropped": {"lines with a quote that does not close": 2},
        "examples": {"lines with a quote that does not close": "'1,\"a,1'"},
        "counted": {"rows with line ends inside a value": 1},
    }


@pytest.mark.parametrize("size", [16, 100, 1 << 22])
def test_values_with_line_ends_may_lie_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(logbytes, "BLOCK_BYTES", size)
    values_ = [f"{n}\n{'x' * n}, ,\r\n" for n in range(40)]
    log = read(text(tmp_path, HEAD + "".join(f'{n},"{v}",1\n' for n, v in enumerate(values_))))
    assert log.frame["item_id"].tolist() == values_


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\ufeff\ufeff"])
def test_concatenated_files_with_headers_and_byte_order_marks_are_read(
    tmp_path: Path, end: str, mark: str
) -> None:
    lines = [mark + HEAD.strip(), "1,2,3", mark + HEAD.strip(), mark + "4,5,6", "7,8,\ufeff9"]
    log = read(text(tmp_path, end.join(lines)), timestamp={"column": "t", "unit": "s"})
    assert log.frame["session_id"].tolist() == [1, 4]
    assert log.report.dropped == {
        "lines that repeat the header": 1,
        "rows without a usable time": 1,
    }
    marks = 2 * bool(mark) + (len(mark) > 1)  # that of the file itself is none of them
    assert log.report.repaired == Counter(
        {"byte order marks inside a file, taken out": marks} if marks else {}
    )


def test_lines_that_are_too_long_empty_or_the_header_again(tmp_path: Path) -> None:
    long = "x" * (logbytes.LONGEST_LINE + (1 << 23))
    middle = "y" * (1 << 23)  # longer than a block
    content = HEAD + f"1,2,3\n\n\r\n{long}\n{HEAD}4,{middle},6\n\n"
    log = read(text(tmp_path, content))
    assert log.frame["session_id"].tolist() == [1, 4]
    assert log.report.dropped == {
        "lines longer than 16 MiB": 1, "lines that repeat the header": 1,
    }  # fmt: skip
    assert log.report.rows == 4


def test_a_feature_may_be_absent_from_some_files(tmp_path: Path) -> None:
    features = [{"name": "price", "kind": "continuous"}, {"name": "hue", "kind": "categorical"}]
    a = text(tmp_path, "session_id,item_id\n1,2\n1,3\n", "a.csv")
    pq.write_table(pa.table({"hue": [1], "item_id": [5], "session_id": [4]}), tmp_path / "b.pq")
    c = text(tmp_path, "price,item_id,session_id\n1.5,6,4\n", "c.csv")
    log = read(a, tmp_path / "b.pq", c, features=features)
    assert log.frame["hue"].tolist()[2] == 1
    assert log.frame["hue"].isna().sum() == 3
    assert log.frame["price"].isna().tolist() == [True, True, True, False]
    assert log.report.repaired == {
        "rows of files without the column price": 3,
        "rows of files without the column hue": 3,
    }
    with pytest.raises(DataError, match="no column for hue"):
        read(a, c, features=features)
    with pytest.raises(DataError, match="no column for item_id"):
        read(a, text(tmp_path, "session_id\n1\n", "d.csv"))


def test_rows_outside_earliest_and_latest_are_dropped(tmp_path: Path) -> None:
    days = ["1999-01-01", "2020-01-01", "2020-01-02 23:59:59.5", "2020-01-03", "2038-01-19"]
    file = text(tmp_path, HEAD + "".join(f"{n % 2},{n},{day}\n" for n, day in enumerate(days)))
    for first in ("2020-01-01", datetime.date(2020, 1, 1), "2020-01-01T01:00+01:00"):
        bounds = {"column": "t", "earliest": first, "latest": "2020-01-02"}
        log = read(file, timestamp=bounds)
        assert log.frame["item_id"].tolist() == [1, 2]
        assert sorted(log.report.dropped.values()) == [1, 2]
    assert "rows after 2020-01-02" in log.report.dropped
    for wrong in ({"earliest": "soon"}, {"earliest": "2020-01-02", "latest": "2020-01-01"}):
        with pytest.raises(ConfigError):
            recipe(timestamp={"column": "t"} | wrong)
    text(tmp_path, "preprocess: {timestamp: {column: t, latest: 2020-13-01}}", "r.yaml")
    with pytest.raises(ConfigError, match="not valid YAML: month must be"):
        Recipe.load(tmp_path / "r.yaml")
    text(tmp_path, "preprocess: {}", "r.yaml")
    with pytest.raises(ConfigError, match="is not a YAML value"):
        Recipe.load(tmp_path / "r.yaml", ("preprocess.timestamp.latest=2020-13-01",))


def test_wrong_clock_adds_a_note(tmp_path: Path) -> None:
    rows = "".join(f"{n // 2},{n % 3},{1_600_000_000 + n}\n" for n in range(40))
    file = text(tmp_path, HEAD + rows + "0,1,2147483647\n")
    time_ = {"column": "t", "unit": "s"}
    facts = preprocess(recipe(timestamp=time_), [file], [], tmp_path / "data")
    assert "to 2038-01-19T03:14:07Z" in facts["notes"][0]
    assert "timestamp.latest" in data_text(facts, tmp_path)
    facts = preprocess(recipe(timestamp=time_ | {"latest": "2030-01-01"}), [file], [],
                       tmp_path / "data")  # fmt: skip
    assert facts["notes"] == []
    assert facts["rows"]["input"] == {
        "read": 41, "kept": 40, "dropped": {"rows after 2030-01-01": 1},
    }  # fmt: skip
    assert "        dropped: 1 rows after 2030-01-01\n" in data_text(facts, tmp_path)


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_duplicated_rows_are_counted_and_dropped_if_asked(tmp_path: Path, duplicates: str) -> None:
    head = "session_id,item_id,t,price\n"
    rows = "1,a,5,\n1,b,5,2\n1,a,5,x\n1,a,5,3\n1,a,6,\n2,a,5,\n1,b,5,2.0\n1,,7,\n1,,7,\n"
    file = text(tmp_path, head + rows)
    chosen = recipe(
        timestamp={"column": "t", "unit": "s"},
        features=[{"name": "price", "kind": "continuous"}],
        duplicates=duplicates,
    )
    facts, sessions = sort(chosen, [file])
    if duplicates == "keep":
        assert facts["counted"] == {"duplicated rows, kept": 3}
        assert facts["kept"] == 9
    else:
        assert facts["dropped"] == {"duplicated rows, dropped": 3}
        items = [(row[0] // 10**6, row[1], row[2]) for row in sessions["1"]]
        assert items == [(5, "a", None), (5, "b", 2), (5, "a", 3), (6, "a", None), (7, None, None)]
        assert len(sessions["2"]) == 1


ROWS = st.lists(st.tuples(*(st.integers(0, 2) for _ in range(4))), min_size=1, max_size=30)


@given(ROWS)
@settings(deadline=None, max_examples=40)
def test_duplicates_are_those_that_a_set_finds(rows: list[tuple[int, ...]]) -> None:
    features = [{"name": "x", "kind": "categorical"}]
    chosen = recipe(timestamp={"column": "t", "unit": "s"}, features=features, duplicates="drop")
    with tempfile.TemporaryDirectory() as folder:
        columns = dict(
            zip(("session_id", "t", "item_id", "x"), zip(*rows, strict=True), strict=True)
        )
        pq.write_table(pa.table(columns), Path(folder) / "log.parquet")
        facts, _ = sort(chosen, [Path(folder) / "log.parquet"])
    assert facts["kept"] == len(set(rows))


def test_sessions_that_are_too_long_are_left_out_of_all_parts(tmp_path: Path) -> None:
    rows = "".join(f"bot,{n % 7},{n}\n" for n in range(300_000))
    rows += "".join(f"s{n // 3},{n % 7},{n}\n" for n in range(300))
    file = text(tmp_path, HEAD + rows)
    time_ = {"column": "t", "unit": "s"}
    begun = time.perf_counter()
    facts = preprocess(recipe(timestamp=time_), [file], [], tmp_path / "all")
    assert facts["rows"]["input"]["kept"] == 300_300
    assert time.perf_counter() - begun < 60
    chosen = recipe(timestamp=time_, longest_session=100)
    facts = preprocess(chosen, [file], [], tmp_path / "data")
    assert facts["rows"]["input"] == {
        "read": 300_300,
        "kept": 300,
        "dropped": {"rows of sessions longer than 100": 300_000},
        "counted": {"sessions longer than 100": 1},
    }
    assert facts["sessions"]["train"]["sessions"] == 100
    with pytest.raises(DataError, match="rows of sessions longer than 2"):
        preprocess(recipe(timestamp=time_, longest_session=2), [file], [], tmp_path / "none")


USELESS = {
    "price": ({"kind": "continuous"}, "cheap", "price has no usable value in training"),
    "empty": ({"kind": "categorical"}, "", "empty has no usable value in training"),
    "tags": (
        {"kind": "categorical", "separator": "|", "values_per_interaction": 2},
        "|",
        "tags has no usable value in training",
    ),
    "band": ({"kind": "categorical", "buckets": [1]}, "?", "band has no usable value in training"),
    "rare": (
        {"kind": "categorical", "min_count": 99},
        "x",
        "rare has no usable value that is seen 99 times in training",
    ),
    "hashed": ({"kind": "categorical", "min_count": 99, "hash_buckets": 2}, "x", None),
    "fine": ({"kind": "categorical"}, "x", None),
    "mean": ({"kind": "continuous", "mean_of": "price"}, "x", "mean has no usable value"),
    "age": ({"kind": "continuous", "of": "session"}, "old", "age has no usable value"),
}


def test_feature_without_a_usable_value_adds_a_note(tmp_path: Path) -> None:
    head = ",".join(["session_id,item_id", *USELESS])
    row = ",".join(value for _, value, _ in USELESS.values())
    log = "".join(f"{n // 2},{n % 3},{row}\n" for n in range(6))
    features = [{"name": name, **settings} for name, (settings, _, _) in USELESS.items()]
    file = text(tmp_path, f"{head}\n{log}")
    facts = preprocess(recipe(features=features), [file], [], tmp_path / "data")
    expected = [note for _, _, note in USELESS.values() if note]
    assert len(facts["notes"]) == len(expected)
    shown, page = data_text(facts, tmp_path), (tmp_path / "data" / "report.html").read_text()
    for note, begin in zip(facts["notes"], expected, strict=True):
        assert note.startswith(begin)
        assert f"  note  {note}\n" in shown
        assert begin in page


@pytest.mark.parametrize("split", [None, "leave-one-out", "leave-last-out"])
def test_left_out_sessions_are_counted(tmp_path: Path, split: str | None) -> None:
    """Of one interaction 10, of two 20, of five 30: each is in a part or counted as left out."""
    lengths = [1] * 10 + [2] * 20 + [5] * 30
    rows = [(session, n) for session, count in enumerate(lengths) for n in range(count)]
    file = text(tmp_path, "session_id,item_id\n" + "".join(f"{s},{n}\n" for s, n in rows))
    by = {} if split is None else {"split": {"by": split}}
    facts = preprocess(recipe(min_session_length=3, **by), [file], [], tmp_path / "data")
    sessions = {
        session
        for part in facts["sessions"]
        for session in pq.read_table(tmp_path / "data" / "sessions" / part)[
            "session_id"
        ].to_pylist()
    }
    lost = facts["left_out"]["sessions"]
    assert len(sessions) + lost == len(lengths)
    assert lost > 0
    assert facts["left_out"]["interactions"] == sum(
        count for session, count in enumerate(lengths) if session not in sessions
    )
    assert f"  none  {lost:,} sessions" in data_text(facts, tmp_path)


def test_preprocess_accepts_damaged_logs(tmp_path: Path) -> None:
    done = 0
    for seed in range(8):
        (tmp_path / str(seed)).mkdir()
        case = make_case(seed, tmp_path / str(seed))
        try:
            facts = preprocess(recipe(**case.recipe), case.files, [], tmp_path / str(seed) / "data")
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        rows = facts["rows"]["input"]
        assert rows["read"] == rows["kept"] + sum(rows.get("dropped", {}).values())
        assert data_text(facts, tmp_path)
        done += 1
    assert done >= 4


def test_numbers_with_a_decimal_comma_add_a_note(tmp_path: Path) -> None:
    rows = "".join(f"{n // 2};{n % 3};{n},50\n" for n in range(6))
    file = text(tmp_path, "session_id;item_id;price\n" + rows)
    price = [{"name": "price", "kind": "continuous"}]
    facts = preprocess(recipe(delimiter=";", features=price), [file], [], tmp_path / "data")
    expected = "price has numbers such as '0,50', with a decimal comma. Set `decimal: \",\"`"
    assert any(note.startswith(expected) for note in facts["notes"])
    comma = recipe(delimiter=";", features=price, decimal=",")
    assert preprocess(comma, [file], [], tmp_path / "comma")["notes"] == []


def test_many_files_with_times_in_another_form_name_the_key(tmp_path: Path) -> None:
    rows = "session_id,item_id,t\n1,2,05.10.2026 10:30\n1,3,05.10.2026 10:31\n1\n"
    files = [text(tmp_path, rows, f"day-{n}.csv") for n in range(5)]
    with pytest.raises(DataError) as caught:
        read(*files, timestamp={"column": "t"})
    message = str(caught.value)
    assert "day-2.csv, and 2 more files: no usable row among 15" in message
    assert "day-3.csv" not in message
    assert "`timestamp.format` for other text, such as `%d.%m.%Y %H:%M`." in message
