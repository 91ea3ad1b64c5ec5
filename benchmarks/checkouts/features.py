"""Random features of all kinds, with the columns that they read."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.checkouts.logs import Column, Of, Shape, id_text

ID_STYLES = ("int", "large", "negative", "padded", "text", "unicode", "comma", "mixed")
CLEAN_STYLES = tuple(style for style in ID_STYLES if style != "comma")
"""Styles that CSV writes without quotes."""


@dataclass
class Draft:
    """A recipe under construction."""

    chance: random.Random
    folder: Path
    shape: Shape
    features: list[dict[str, Any]] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    tables: dict[Of, list[Column]] = field(default_factory=lambda: {"item": [], "session": []})
    """Columns of the item table and the session table, which the log does not have."""
    uses_operators: bool = False
    is_clean: bool = False
    """Whether the log is without damage and quotes."""

    def id_style(self) -> str:
        """Draw the form of the ids of a column."""
        styles = CLEAN_STYLES if self.is_clean else ID_STYLES
        return self.chance.choice(styles)

    def of(self) -> Of:
        """Draw what a feature describes."""
        return self.chance.choice(["item", "interaction", "session"])


def _category(style: str, count: int, missing: float) -> Callable[[random.Random], str]:
    def draw(chance: random.Random) -> str:
        if chance.random() < missing:
            return ""
        return id_text(style, int(count * chance.random() ** 2))

    return draw


def _number(kind: str, missing: float) -> Callable[[random.Random], str]:
    def draw(chance: random.Random) -> str:
        if chance.random() < missing:
            return ""
        values = {
            "price": f"{chance.lognormvariate(2, 1):.2f}",
            "normal": repr(chance.gauss(0, 5)),
            "count": str(int(chance.expovariate(0.05))),
            "constant": "7",
            "flag": str(int(chance.random() < 0.3)),
            "large": repr(chance.gauss(1e9, 1e7)),
        }
        return values[kind]

    return draw


def _missing(chance: random.Random) -> float:
    return chance.choice([0.0, 0.0, 0.1, 0.4, 1.0 if chance.random() < 0.1 else 0.2])


def _source(draft: Draft, name: str, feature: dict[str, Any], column: Column) -> None:
    """Add a feature; its column may have another name."""
    if draft.chance.random() < 0.3:
        feature["column"] = column.name
    else:
        column = replace(column, name=name)
    draft.features.append(feature)
    draft.columns.append(column)


def _categorical(draft: Draft, name: str) -> None:
    chance, of = draft.chance, draft.of()
    feature: dict[str, Any] = {"name": name, "kind": "categorical", "of": of}
    if chance.random() < 0.4:
        feature["min_count"] = chance.choice([2, 3, 10])
    if chance.random() < 0.4:
        feature["hash_buckets"] = chance.choice([1, 3, 50])
    draw = _category(draft.id_style(), chance.choice([2, 8, 100]), _missing(chance))
    _source(draft, name, feature, Column(f"{name} raw", of, draw))


def _buckets(draft: Draft, name: str) -> None:
    chance, of = draft.chance, draft.of()
    bounds = chance.choice([[1.0], [2.5, 10.0, 20.0], [-1.0, 0.0, 5.0, 1e6]])
    feature = {"name": name, "kind": "categorical", "of": of, "buckets": bounds}
    draw = _number(chance.choice(["price", "normal", "count"]), _missing(chance))
    _source(draft, name, feature, Column(f"{name} raw", of, draw, is_number=True))


def _tags(draft: Draft, name: str) -> None:
    chance, of = draft.chance, draft.of()
    separator = chance.choice(["|", "|", "; ", "/"])
    feature: dict[str, Any] = {"name": name, "kind": "categorical", "of": of}
    feature |= {"values_per_interaction": chance.choice([2, 3, 5]), "separator": separator}
    if chance.random() < 0.3:
        feature |= {"min_count": 2, "hash_buckets": chance.choice([0, 4])}
    one = _category(chance.choice(["int", "text", "unicode"]), 12, 0.05)
    most = chance.choice([1, 3, 7])

    def draw(chance: random.Random) -> str:
        return separator.join(one(chance) for _ in range(chance.randint(0, most)))

    _source(draft, name, feature, Column(f"{name} raw", of, draw, separator=separator))


def _continuous(draft: Draft, name: str) -> None:
    chance, of = draft.chance, draft.of()
    feature = {"name": name, "kind": "continuous", "of": of, "log": chance.random() < 0.4}
    kind = chance.choice(["price", "normal", "count", "constant", "large"])
    column = Column(f"{name} raw", of, _number(kind, _missing(chance)), is_number=True)
    _source(draft, name, feature, column)


def _target_encoding(draft: Draft, name: str) -> None:
    chance, of = draft.chance, draft.of()
    feature: dict[str, Any] = {"name": name, "kind": "continuous", "of": of}
    feature["mean_of"] = f"{name} number"
    if chance.random() < 0.5:
        feature |= {"smoothing": chance.choice([0.0, 1.0, 50.0]), "folds": chance.choice([2, 3, 7])}
    number = _number(chance.choice(["flag", "price"]), _missing(chance))
    draft.columns.append(Column(f"{name} number", "interaction", number, is_number=True))
    draw = _category(draft.id_style(), chance.choice([3, 30]), _missing(chance))
    _source(draft, name, feature, Column(f"{name} raw", of, draw))


def _table_feature(draft: Draft, name: str) -> None:
    chance = draft.chance
    of: Of = chance.choice(["item", "session"])
    feature: dict[str, Any] = {"name": name, "of": of, "table": True}
    if chance.random() < 0.5:
        feature["kind"] = "categorical"
        column = Column(name, of, _category(draft.id_style(), 15, _missing(chance)))
    else:
        feature["kind"] = "continuous"
        column = Column(name, of, _number("price", _missing(chance)), is_number=True)
    draft.features.append(feature)
    draft.tables[of].append(column)


def _operator(draft: Draft, name: str) -> None:
    chance = draft.chance
    inputs = {f"{name} a": "number", f"{name} b": "number"}
    operator = chance.choice(["ratio", "rounded"])
    feature = {"name": name, "of": draft.of(), "operator": operator, "inputs": inputs}
    feature["kind"] = chance.choice(["continuous", "categorical"])
    draft.features.append(feature)
    for column in inputs:
        number = _number("count", _missing(chance))
        draft.columns.append(Column(column, "interaction", number, is_number=True))
    draft.uses_operators = True


FEATURES: tuple[Callable[[Draft, str], None], ...] = (
    *(_categorical, _categorical, _continuous, _continuous, _buckets, _tags),
    *(_target_encoding, _table_feature, _operator),
)
"""Functions that add one feature to a draft; the frequent ones are listed twice."""
CLEAN_FEATURES = tuple(make for make in FEATURES if make is not _operator)
"""Functions whose features need no NVTabular operator of the user."""
