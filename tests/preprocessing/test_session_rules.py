"""Session gaps and repeats: the rules, the whole stage and the server agree with a loop."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError
from pipeline.data.fitted import Fitted
from pipeline.exporting.request_tables import encoder_spec, write_encoder
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting.session_rules import apply_session_rules
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.request import RequestReader
from pipeline.serve.runtime.request_encoder import Encoder

MINUTE = 60_000_000
ROWS = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(["a", "b", None]), st.integers(0, 200)),
    min_size=1,
    max_size=30,
)


def loops(rows: list[tuple], gap: int | None, drop: bool) -> dict[str, list[tuple]]:
    """What the options mean, row by row: items and minutes of each session."""
    sessions: dict[str, list[tuple]] = {}
    for user in sorted({row[0] for row in rows}):
        mine = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])
        number, before = 0, mine[0]
        for row in mine:
            if gap is not None and row[2] - before[2] > gap:
                number += 1
            session = sessions.setdefault(f"{user}-{number}" if gap is not None else str(user), [])
            if not (drop and session and row[1] is not None and before[1] == row[1]):
                session.append(row[1:])
            before = row
    return sessions


@given(rows=ROWS, gap=st.none() | st.integers(1, 60), drop=st.booleans())
@settings(deadline=None, max_examples=40)
def test_session_rules_equal_a_loop(rows: list[tuple], gap: int | None, drop: bool) -> None:
    rows = sorted(rows, key=lambda row: (row[0], row[2]))
    users, items, minutes = zip(*rows, strict=True)
    table = pa.table(
        {
            "session_id": users,
            "item_id": pa.array(items, pa.string()),
            "timestamp": np.array(minutes) * MINUTE,
        }
    )
    starts = np.flatnonzero(np.diff(users, prepend=0))
    report = RowCounts()
    chosen = recipe(None if gap is None else gap * 60, drop)
    table, starts = apply_session_rules(chosen, table, starts, report)
    ids = table["session_id"].to_pylist()
    sessions: dict[str, list[tuple]] = {}
    for session, item, time in zip(
        ids, table["item_id"].to_pylist(), table["timestamp"].to_pylist(), strict=True
    ):
        sessions.setdefault(str(session), []).append((item, time // MINUTE))
    assert sessions == loops(rows, gap, drop)
    assert [ids[start] for start in starts] == list(dict.fromkeys(ids))
    assert report.dropped.total() == len(rows) - len(ids)


def recipe(gap: int | None, drop: bool) -> Preprocess:
    values = {
        "session": "user",
        "timestamp": {"column": "minute", "unit": "s", "features": ["elapsed"]},
        "session_gap": None if gap is None else f"{gap}s",
        "drop_repeats": drop,
        "max_sequence_length": 7,
    }
    return Preprocess.from_dict(values, "recipe")


@given(rows=ROWS, gap=st.none() | st.integers(1, 60), drop=st.booleans())
@settings(deadline=None, max_examples=15)
def test_preprocess_and_server_equal_a_loop(rows: list[tuple], gap: int | None, drop: bool) -> None:
    whole = [*rows, (9, "a", 0), (9, "b", 0)]  # a session to train on, whatever the others are
    chosen = recipe(gap, drop)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        columns = zip(*whole, strict=True)
        pq.write_table(pa.table(dict(zip(("user", "item_id", "minute"), columns, strict=True))),
                       directory / "log.parquet")  # fmt: skip
        facts = preprocess(chosen, [directory / "log.parquet"], [], directory / "data")
        fitted = Fitted.read(directory / "data")
        table = pq.read_table(directory / "data" / "sessions" / "train").to_pydict()
        (directory / "encoder").mkdir()
        write_encoder(directory / "encoder", fitted, encoder_spec(fitted, default_k=1, max_k=5))
        encoder = Encoder(directory / "encoder")
    expected = loops(whole, gap, drop)
    names = [None, None, None, *fitted.item.values.to_pylist()]
    sessions = {
        str(session): [names[index] for index in items]
        for session, items in zip(table["session_id"], table["item_id"], strict=True)
    }
    assert sessions == {k: [i for i, _ in v][-8:] for k, v in expected.items() if len(v) > 1}
    assert facts["rows"]["input"]["kept"] == sum(map(len, expected.values()))
    # a request holds all that a user did; the server reads the session that is going on
    newest: dict[int, list] = {}
    for session, interactions in expected.items():
        newest[int(session.split("-")[0])] = interactions
    users = sorted(newest)
    mine = [[row for row in whole if row[0] == user] for user in users]
    width = max(map(len, mine))
    tensors = {
        "item_id": np.full((len(users), width), b"junk", object),
        "timestamp": np.zeros((len(users), width), np.int64),
        "length": np.array([[len(m)] for m in mine], np.int32),
    }
    for row, given_rows in enumerate(mine):
        for place, (_, item, minute) in enumerate(given_rows):
            tensors["item_id"][row, place] = (item or "").encode()
            tensors["timestamp"][row, place] = minute
    encoded = encoder.encode(RequestReader(encoder).read(tensors).rows)["item_id"]
    for row, user in enumerate(users):
        expected_items = [
            names.index(item) if item in names[3:] else 2 if item else 1 for item, _ in newest[user]
        ][-7:]
        assert encoded[row][encoded[row] > 0].tolist() == expected_items


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"session_gap": "30m"}, "`session_gap` needs a `timestamp`"),
        ({"session_gap": "soon", "timestamp": {"column": "t"}}, "expected minutes"),
        ({"session_gap": "0m", "timestamp": {"column": "t"}}, "expected minutes"),
    ],
)
def test_invalid_session_gaps_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Preprocess.from_dict(values, "recipe")
