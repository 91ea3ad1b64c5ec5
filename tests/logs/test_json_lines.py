"""JSON lines: nested events, types that differ, damaged lines."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DataError
from pipeline.data import values
from pipeline.logs import text
from pipeline.logs.files import read_logs
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.preprocess import Preprocess

OTTO: dict[str, Any] = {
    "session": "session",
    "item": "aid",
    "explode": "events",
    "timestamp": {"column": "ts", "unit": "ms"},
    "features": [{"name": "type", "kind": "categorical"}],
}


def read(file: Path, keys: dict[str, Any]) -> tuple[pa.Table, RowCounts]:
    row_counts = RowCounts()
    return pa.concat_tables(read_logs(Preprocess.from_dict(keys, "r"), [file], row_counts)), (
        row_counts
    )


def events(*aids: Any, ts: int = 1_577_836_800_000) -> list[dict[str, Any]]:
    return [{"aid": aid, "ts": ts + at, "type": "clicks"} for at, aid in enumerate(aids)]


def write(file: Path, lines: list[Any]) -> Path:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson", "log.json"])
def test_events_of_a_line_become_rows(name: str, tmp_path: Path) -> None:
    lines = [{"session": 7, "events": events(8, 9)}, {"session": 8, "events": events(8)}]
    table, row_counts = read(write(tmp_path / name, lines), OTTO)
    assert table.to_pydict() == {
        "session_id": [7, 7, 8],
        "item_id": [8, 9, 8],
        "timestamp": [1_577_836_800_000, 1_577_836_800_001, 1_577_836_800_000],
        "type": ["clicks"] * 3,
    }
    assert row_counts.facts(3) == {"read": 3, "kept": 3}


def test_parquet_explodes_lists_of_structs_as_json_does(tmp_path: Path) -> None:
    lines = [{"session": 7, "events": events(8, 9)}, {"session": 8, "events": []}]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "log.parquet")
    of_json, json_counts = read(write(tmp_path / "log.jsonl", lines), OTTO)
    of_parquet, parquet_counts = read(tmp_path / "log.parquet", OTTO)
    assert of_parquet.to_pydict() == of_json.to_pydict()
    assert parquet_counts == json_counts
    assert json_counts.warnings == {"rows of lists without an item": 1}


def test_fields_of_objects_have_dotted_names(tmp_path: Path) -> None:
    lines = [{"user": {"id": "u"}, "item": {"sku": {"code": n}}} for n in range(3)]
    keys = {"session": "user.id", "item": "item.sku.code"}
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "log.parquet")
    for file in (write(tmp_path / "log.jsonl", lines), tmp_path / "log.parquet"):
        assert read(file, keys)[0].to_pydict() == {"session_id": ["u"] * 3, "item_id": [0, 1, 2]}


def test_field_of_a_line_and_of_an_event_may_have_one_name(tmp_path: Path) -> None:
    file = write(tmp_path / "log.jsonl", [{"id": 1, "events": [{"id": 5}, {"id": 6}]}])
    keys = {"session": "id", "item": "events.id", "explode": "events"}
    assert read(file, keys)[0].to_pydict() == {"session_id": [1, 1], "item_id": [5, 6]}


def test_damaged_lines_are_dropped_with_an_example(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    good = [json.dumps({"session_id": n, "item_id": n}) for n in range(3)]
    damaged = ['{"session_id": 1, "ite', "[1]", '{"item_id": "\\ud800"}', "[" * 100_000]
    file.write_text("\n".join([good[0], *damaged, "", *good[1:]]))
    table, row_counts = read(file, {})
    assert table.to_pydict() == {"session_id": [0, 1, 2], "item_id": [0, 1, 2]}
    assert +row_counts.dropped == {"lines that are no JSON object": 4}
    assert row_counts.examples == {"lines that are no JSON object": repr(damaged[0])}
    assert row_counts.facts(table.num_rows)["read"] == 7


def test_text_that_looks_like_a_time_and_large_integers_stay_as_they_are(tmp_path: Path) -> None:
    ids = ["2020-01-01", "2020-01-02"]
    large = [12345678901234567890, 12345678901234567891]
    lines = [{"s": s, "e": [{"i": i}]} for s, i in zip(ids, large, strict=True)]
    table, _ = read(
        write(tmp_path / "log.jsonl", lines), {"session": "s", "item": "i", "explode": "e"}
    )
    assert table.to_pydict() == {"session_id": ids, "item_id": list(map(str, large))}


def test_array_of_objects_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    file.write_text('[\n{"session_id": 1, "item_id": 2}]')
    with pytest.raises(DataError, match=r"one JSON array\. Expected an object a line.*jq"):
        read(file, {})


@pytest.mark.parametrize("keys", [OTTO, OTTO | {"features": [], "timestamp": None}])
def test_message_names_the_list_of_events(keys: dict[str, Any], tmp_path: Path) -> None:
    lines = [{"session": 1, "events": events(1)}]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "log.parquet")
    for file in (write(tmp_path / "log.jsonl", lines), tmp_path / "log.parquet"):
        with pytest.raises(DataError, match=r"Found: 'session', 'events'.*set `explode: events`"):
            read(file, keys | {"explode": None})
        with pytest.raises(DataError, match=r"has no column for item_id, column 'sku'\. Found"):
            read(file, keys | {"item": "sku", "features": []})


def test_block_without_events_has_no_interaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 1)  # a line a block
    lines = [{"session": 1, "events": events(1)}, {"session": 2}, {"session": 3, "events": []}]
    table, row_counts = read(write(tmp_path / "log.jsonl", lines), OTTO)
    assert table["session_id"].to_pylist() == [1]
    assert row_counts.warnings["rows of lists without an item"] == 2


IDS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
    st.sampled_from(["2020-01-01", "007", "1e3"]),
)


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=20), st.integers(1, 80))
@settings(deadline=None, max_examples=150)
def test_ids_of_any_types_are_read_wherever_a_block_ends(
    rows: list[tuple[Any, Any]], size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", size)
        lines = [{"session_id": s, "item_id": i} for s, i in rows]
        table, row_counts = read(write(Path(folder) / "log.jsonl", lines), {})
    for column, name in enumerate(("session_id", "item_id")):
        ids = values.category_chunk(values.to_array(table[name]), "string")[0]
        expected = [as_text(row[column]) for row in rows]
        assert values.decode_dictionary(ids).to_pylist() == expected
    assert row_counts.facts(len(rows))["kept"] == len(rows)


def as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None or value == "" else str(value)


def alike(tmp_path: Path, lines: list[Any], **keys: Any) -> tuple[dict[str, Any], RowCounts]:
    """Columns of lines whose fields differ in type, as a recipe with these keys reads them."""
    table, row_counts = read(
        write(tmp_path / "log.jsonl", lines), {"session": "s", "item": "i", **keys}
    )
    return table.to_pydict(), row_counts


@pytest.mark.parametrize("value", ["text", 1, [1], [[1]], {"b": 1}, {"a": {}}, [{"b": 2}, 3]])
def test_types_of_a_field_that_is_not_read_do_not_matter(value: Any, tmp_path: Path) -> None:
    lines = [{"s": 1, "i": 2, "x": {"a": 1}}, {"s": 1, "i": 3, "x": value}]
    columns, row_counts = alike(tmp_path, lines)
    assert [int(item) for item in columns["item_id"]] == [2, 3]
    assert not row_counts.counts


def test_a_single_value_among_lists_is_a_list_of_one(tmp_path: Path) -> None:
    features = [{"name": "tags", "kind": "categorical", "values_per_interaction": 2}]
    lines = [{"s": 1, "i": "a", "tags": ["p", "q"]}, {"s": 1, "i": "b", "tags": "p"}]
    columns, row_counts = alike(tmp_path, lines, features=features)
    assert columns["tags"] == ["p|q", "p"]
    lines = [{"s": 1, "e": [{"i": "a"}, {"i": "b"}]}, {"s": 2, "e": {"i": "c"}}]
    columns, more_counts = alike(tmp_path, lines, explode="e")
    assert columns == {"session_id": ["1", "1", "2"], "item_id": ["a", "b", "c"]}
    assert not row_counts.counts + more_counts.counts


def test_an_object_among_texts_is_text_and_counted(tmp_path: Path) -> None:
    lines = [{"s": 1, "i": "a"}, {"s": 1, "i": {"id": 7}}, {"s": 1, "i": None}]
    columns, row_counts = alike(tmp_path, lines)
    assert columns["item_id"] == ["a", '{"id": "7"}', None]
    reason = "values of i that are of another type than in other lines, read as text"
    assert row_counts.repaired == {reason: 1}
    assert row_counts.examples == {reason: '\'{"id": "7"}\''}


def test_another_value_where_a_field_of_an_object_is_read_is_missing(tmp_path: Path) -> None:
    lines = [{"s": 1, "i": {"id": "a"}}, {"s": 1, "i": "b"}, {"s": 1, "i": ["c"]}]
    columns, row_counts = alike(tmp_path, lines, item="i.id")
    assert columns["item_id"] == ["a", None, None]
    reason = "values of i that are of another type than in other lines, set to missing"
    assert row_counts.repaired == {reason: 2}
    lines = [{"s": 1, "e": [{"i": "a"}, "b"]}, {"s": 1, "e": [{"i": {"x": 1}}]}]
    columns, row_counts = alike(tmp_path, lines, explode="e")
    assert columns["item_id"] == ["a", None, '{"x": "1"}']
    assert row_counts.repaired.total() == 2


def test_exploding_what_is_no_list_is_one_line(tmp_path: Path) -> None:
    lines = [{"s": 1, "e": '[{"i": 1}]'}]
    with pytest.raises(DataError, match="`explode: e` names a column of string"):
        alike(tmp_path, lines, explode="e")
