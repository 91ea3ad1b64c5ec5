"""The newest value of each item that training has seen, for a server to fill in."""

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.preprocess import Preprocess

FEATURES = [
    {"name": "price", "kind": "continuous", "of": "item"},
    {"name": "brand", "kind": "categorical", "of": "item"},
]


def item_values_of(recipe: Preprocess, rows: list[tuple[Any, ...]]) -> dict[Any, tuple[Any, Any]]:
    """Price and brand of each item in `items.parquet`."""
    with tempfile.TemporaryDirectory() as folder:
        columns = zip(*rows, strict=True)
        names = ("session_id", "item_id", "time", "price", "brand")
        log = pa.table(dict(zip(names, map(list, columns), strict=True)))
        pq.write_table(log, Path(folder) / "log.parquet")
        preprocess(recipe, [Path(folder) / "log.parquet"], [], Path(folder) / "data")
        items = pq.read_table(Path(folder) / "data" / "fitted" / "items.parquet").to_pydict()
    values = zip(items["price"], items["brand"], strict=True)
    return dict(zip(items["item_id"], values, strict=True))


def newest(rows: list[tuple[Any, ...]]) -> dict[Any, tuple[Any, Any]]:
    """The same from rows in any order, no two of which have one time."""
    log = pd.DataFrame(rows, columns=["session", "item", "time", "price", "brand"])
    log = log.astype({"price": object}).sort_values("time")
    newest = log.groupby("item")[["price", "brand"]].last()  # that is not missing
    values = newest.astype(object).where(newest.notna(), None).itertuples(index=False, name=None)
    return dict(zip(newest.index, values, strict=True))


USERS = st.one_of(  # of other orders as numbers and as texts
    st.just([1, 2, 10, 11, 101]),
    st.just(["1", "10", "2", "a", "a!", "a-1"]),
)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from("abcdef"),
        st.floats(1, 9, width=32) | st.none(),
        st.sampled_from(["x", "y", None]),
    ),
    min_size=8,
    max_size=40,
)


@given(users=USERS, given_rows=ROWS, gap=st.none() | st.integers(1, 9), drop=st.booleans())
@settings(deadline=None, max_examples=25)
def test_each_item_has_its_newest_values_however_sessions_are_cut(
    users: list[Any], given_rows: list[tuple[Any, ...]], gap: int | None, drop: bool
) -> None:
    rows = [(users[who], item, 2 * n, *rest) for n, (who, item, *rest) in enumerate(given_rows)]
    rows += [(users[0], item, time, 1.0, "x") for time, item in ((998, "a"), (999, "b"))]
    recipe = Preprocess.from_dict(
        {
            "timestamp": {"column": "time", "unit": "s"},
            "features": FEATURES,
            "session_gap": None if gap is None else f"{gap}s",
            "drop_repeats": drop,
        },
        "test",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "SHARD_ROWS", 6)
        patch.setattr(spill, "_STEP", 2)
        patch.setattr("pipeline.preprocessing.statistics._BUFFER_ROWS", 4)
        items = item_values_of(recipe, rows)
    trained = kept(rows, gap, drop)
    assert {item: v for item, v in items.items() if v != (None, None)} == {
        item: v for item, v in newest(trained).items() if v != (None, None)
    }


def kept(rows: list[tuple[Any, ...]], gap: int | None, drop: bool) -> list[tuple[Any, ...]]:
    """Rows of sessions of two interactions or more, cut by `gap` seconds, without repeats."""
    log = pd.DataFrame(rows, columns=["session", "item", "time", "price", "brand"])
    log = log.astype({"price": object}).sort_values(["session", "time"])
    if gap is not None:
        begins = log.groupby("session")["time"].diff().fillna(gap + 1) > gap
        log["session"] = begins.cumsum()
    if drop:
        log = log[log["item"] != log.groupby("session")["item"].shift(1)]
    sizes = log.groupby("session")["item"].transform("size")
    log = log[sizes > 1].astype(object)
    return [*log.where(log.notna(), None).itertuples(index=False, name=None)]


def test_many_sessions_of_few_users_do_not_mix_their_items() -> None:
    """The eleventh session of a user stands before the second, among ids as texts."""
    rows = [
        (user, f"{user}-{visit}", 10_000 * visit + user, float(100 * user + visit), f"b{user}")
        for user in (1, 2, 10, 11)
        for visit in range(12)
    ]
    rows += [(user, item, time + 5, *rest) for user, item, time, *rest in rows]
    recipe = Preprocess.from_dict(
        {
            "timestamp": {"column": "time", "unit": "s"},
            "features": FEATURES,
            "session_gap": "30m",
        },
        "test",
    )
    assert item_values_of(recipe, rows) == newest(rows)
