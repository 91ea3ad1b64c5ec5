"""Values of the expressions of features, for training data and for requests.

Letters: N interactions, sorted by session and time, or N sessions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Union

import numpy as np
from numpy.typing import NDArray

from .lookups import MISSING_INTEGER, UNKNOWN_INTEGER

SEPARATOR = b"|"
"""Separator of the categories that `cross` joins."""


class Categories(NamedTuple):
    """Categories as codes of distinct texts."""

    codes: NDArray[Any]
    """(N,) int64 positions in `texts`, -1 for a missing category."""
    texts: list[bytes]
    """Distinct texts in UTF-8."""

    @classmethod
    def of(cls, values: NDArray[Any]) -> Categories:
        """Read (N,) int64, or texts as bytes or str; empty text is missing."""
        if values.dtype.kind == "i":
            integers, codes = np.unique(values, return_inverse=True)
            missing = (integers == MISSING_INTEGER) | (integers == UNKNOWN_INTEGER)
            codes = np.where(missing[codes], -1, codes)
            return cls(codes.astype(np.int64), [b"%d" % value for value in integers.tolist()])
        position: dict[bytes, int] = {}
        codes = np.empty(len(values), np.int64)
        for row, value in enumerate(values.tolist()):
            text = value if isinstance(value, bytes) else str(value).encode("utf-8")
            text = text.replace(b"\0", b"")
            codes[row] = position.setdefault(text, len(position)) if text else -1
        return cls(codes, list(position))

    @property
    def values(self) -> NDArray[Any]:
        """(N,) bytes; empty for a missing category."""
        texts = np.empty(len(self.texts) + 1, object)
        texts[:] = [*self.texts, b""]
        return texts[self.codes]


Values = Union[NDArray[Any], Categories]  # noqa: UP007  Triton may run an older Python


class Statistic(NamedTuple):
    """Numbers of the categories in training, for `mean` and `first_seen`."""

    numbers: dict[bytes, float]
    default: float
    """Number of every other category."""

    def __call__(self, categories: Categories) -> NDArray[Any]:
        """(N,) float64."""
        numbers = [self.numbers.get(text, self.default) for text in categories.texts]
        return np.array([*numbers, self.default])[categories.codes]


class Sessions(NamedTuple):
    """Inputs of an expression for some sessions."""

    columns: Mapping[str, Values]
    """(N,) float64 with NaN, or categories, by name."""
    starts: NDArray[Any]
    """(N,) int64 position of the first interaction of the session of each interaction."""
    statistics: Mapping[str, Statistic]
    """Statistics by `statistic_key` of their call."""


def evaluate(tree: Any, sessions: Sessions) -> Values:
    """Return the value of an expression for each interaction: (N,) float64 or categories.

    An undefined value, such as the logarithm of a negative number, is NaN.
    """
    with np.errstate(all="ignore"):
        value = _evaluate(tree, sessions)
        if isinstance(value, Categories):
            return value
        return finite(np.broadcast_to(value, len(sessions.starts)))


def finite(numbers: NDArray[Any]) -> NDArray[Any]:
    """Return (N,) float64 with NaN for numbers that are infinite in float32, as a log is read."""
    with np.errstate(over="ignore"):
        return np.where(np.isinf(numbers.astype(np.float32)), np.nan, numbers)


def _evaluate(tree: Any, sessions: Sessions) -> Any:
    if isinstance(tree, str):
        return sessions.columns[tree]
    if not isinstance(tree, list):
        return float(tree)
    name, *arguments = tree
    if name in ("mean", "first_seen"):
        categories = _evaluate(arguments[-1], sessions)
        return sessions.statistics[statistic_key(tree)](categories)
    values = [_evaluate(argument, sessions) for argument in arguments]
    if name in ("lag", "cross"):
        return (_lag if name == "lag" else _cross)(sessions.starts, *values)
    return _FUNCTIONS[name](*values)


def statistic_key(call: Any) -> str:
    """Return the name of a call of `mean` or `first_seen`."""
    return json.dumps(call, separators=(",", ":"))


def _lag(starts: NDArray[Any], values: Any, steps: float = 1) -> Any:
    """Return the value of the interaction `steps` positions earlier in the session."""
    steps = int(steps)
    is_category = isinstance(values, Categories)
    numbers = np.broadcast_to(values.codes if is_category else values, len(starts))
    lagged = np.full(len(starts), -1 if is_category else np.nan, numbers.dtype)
    rows = np.flatnonzero(np.arange(len(starts)) - steps >= starts)
    lagged[rows] = numbers[rows - steps]
    return Categories(lagged, values.texts) if is_category else lagged


def _bucket(numbers: Any, *bounds: float) -> NDArray[Any]:
    """Return how many of the ascending bounds are at most the number."""
    buckets = np.searchsorted(np.array(bounds), numbers, side="right").astype(np.float64)
    return np.where(np.isnan(numbers), np.nan, buckets)


def _cross(starts: NDArray[Any], *parts: Any) -> Categories:
    """Return the joined texts, missing if one of them is."""
    size = len(starts)
    codes = np.zeros(size, np.int64)
    texts = [b""]
    missing = np.zeros(size, bool)
    for number, part in enumerate(parts):
        categories = part if isinstance(part, Categories) else _of_buckets(part, size)
        missing |= categories.codes < 0
        # only pairs that occur get a text
        joined = codes * (len(categories.texts) + 1) + np.maximum(categories.codes, 0)
        pairs, codes = np.unique(joined, return_inverse=True)
        lefts, rights = np.divmod(pairs, len(categories.texts) + 1)
        other = [*categories.texts, b""]
        texts = [
            (texts[left] + SEPARATOR if number else b"") + other[right]
            for left, right in zip(lefts.tolist(), rights.tolist())  # noqa: B905
        ]
    # texts that contain the separator may become equal
    position = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([position[text] for text in texts], np.int64)[codes]
    return Categories(np.where(missing, -1, codes), list(position))


def _of_buckets(buckets: Any, size: int) -> Categories:
    buckets = np.broadcast_to(buckets, size)
    return Categories.of(np.where(np.isnan(buckets), MISSING_INTEGER, buckets).astype(np.int64))


def _fill(numbers: Any, value: float) -> NDArray[Any]:
    return np.where(np.isnan(numbers), value, numbers)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.true_divide,
    "log": np.log,
    "log1p": np.log1p,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "min": lambda *values: _reduce(np.minimum, values),
    "max": lambda *values: _reduce(np.maximum, values),
    "clip": np.clip,
    "fill": _fill,
    "bucket": _bucket,
}


def _reduce(function: Callable[[Any, Any], Any], values: tuple[Any, ...]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result
