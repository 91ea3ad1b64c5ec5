"""Features made by expressions: their values, their errors, and the way to the server."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.columns import NULL, OUT_OF_VOCABULARY
from pipeline.core.errors import ConfigError
from pipeline.data.fitted import Fitted
from pipeline.data.sessions import session_ids
from pipeline.evaluation.recommender import Recommender
from pipeline.in_process import open_run
from pipeline.preprocessing import blocks
from pipeline.preprocessing.expressions import add_expressions, merge_statistics, part_statistics
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.training.run import train

NAN = math.nan


def recipe(*expressions: str | dict[str, Any], **more: Any) -> Preprocess:
    """The expressions as continuous features `e0`, `e1`, ... or as they are."""
    features = [
        {"name": f"e{number}", "kind": "continuous", "expression": text}
        if isinstance(text, str)
        else text
        for number, text in enumerate(expressions)
    ]
    timestamp = {"column": "t", "unit": "s"}
    features = [*more.pop("features", []), *features]
    return Preprocess.from_dict({"timestamp": timestamp, "features": features, **more}, "recipe")


def rows(**columns: Any) -> pa.Table:
    """Interactions of sessions 1, 1, 1, 2, 2."""
    return pa.table(
        {
            "session_id": pa.array([1, 1, 1, 2, 2]),
            "item_id": pa.array(["a", "b", "a", "c", "a"]),
            "timestamp": pa.array([1_000_000, 3_000_000, 9_500_000, 2_000_000, 20_000_000]),
            **columns,
        }
    )


PRICE = pa.array([4.0, NAN, -1.0, 8.0, 0.0])
BRAND = pa.array(["x", "y", None, "x", "x"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log(price)", [math.log(4), NAN, NAN, math.log(8), NAN]),
        ("log1p(price)", [math.log(5), NAN, NAN, math.log(9), 0]),
        ("sqrt(price) + exp(0)", [3, NAN, NAN, math.sqrt(8) + 1, 1]),
        ("clip(price, 0, 5)", [4, NAN, 0, 5, 0]),
        ("fill(price, 7)", [4, 7, -1, 8, 0]),
        ("max(price, 1, fill(price, 3))", [4, NAN, 1, 8, 1]),
        ("min(abs(price), 2)", [2, NAN, 1, 2, 0]),
        ("bucket(price, 0, 4.5)", [1, NAN, 0, 2, 1]),
        ("1 / price", [0.25, NAN, -1, 0.125, NAN]),
        ("price - lag(price)", [NAN, NAN, NAN, NAN, -8]),
        ("lag(price, 2)", [NAN, NAN, 4, NAN, NAN]),
        ("timestamp - lag(timestamp)", [NAN, 2, 6.5, NAN, 18]),
        ("timestamp - first_seen(item_id)", [0, 0, 8.5, 0, 19]),
        ("mean(price, brand)", [4, 11 / 4, 11 / 4, 4, 4]),
        ("price / mean(price + 1, item_id)", [2, NAN, -0.5, 8 / 9, 0]),
        ("2", [2, 2, 2, 2, 2]),
    ],
)
def test_values(text: str, expected: list[float]) -> None:
    settings = recipe(text)
    table = rows(price=PRICE, brand=BRAND)
    table = table.select([*table.column_names[:3], *(f.name for f in settings.expression_inputs)])
    statistics = merge_statistics(settings, [part_statistics(settings, table)], {})
    # in two parts, the sessions apart, the statistics are the same
    parts = [part_statistics(settings, part) for part in (table.slice(0, 3), table.slice(3))]
    assert merge_statistics(settings, parts, {}) == statistics
    added = add_expressions(settings, table, statistics)
    assert added.column_names == ["session_id", "item_id", "timestamp", "e0"]
    np.testing.assert_allclose(added["e0"].to_numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cross(brand, item_id)", ["x|a", "y|b", None, "x|c", "x|a"]),
        ("cross(bucket(price, 0), brand)", ["1|x", None, None, "1|x", "1|x"]),
        ("lag(brand)", [None, "x", "y", None, "x"]),
        ("cross(lag(item_id), item_id)", [None, "a|b", "b|a", None, "c|a"]),
    ],
)
def test_categories(text: str, expected: list[str | None]) -> None:
    settings = recipe({"name": "e0", "kind": "categorical", "expression": text})
    table = rows(price=PRICE, brand=BRAND)
    table = table.select([*table.column_names[:3], *(f.name for f in settings.expression_inputs)])
    assert add_expressions(settings, table, {})["e0"].to_pylist() == expected


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"expression": "log(price"}, "no expression"),
        ({"expression": "sin(price)"}, "no function `sin`"),
        ({"expression": "price > 3"}, "not allowed"),
        ({"expression": "e * 2"}, "reads the feature itself"),
        ({"expression": "item_id + 1"}, "`item_id` is a category"),
        ({"expression": "price + mean(price, price)"}, "as a number and as a category"),
        ({"expression": "mean(lag(price), brand)"}, "`mean` takes no `lag`"),
        ({"expression": "clip(price, brand, 3)"}, "takes numbers after"),
        ({"expression": "bucket(price, 3, 2)"}, "ascending numbers"),
        ({"expression": "lag(price, 0.5)"}, "whole number"),
        ({"expression": "cross(brand, colour)"}, "makes a category where a number"),
        ({"expression": "price", "log": True}, "`log` is for"),
        ({"expression": "lag(price)", "of": "session"}, "`of: interaction`"),
        ({"expression": "mean(age, item_id)", "of": "session"}, "`of: interaction`"),
        ({"expression": "bucket(price)"}, "`bucket` takes 2 to 65 arguments, here are 1"),
        ({"expression": "tags_1 + 1"}, "reads the column 'tags_1', which is a name of the model"),
        ({"expression": "hour_sin"}, "reads the column 'hour_sin', which is a name of the model"),
        ({"expression": "age", "of": "session"}, "which is `of: interaction`"),
        ({"expression": "tags + 1"}, "reads `tags` as a number"),
        ({"kind": "categorical", "expression": "cross(tags, age)"}, "reads `tags` as a category"),
        ({"kind": "categorical", "expression": "price * 2"}, "`buckets`"),
        ({"expression": "price", "of": "item"}, "expected 'interaction' or 'session'"),
    ],
)
def test_expressions_that_cannot_be(feature: dict[str, Any], message: str) -> None:
    others = [
        {"name": "age", "kind": "continuous"},
        {"name": "tags", "kind": "categorical", "values_per_interaction": 3},
    ]
    with pytest.raises(ConfigError, match="(?s)" + message.replace("(", r"\(")):
        recipe(
            {"name": "e", "kind": "continuous", **feature},
            features=others,
            timestamp={"column": "t", "unit": "s", "features": ["hour"]},
        )


def test_time_needs_a_timestamp() -> None:
    for text in ("timestamp", "first_seen(item_id)"):
        with pytest.raises(ConfigError, match="needs a `timestamp`"):
            recipe(text, timestamp=None)
    recipe("lag(price)", timestamp=None)  # goes by the order of the rows


def test_continued_statistics_keep_means_and_add_first_times() -> None:
    settings = recipe("price / mean(price, brand) + first_seen(item_id)")
    first = rows(price=PRICE, brand=BRAND)
    base = merge_statistics(settings, [part_statistics(settings, first)], {})
    later = first.set_column(1, "item_id", pa.array(["a", "d", "d", "b", "b"]))
    later = later.set_column(3, "price", pa.array([9.0] * 5))
    after = merge_statistics(settings, [part_statistics(settings, later)], base)
    mean, seen = after
    assert after[mean] == base[mean]
    assert after[seen].numbers == {b"a": 1, b"b": 3, b"c": 2, b"d": 3}


# --- from a log to lists ------------------------------------------------------------------------

SHOP = {
    "session": "s",
    "item": "i",
    "timestamp": {"column": "t", "unit": "s"},
    "split": {"test": 0.2},
    "max_sequence_length": 4,
    "features": [
        {"name": "cost", "kind": "continuous", "of": "item", "table": True, "log": True},
        {"name": "brand", "kind": "categorical", "of": "item", "table": True, "min_count": 3},
        {"name": "age", "kind": "continuous", "of": "session"},
        {"name": "dear", "kind": "continuous", "expression": "log(cost / mean(cost, brand))"},
        {"name": "step", "kind": "continuous", "expression": "cost - lag(cost, 2)"},
        {"name": "new", "kind": "continuous", "expression": "timestamp - first_seen(item_id)"},
        {"name": "pair", "kind": "categorical", "expression": "cross(brand, shelf)"},
        {"name": "last", "kind": "categorical", "expression": "lag(brand)", "hash_buckets": 2},
        {"name": "band", "kind": "categorical", "expression": "stock * 2", "buckets": [3, 9]},
        {"name": "old", "kind": "continuous", "expression": "log(age)", "of": "session"},
    ],
}  # fmt: skip


def write_shop(folder: Path) -> Path:
    """A log of 150 sessions and an item table that has more items."""
    chance = random.Random(0)
    lines = ["s,i,t,age,shelf,stock"]
    for session in range(150):
        age = chance.choice(["", "-3", "20", "41"])
        for step in range(chance.randint(2, 9)):
            item, shelf = chance.randint(0, 24), chance.choice(["", "top", "low"])
            stock = chance.choice(["", "many", "1", "2.5", "80"])
            lines.append(f"{session},{item},{session * 50 + step},{age},{shelf},{stock}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    items = [f"{i},{['', 'inf', '-2', 5 * i][i % 4]},{['', 'b1', f'b{i % 9}'][i % 3]}"
             for i in range(40)]  # fmt: skip
    (folder / "items.csv").write_text("\n".join(["i,cost,brand", *items]) + "\n")
    return folder / "log.csv"


def test_lists_of_a_server_are_those_of_predict(tmp_path: Path) -> None:
    log = write_shop(tmp_path)
    settings = Preprocess.from_dict(
        SHOP | {"item_table": {"file": str(tmp_path / "items.csv")}}, "test"
    )
    preprocess(settings, [log], [], tmp_path / "data")
    small = {"model": {"d_model": 16, "n_head": 1, "n_layer": 1}, "train": {"epochs": 1}}
    model = Recipe.from_dict(small, "test")
    train(tmp_path / "data", model.model, model.train, tmp_path / "run")
    ids = session_ids(tmp_path / "data", "test")
    assert ids is not None
    batches = [*Recommender.open(tmp_path / "run").recommend(tmp_path / "data", "test", 5)]
    lists = [(i, s) for part in batches for i, s in zip(part.items, part.scores, strict=True)]
    offline = dict(zip(map(str, ids), lists, strict=True))
    with open_run(tmp_path / "run") as client:
        assert set(client.served.types) == {*("item_id", "cost", "brand", "age", "shelf", "stock")}
        served = {str(r["session_id"]): r for r in client.recommend_log([log], 5)}
    assert len(offline) >= 30
    for session, (items, scores) in offline.items():
        answer = served[session]["recommendations"]
        assert [entry["score"] for entry in answer] == pytest.approx(scores.tolist(), abs=1e-5)
        assert [entry["item_id"] for entry in answer] == items.tolist()


def test_a_new_category_of_a_test_log_is_no_missing_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("s,i,t,zone\n1,a,1,7\n1,b,2,\n1,a,3,7\n")
    (tmp_path / "b.csv").write_text("s,i,t,zone\n2,a,4,new\n2,b,5,\n")
    zone = {"name": "pair", "kind": "categorical", "expression": "cross(zone, item_id)"}
    settings = recipe(zone, session="s", item="i")
    preprocess(settings, [tmp_path / "a.csv"], [tmp_path / "b.csv"], tmp_path / "data")
    test = pq.read_table(tmp_path / "data" / "sessions" / "test")
    assert test["pair"].to_pylist() == [[OUT_OF_VOCABULARY, NULL]]


def test_data_does_not_depend_on_the_size_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_shop(tmp_path)
    settings = Preprocess.from_dict(
        SHOP | {"item_table": {"file": str(tmp_path / "items.csv")}}, "test"
    )
    preprocess(settings, [log], [], tmp_path / "whole")
    monkeypatch.setattr(blocks.log_files, "BLOCK_ROWS", 50)
    preprocess(settings, [log], [], tmp_path / "blocks")
    for part in ("train", "test"):
        whole, parts = (
            pq.read_table(tmp_path / name / "sessions" / part) for name in ("whole", "blocks")
        )
        assert whole.equals(parts)
    whole, parts = (Fitted.read(tmp_path / name).expressions for name in ("whole", "blocks"))
    assert repr(whole) == repr(parts)  # NaN equals itself
