"""What an item table says of an item is what a server reads, whether training saw it or not."""

import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.fitted import Fitted
from pipeline.data.sessions import session_ids
from pipeline.evaluation.recommender import Recommender
from pipeline.in_process import open_run
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.training.run import train

FEATURES: list[dict[str, Any]] = [
    {"name": "brand", "kind": "categorical", "min_count": 2, "hash_buckets": 3},
    {"name": "tags", "kind": "categorical", "values_per_interaction": 2},
    {"name": "cost", "kind": "continuous", "log": True},
    {"name": "band", "kind": "categorical", "column": "cost", "buckets": [5, 15]},
]
SETTINGS = Recipe.from_dict(
    {"model": {"d_model": 16, "n_head": 1, "n_layer": 1}, "train": {"epochs": 1}}, "test"
)


def recipe(folder: Path) -> Preprocess:
    features = [{**feature, "of": "item", "table": True} for feature in FEATURES]
    features.append({"name": "shelf", "kind": "categorical", "of": "item"})  # of the log
    values = {
        "session": "s",
        "item": "i",
        "features": features,
        "item_table": {"file": str(folder / "items.csv")},
        "max_sequence_length": 4,
    }
    return Preprocess.from_dict(values, "test")


def write(folder: Path, name: str, items: range, *, text_ids: bool) -> Path:
    """A log of sessions of these items."""
    chance = random.Random(name)
    lines = ["s,i,shelf"]
    for session in range(60):
        for _ in range(chance.randint(2, 6)):
            item = chance.choice(items)
            item_text = f"sku{item}" if text_ids else item
            lines.append(f"{session},{item_text},h{item % 3}")
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def write_table(folder: Path, items: range, *, text_ids: bool, brands: int = 5) -> None:
    lines = ["i,brand,tags,cost"]
    for item in items:
        item_text = f"sku{item}" if text_ids else item
        brand = "" if item % 7 == 0 else f"b{item % brands}"
        tags = "|".join(f"t{item % n}" for n in range(2, 2 + item % 4))
        cost = {0: "", 1: "dear", 2: "inf"}.get(item % 11, str(item * 1.5))
        lines.append(f"{item_text},{brand},{tags},{cost}")
    lines.append("no-number,b1,t1,3")
    (folder / "items.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("text_ids", [False, True])
def test_lists_are_those_of_a_server_that_has_no_table(tmp_path: Path, text_ids: bool) -> None:
    log = write(tmp_path, "log.csv", range(20), text_ids=text_ids)
    later = write(tmp_path, "later.csv", range(10, 40), text_ids=text_ids)
    write_table(tmp_path, range(30), text_ids=text_ids)
    preprocess(recipe(tmp_path), [log], [later], tmp_path / "data")
    train(tmp_path / "data", SETTINGS.model, SETTINGS.train, tmp_path / "run")
    fitted = Fitted.read(tmp_path / "run")
    assert fitted.items is not None
    assert len(fitted.items) > len(fitted.item.values) + 5, "items that training never saw"
    batches = [*Recommender.open(tmp_path / "run").recommend(tmp_path / "data", "test", 5)]
    ids = session_ids(tmp_path / "data", "test")
    assert ids is not None
    lists = [(i, s) for part in batches for i, s in zip(part.items, part.scores, strict=True)]
    offline = dict(zip(map(str, ids), lists, strict=True))
    with open_run(tmp_path / "run") as client:
        served = list(client.recommend_log([later], 5))
    assert len(served) == 60
    for record in served:
        items, scores = offline[str(record["session_id"])]
        answer = record["recommendations"]
        assert [entry["score"] for entry in answer] == pytest.approx(scores.tolist(), abs=1e-5)
        assert [entry["item_id"] for entry in answer] == items.tolist()


def test_newer_table_replaces_earlier_values(tmp_path: Path) -> None:
    log = write(tmp_path, "log.csv", range(20), text_ids=False)
    write_table(tmp_path, range(30), text_ids=False)
    preprocess(recipe(tmp_path), [log], [], tmp_path / "week")
    write_table(tmp_path, range(5, 25), text_ids=False, brands=3)
    preprocess(recipe(tmp_path), [log], [], tmp_path / "day", base=tmp_path / "week")
    items = Fitted.read(tmp_path / "day").items
    assert items is not None
    brand = dict(zip(items["item_id"].to_pylist(), items["brand"].to_pylist(), strict=True))
    assert {item: value for item, value in brand.items() if value} == {
        item: f"b{item % 3}" for item in range(5, 25) if item % 7
    }
    assert set(brand) == set(range(25))
