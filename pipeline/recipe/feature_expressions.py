"""Expressions of features: `log(price / mean(price, category))`.

Numbers are float64, NaN where missing; categories are texts. A name is a feature of the recipe, a
column of the log, `item_id`, or `timestamp` in seconds since 1970 UTC.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.expressions import Expression, Tree

Kind = Literal["number", "category"]
_FUNCTIONS: dict[str, tuple[range, tuple[Kind, ...]]] = {
    "log": (range(1, 2), ("number",)),
    "log1p": (range(1, 2), ("number",)),
    "exp": (range(1, 2), ("number",)),
    "sqrt": (range(1, 2), ("number",)),
    "abs": (range(1, 2), ("number",)),
    "min": (range(2, 9), ("number",)),
    "max": (range(2, 9), ("number",)),
    "clip": (range(3, 4), ("number",)),
    "fill": (range(2, 3), ("number",)),
    "bucket": (range(2, 66), ("number",)),
    "mean": (range(2, 3), ("number", "category")),
    "first_seen": (range(1, 2), ("category",)),
    "cross": (range(2, 9), ("category",)),
    "lag": (range(1, 3), ()),
}
"""Allowed numbers of arguments and their kinds; the last kind holds for all further arguments, and
`lag` takes and returns either kind."""
STATISTICS = ("mean", "first_seen")
"""Functions that are computed over all training interactions."""


@dataclass(frozen=True)
class FeatureExpression:
    """A checked expression."""

    tree: Tree
    """The expression as JSON values."""
    numbers: tuple[str, ...]
    """Names that are read as numbers, without `timestamp`."""
    categories: tuple[str, ...]
    """Names that are read as categories, without `item_id`."""

    @classmethod
    def parse(cls, text: str, kind: Kind) -> Self:
        """Check an expression whose value is of a kind. ValueError says what is wrong."""
        tree = Expression(text, {name: counts for name, (counts, _) in _FUNCTIONS.items()}).tree
        names: dict[Kind, dict[str, None]] = {"number": {}, "category": {}}
        _read(tree, kind, names)
        numbers, categories = names["number"], names["category"]
        if both := numbers.keys() & categories.keys():
            raise ValueError(f"`{min(both)}` is read as a number and as a category")
        for call in statistics_of(tree):
            for inner in _calls([part for part in call[1:] if isinstance(part, list)]):
                if inner[0] in (*STATISTICS, "lag"):
                    raise ValueError(f"`{call[0]}` takes no `{inner[0]}`")
        return cls(
            tree=tree,
            numbers=tuple(name for name in numbers if name != TIMESTAMP),
            categories=tuple(name for name in categories if name != ITEM),
        )

    @property
    def is_of_interactions(self) -> bool:
        """Whether the value depends on times, on the item or on other interactions of the session,
        so that a session feature cannot have it."""
        calls = {call[0] for call in _calls([self.tree])}
        return "lag" in calls or ITEM in _names(self.tree) or self.reads_time

    @property
    def reads_time(self) -> bool:
        """Whether the value depends on times."""
        calls = {call[0] for call in _calls([self.tree])}
        return "first_seen" in calls or TIMESTAMP in _names(self.tree)


def statistics_of(tree: Tree) -> list[list[Tree]]:
    """Calls of `mean` and `first_seen`, each once."""
    calls = (call for call in _calls([tree]) if call[0] in STATISTICS)
    return list({json.dumps(call): call for call in calls}.values())


def _read(tree: Tree, kind: Kind, names: dict[Kind, dict[str, None]]) -> None:
    """Add the names of a subtree whose value must be of `kind`."""
    if isinstance(tree, str):
        only: dict[str, Kind] = {TIMESTAMP: "number", ITEM: "category"}
        if only.get(tree, kind) != kind:
            raise ValueError(f"`{tree}` is a {only[tree]} in an expression, no {kind}")
        names[kind][tree] = None
    elif not isinstance(tree, list):
        if kind == "category":
            raise ValueError(f"the number {tree:g} stands where a category is expected")
    elif tree[0] == "lag":
        steps = tree[2] if len(tree) > 2 else 1.0
        if not (isinstance(steps, float) and steps >= 1 and steps.is_integer()):
            raise ValueError("`lag` takes a whole number of interactions from 1 on")
        _read(tree[1], kind, names)
    else:
        _read_call(str(tree[0]), tree[1:], kind, names)


def _read_call(
    name: str, arguments: list[Tree], kind: Kind, names: dict[Kind, dict[str, None]]
) -> None:
    result: Kind = "category" if name == "cross" else "number"
    if result != kind:
        advice = "; a category of numbers is a feature with `buckets`" * (kind == "category")
        raise ValueError(f"`{name}` makes a {result} where a {kind} is expected{advice}")
    if name in ("clip", "fill", "bucket"):
        numbers = [part for part in arguments[1:] if isinstance(part, float)]
        if len(numbers) < len(arguments) - 1:
            raise ValueError(f"`{name}` takes numbers after its first argument")
        if numbers != sorted(set(numbers)):
            raise ValueError(f"the bounds of `{name}` are ascending numbers")
    _, kinds = _FUNCTIONS.get(name, (range(2, 3), ("number",)))
    for position, part in enumerate(arguments):
        is_bucket = isinstance(part, list) and part[0] == "bucket"
        part_kind = kinds[min(position, len(kinds) - 1)]
        _read(part, "number" if name == "cross" and is_bucket else part_kind, names)


def _calls(parts: list[Tree]) -> Iterator[list[Tree]]:
    for part in parts:
        if isinstance(part, list):
            yield part
            yield from _calls(part[1:])


def _names(tree: Tree) -> set[str]:
    if isinstance(tree, list):
        return set().union(*map(_names, tree[1:]))
    return {tree} if isinstance(tree, str) else set()
