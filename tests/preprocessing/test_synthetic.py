"""Synthetic clicks: the same seed gives the same bytes, and there is something to learn."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import ConfigError
from pipeline.preprocessing import synthetic
from pipeline.preprocessing.synthetic import clicks, synthesize


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.csv.gz", "clicks.parquet"])
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    facts = [
        synthesize(tmp_path / day / name, sessions=50, items=20, seed=seed)
        for day, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = ((tmp_path / day / name).read_bytes() for day in "abc")
    assert a == b
    assert a != c
    assert facts[0] == facts[1]
    assert facts[0]["sessions"] == 50
    assert [path.name for path in (tmp_path / "a").iterdir()] == [name]


def test_every_form_holds_the_same_clicks(tmp_path: Path) -> None:
    import gzip

    for suffix in ("csv", "csv.gz", "parquet"):
        synthesize(tmp_path / f"x.{suffix}", sessions=30, items=10)
    text = (tmp_path / "x.csv").read_bytes()
    assert gzip.decompress((tmp_path / "x.csv.gz").read_bytes()) == text
    table = pq.read_table(tmp_path / "x.parquet")
    assert len(text.splitlines()) == 1 + table.num_rows


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return clicks(np.random.default_rng(0), 3_000, 200, 14)


def test_clicks_are_sorted_by_time_and_named_like_a_log(table: pa.Table) -> None:
    assert table.column_names == [
        "session", "product", "time", "category", "price", "action", "device",
    ]  # fmt: skip
    times = table["time"].to_pylist()
    assert times == sorted(times)
    assert times[0].startswith("2026-01-05T")
    assert times[0].endswith(" UTC")
    assert len(set(table["session"].to_pylist())) == 3_000


def test_what_describes_an_item_or_a_session_is_one_value(table: pa.Table) -> None:
    frame = table.to_pandas()
    for by, name in (("product", "category"), ("product", "price"), ("session", "device")):
        assert (frame.groupby(by)[name].nunique() == 1).all()
    assert (frame["price"] > 0).all()


def test_sessions_are_short_and_some_have_one_click(table: pa.Table) -> None:
    lengths = np.array(list(Counter(table["session"].to_pylist()).values()))
    assert 4 < lengths.mean() < 6
    assert lengths.max() <= synthetic.LONGEST
    assert 0.02 < (lengths == 1).mean() < 0.1


def share_right(frame: pd.DataFrame, columns: list[str], target: str) -> float:
    """How often the most frequent `target` of the first half, by `columns`, is right in the second.

    A combination that the first half does not hold counts as wrong.
    """
    half = len(frame) // 2
    first, second = frame.iloc[:half], frame.iloc[half:]
    best = first.groupby(columns)[target].agg(lambda values: values.mode()[0]).rename("best")
    return float((second.join(best, on=columns)["best"] == second[target]).mean())


@pytest.fixture(scope="module")
def pairs(table: pa.Table) -> pd.DataFrame:
    """Each click with a next one: `next_*` of that, and `before`, the last other category."""
    frame = table.to_pandas()
    sessions = frame.groupby("session")
    left = sessions["category"].shift(1)
    frame["before"] = left.where(left != frame["category"]).groupby(frame["session"]).ffill()
    third = frame.groupby("category")["price"].rank(pct=True).mul(3).clip(upper=2.99).astype(int)
    frame["range"] = third
    for name in ("product", "category", "range"):
        frame[f"next_{name}"] = frame.groupby("session")[name].shift(-1)
    return frame.dropna(subset="next_product")


def test_the_action_says_whether_the_visitor_stays_in_the_category(pairs: pd.DataFrame) -> None:
    stays = (pairs["category"] == pairs["next_category"]).groupby(pairs["action"]).mean()
    assert stays["view"] > 0.8
    assert max(stays["cart"], stays["purchase"]) < 0.4
    without = share_right(pairs, ["category"], "next_category")
    assert share_right(pairs, ["category", "action"], "next_category") > without + 0.05


def test_the_category_before_tells_where_an_errand_goes_on(pairs: pd.DataFrame) -> None:
    goes_on = pairs[(pairs["action"] != "view") & pairs["before"].notna()]
    last = share_right(goes_on, ["category"], "next_category")
    assert share_right(goes_on, ["category", "before"], "next_category") > last + 0.1


def test_the_device_prefers_a_price_range(pairs: pd.DataFrame) -> None:
    without = share_right(pairs, ["category"], "next_range")
    assert share_right(pairs, ["category", "device"], "next_range") > without + 0.1


def test_the_last_item_alone_leaves_most_of_the_next_open(pairs: pd.DataFrame) -> None:
    popular = float((pairs["next_product"] == pairs["next_product"].mode()[0]).mean())
    by_item = share_right(pairs, ["product"], "next_product")
    assert popular < 0.06 < 0.08 < by_item < 0.3


def test_numbers_that_are_too_small_and_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--sessions is 5, "):
        synthesize(tmp_path / "x.csv", sessions=5)
    with pytest.raises(ConfigError, match=r"ends in .csv, .csv.gz or .parquet"):
        synthesize(tmp_path / "x.xlsx")


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(RuntimeError):
        synthesize(tmp_path / "x.parquet", sessions=10, items=10)
    assert list(tmp_path.iterdir()) == []
