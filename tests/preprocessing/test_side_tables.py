"""Features from tables beside the log are those that the log itself would have held."""

import gzip
import random
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.preprocess import Preprocess

FEATURES = [
    {"name": "brand", "kind": "categorical", "of": "item"},
    {"name": "price", "column": "cost", "kind": "continuous", "of": "item", "log": True},
    {"name": "country", "kind": "categorical", "of": "session"},
]


def recipe(folder: Path, joined: bool, **more: object) -> Preprocess:
    features = [{**feature, "table": joined} for feature in FEATURES]
    tables = {
        "item_table": {"file": str(folder / "items.csv"), "key": "sku", "delimiter": ";"},
        "session_table": {"file": str(folder / "users.parquet")},
    }
    values = {"session": "user", "item": "product", "features": features}
    return Preprocess.from_dict(values | (tables if joined else {}) | more, "recipe")


def write(folder: Path, text_ids: bool) -> None:
    """A log, the same with all columns in it, and two tables."""
    chance = random.Random(3)
    item = (lambda n: f"sku-{n}") if text_ids else (lambda n: n)
    items = pd.DataFrame(
        {
            "cost": [None if n % 7 == 0 else n + 0.5 for n in range(30)],
            "sku": [item(n) for n in range(30)],
            "brand": [None if n % 5 == 0 else f"b{n % 4}" for n in range(30)],
        }
    )
    users = pd.DataFrame({"user": range(20), "country": [f"c{n % 3}" for n in range(20)]})
    rows = [(chance.randrange(25), item(chance.randrange(40))) for _ in range(300)]
    log = pd.DataFrame(rows, columns=["user", "product"])
    whole = log.merge(items.rename(columns={"sku": "product"}), on="product", how="left")
    whole.merge(users, on="user", how="left").to_parquet(folder / "whole.parquet")
    log.to_parquet(folder / "log.parquet")
    again = items.head(3).assign(brand="another")  # of a key the first row counts
    pd.concat([items, again]).to_csv(folder / "items.csv", index=False, sep=";")
    users.to_parquet(folder / "users.parquet")


@pytest.mark.parametrize("text_ids", [False, True])
def test_side_table_features_equal_columns_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_ids: bool
) -> None:
    write(tmp_path, text_ids)
    facts = preprocess(recipe(tmp_path, True), [tmp_path / "log.parquet"], [], tmp_path / "joined")
    preprocess(recipe(tmp_path, False), [tmp_path / "whole.parquet"], [], tmp_path / "whole")
    one, other = (pq.read_table(tmp_path / d / "sessions/train") for d in ("joined", "whole"))
    assert one.equals(other)
    assert Fitted.read(tmp_path / "joined").items == Fitted.read(tmp_path / "whole").items
    assert any("items.csv" in reason and n == 3 for reason, n in flat(facts["rows"]["input"]))
    monkeypatch.setattr(spill, "SHARD_ROWS", 40)
    monkeypatch.setattr(spill, "_STEP", 8)
    preprocess(recipe(tmp_path, True), [tmp_path / "log.parquet"], [], tmp_path / "parts")
    assert pq.read_table(tmp_path / "parts/sessions/train").equals(one)


def test_damage_in_a_table_is_counted_with_its_name(tmp_path: Path) -> None:
    write(tmp_path, False)
    whole = (tmp_path / "items.csv").read_bytes().replace(b"b1", "bü".encode("cp1252"))
    content = gzip.compress(whole + b'31;"not closed;b2\n1;2;3;4;5\n', mtime=0)
    (tmp_path / "items.csv.gz").write_bytes(content[:-4])
    values = recipe(tmp_path, True).model_dump(mode="json")
    values["item_table"]["file"] = str(tmp_path / "items.csv.gz")
    log, out = [tmp_path / "log.parquet"], tmp_path / "data"
    counted = preprocess(Preprocess.from_dict(values, "recipe"), log, [], out)["rows"]["input"][
        "counted"
    ]
    where = f"in {tmp_path}/items.csv.gz"
    mended = whole.count("ü".encode("cp1252"))
    assert counted[f"values that are no UTF-8, read as Windows-1252, {where}"] == mended > 0
    assert counted[f"lines with a quote that does not close, {where}"] == 1
    assert counted[f"lines with another number of columns, {where}"] == 1
    assert counted[f"files cut off or damaged, {where}"] == 1


def flat(rows: dict) -> list[tuple[str, int]]:
    pairs = []
    for name, value in rows.items():
        pairs += flat(value) if isinstance(value, dict) else [(name, value)]
    return pairs


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"item_table": {"file": "x.csv"}}, "`item_table` goes with features"),
        ({"features": [{**FEATURES[0], "table": True}]}, "`item_table` goes with features"),
        (
            {"features": [{"name": "x", "kind": "categorical", "table": True}]},
            "a table describes items or sessions",
        ),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Preprocess.from_dict(values, "recipe")


def test_unusable_side_tables_report_one_line(tmp_path: Path) -> None:
    write(tmp_path, False)
    users = recipe(tmp_path, True)
    for content, words in (
        ("name;brand;cost\n1;b;2\n", "has no column for"),
        ("sku;brand;cost\n", "has no row with a 'sku'"),
        (None, "does not exist"),
    ):
        (tmp_path / "items.csv").unlink()
        if content is not None:
            (tmp_path / "items.csv").write_text(content)
        with pytest.raises(DataError, match=words) as caught:
            preprocess(users, [tmp_path / "log.parquet"], [], tmp_path / "data")
        assert "\n" not in str(caught.value)
        (tmp_path / "items.csv").touch()
    assert not (tmp_path / "data").exists()


def test_command_reports_a_missing_table_and_rebuilds_for_a_changed_one(tmp_path: Path) -> None:
    write(tmp_path, False)
    (tmp_path / "recipe.yaml").write_text(
        "preprocess:\n  session: user\n  item: product\n"
        f"  item_table: {{file: {tmp_path}/items.csv, key: sku, delimiter: ;}}\n"
        "  features: [{name: brand, kind: categorical, of: item, table: true}]\n"
    )
    words = ["preprocess", f"{tmp_path}/log.parquet", "--recipe", f"{tmp_path}/recipe.yaml"]
    words += ["--out", f"{tmp_path}/data", "--if-needed"]
    for expected in ("Wrote", "is up to date"):
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert expected in result.output
    text = (tmp_path / "items.csv").read_text().replace("b1", "changed")
    (tmp_path / "items.csv").write_text(text)
    assert "Wrote" in CliRunner().invoke(app, words, catch_exceptions=False).output
