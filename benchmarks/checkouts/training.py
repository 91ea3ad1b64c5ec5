"""Recipes that are trained, exported and served: rsc15, and small ones on a synthetic shop."""

import csv
import gzip
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.checkouts.cases import Case, write_recipe
from benchmarks.checkouts.logs import Column, Log, Shape, random_log, write_text
from benchmarks.checkouts.requests import Input, Inputs, write_requests

_TRAIN = {"epochs": 2, "batch_size": 24, "learning_rate": 0.003}
_SMALL: dict[str, Any] = {
    "d_model": 32,
    "n_head": 2,
    "n_layer": 1,
    # written out, since versions differ in these defaults
    "normalize": False,
    "temperature": 1.0,
    "item_vectors": "random",
    "feature_dropout": 0.0,
}
_ITEM_ONLY: dict[str, Any] = {
    "session": "session",
    "item": "product",
    "timestamp": {"column": "time", "unit": "iso"},
    "split": {"valid": "1d", "test": "1d"},
}
_FEATURES: list[dict[str, Any]] = [
    {"name": "category", "kind": "categorical", "of": "item"},
    {"name": "price", "kind": "continuous", "of": "item", "log": True},
    {"name": "band", "column": "price", "kind": "categorical", "of": "item", "buckets": [5, 20]},
    {"name": "action", "kind": "categorical"},
    {"name": "rate", "kind": "continuous", "column": "category", "of": "item", "mean_of": "bought"},
    {"name": "tags", "kind": "categorical", "of": "item", "values_per_interaction": 3},
    {"name": "device", "kind": "categorical", "of": "session", "hash_buckets": 2, "min_count": 3},
]
_WITH_FEATURES = {
    **_ITEM_ONLY,
    "timestamp": {"column": "time", "unit": "iso", "features": ["hour", "elapsed"]},
    "features": _FEATURES,
}
_RECIPES: dict[str, dict[str, Any]] = {
    "xlnet-mlm": {
        "preprocess": _ITEM_ONLY,
        "model": {"architecture": "xlnet", "masking": "mlm", **_SMALL},
        "train": _TRAIN,
    },
    "gru": {
        "preprocess": {**_WITH_FEATURES, "drop_repeats": True, "filter_seen": True},
        "model": {"architecture": "gru", "targets": [{"feature": "price", "kind": "regression"}]}
        | _SMALL,
        "train": {
            **_TRAIN,
            "loss": "sampled-softmax",
            "num_negatives": 40,
            "half_life": "3d",
            "weights": {"feature": "action", "values": {"purchase": 5, "cart": 2}},
        },
    },
    "bert-mlm": {
        "preprocess": _WITH_FEATURES,
        "model": {"architecture": "bert", "masking": "mlm", **_SMALL},
        "train": _TRAIN,
    },
}


def training_cases(
    folder: Path, data: Path | None, *, requests: int, seed: int, full: bool
) -> list[Case]:
    """Return the cases that train and serve; rsc15 if `data` has it."""
    cases = []
    if data is not None and (data / "rsc15-100k").is_dir():
        cases.append(_rsc15(folder, data / "rsc15-100k", requests=requests, seed=seed, full=full))
    log = _shop_log(seed)
    path = folder / "shop.csv"
    write_text(path, log, ",", header=True, dirty=None)
    for name, recipe in _RECIPES.items():
        inputs = _shop_inputs(log, with_features="features" in recipe["preprocess"])
        if "targets" in recipe["model"]:  # a column that is predicted is not an input
            kept = tuple(f for f in inputs.features if f.name != "price")
            inputs = replace(inputs, features=kept)
        case = Case(
            name,
            write_recipe(folder / f"{name}.yaml", recipe),
            (str(path),),
            requests=write_requests(folder / f"{name}.jsonl", inputs, requests, seed),
        )
        cases.append(case)
    return cases


def _rsc15(folder: Path, logs: Path, *, requests: int, seed: int, full: bool) -> Case:
    train, test = logs / "train.tsv.gz", logs / "test.tsv.gz"
    with gzip.open(train, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    items = sorted({int(row["ItemId"]) for row in rows})
    times = tuple(float(row["Time"]) for row in rows[:2000])
    inputs = Inputs(
        item=Input("item_id", "INT64", (*items, *range(1, len(items) // 20))),
        session=Input("session_id", "INT64", tuple(range(1, 6))),
        timestamp=Input("timestamp", "FP64", times),
    )
    return Case(
        "rsc15",
        "configs/rsc15.yaml",
        (str(train),),
        (str(test),),
        settings={} if full else {"train.epochs": 2},
        requests=write_requests(folder / "rsc15.jsonl", inputs, requests, seed),
    )


def _shop_log(seed: int) -> Log:
    """Return clicks with features of items, interactions and sessions."""
    actions, devices = ["view"] * 8 + ["cart", "purchase"], ["phone", "desktop", "tablet", "tv"]
    tags = ["new", "sale", "red", "blue", "eco"]
    shape = Shape(
        session="session",
        item="product",
        time="time",
        time_style="iso utc",
        session_style="text",
        item_style="text",
        num_sessions=1_500,
        num_items=150,
        days=10,
        columns=(
            Column("category", "item", lambda chance: f"category-{int(8 * chance.random() ** 2)}"),
            Column("price", "item", lambda chance: f"{chance.lognormvariate(2, 1):.2f}"),
            Column("tags", "item", lambda chance: "|".join(chance.sample(tags, k=2))),
            Column("action", "interaction", lambda chance: chance.choice(actions)),
            Column("bought", "interaction", lambda chance: str(int(chance.random() < 0.1))),
            Column("device", "session", lambda chance: chance.choice(devices)),
        ),
    )
    return random_log(random.Random(f"shop {seed}"), shape)  # noqa: S311


def _shop_inputs(log: Log, *, with_features: bool) -> Inputs:
    def values(name: str) -> tuple[str, ...]:
        return tuple(sorted({row[name] for row in log.rows}))

    prices = tuple(float(price) for price in values("price"))
    features = (
        Input("category", "BYTES", (*values("category"), "no such category")),
        Input("price", "FP64", (*prices, -3.0, 0.0, 1e9)),
        Input("band", "FP64", prices),
        Input("action", "BYTES", (*values("action"), "returned")),
        Input("rate", "BYTES", (*values("category"), "no such category")),
        Input("tags", "BYTES", (*values("tags"), "red|unknown", "a|b|c|d")),
        Input("device", "BYTES", (*values("device"), "watch", "fridge"), of_session=True),
    )
    return Inputs(
        item=Input("item_id", "BYTES", (*values("product"), *(f"sku x{n}" for n in range(10)))),
        session=Input("session_id", "BYTES", ("a", "b", "c", "ü")),
        features=features if with_features else (),
        timestamp=Input("timestamp", "BYTES", values("time")[:500]),
    )
