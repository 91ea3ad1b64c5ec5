"""Operators of a user's workflow as tables and formulas in NumPy.

A step has the name of its formula (`op`) and its constants. The results equal those of NVTabular's
operators bit by bit; each formula has the precision of its operator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .lookups import MISSING_INTEGER, lookup_of, object_array, read_values

Formula = Callable[[NDArray[Any], dict[str, Any]], NDArray[Any]]
_HASH_KEY = b"0123456789123456"
"""Key of pandas' hash."""
_MASK = (1 << 64) - 1


class OperatorSteps:
    """Steps of one column, from the values of a request to those of its table or the model."""

    def __init__(self, directory: Path, name: str, steps: list[dict[str, Any]]) -> None:
        self._steps = [_formula(directory, f"{name}.{n}", step) for n, step in enumerate(steps)]

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """(n,) -> (n,)"""
        with np.errstate(all="ignore"):  # missing and infinite numbers pass unchanged
            for step in self._steps:
                values = step(values)
        return values


def _formula(
    directory: Path, name: str, step: dict[str, Any]
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    if step["op"] == "lookup":
        return _Lookup(directory, name, step)
    formula = _FORMULAS[step["op"]]
    return lambda values: formula(values, step)


class _Lookup:
    """Maps keys to values, stored for a missing key, for an unknown one, then for each key."""

    def __init__(self, directory: Path, name: str, step: dict[str, Any]) -> None:
        self._keys = lookup_of(read_values(directory, f"{name}.keys", step["keys"]))
        table = read_values(
            directory, f"{name}.values", "string" if step["values"] == "string" else "int64"
        )
        self._values = object_array(table) if isinstance(table, list) else table

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._values[self._keys(values) - 1]  # 1 is the index of a missing value


def _to_number(values: NDArray[Any], _: dict[str, Any]) -> NDArray[Any]:
    return np.where(values == MISSING_INTEGER, np.nan, values.astype(np.float64))


def _to_integer(values: NDArray[Any], _: dict[str, Any]) -> NDArray[Any]:
    missing = np.isnan(values)
    return np.where(missing, MISSING_INTEGER, np.where(missing, 0, values).astype(np.int64))


def _fill(values: NDArray[Any], step: dict[str, Any]) -> NDArray[Any]:
    value = step["value"]
    if values.dtype.kind == "f":
        return np.where(np.isnan(values), values.dtype.type(value), values)
    if values.dtype.kind == "i":
        return np.where(values == MISSING_INTEGER, np.int64(value), values)
    text = value.encode("utf-8")
    return object_array([text if each in (b"", "") else each for each in values.tolist()])


def _clip(values: NDArray[Any], step: dict[str, Any]) -> NDArray[Any]:
    if step["min"] is not None:
        values = np.where(values < step["min"], values.dtype.type(step["min"]), values)
    if step["max"] is not None:
        values = np.where(values > step["max"], values.dtype.type(step["max"]), values)
    return values


def _log(values: NDArray[Any], _: dict[str, Any]) -> NDArray[Any]:
    result: NDArray[Any] = np.log(values.astype(np.float32) + 1)
    return result


def _standardize(values: NDArray[Any], step: dict[str, Any]) -> NDArray[Any]:
    values = values - step["mean"]
    if step["deviation"] > 0:
        values = values / step["deviation"]
    return values.astype(step["dtype"])


def _scale(values: NDArray[Any], step: dict[str, Any]) -> NDArray[Any]:
    width = step["max"] - step["min"]
    values = (values - step["min"]) / width if width > 0 else values / (2 * values)
    return values.astype(step["dtype"])


def _bucketize(values: NDArray[Any], step: dict[str, Any]) -> NDArray[Any]:
    return np.digitize(values, np.array(step["boundaries"])).astype(np.int64)


def _hash(values: NDArray[Any], step: dict[str, Any]) -> NDArray[Any]:
    if values.dtype.kind in "if":
        hashes = _mix(values.view(f"u{values.dtype.itemsize}").astype(np.uint64))
    else:
        hashes = np.array([_hash_of_text(value) for value in values.tolist()], np.uint64)
    return (hashes % np.uint64(step["buckets"])).astype(np.int64)


@lru_cache(maxsize=100_000)
def _hash_of_text(text: bytes | str) -> int:
    """Return pandas' hash of a text, the largest integer for a missing one."""
    encoded = text if isinstance(text, bytes) else text.encode("utf-8")
    return int(_mix(np.array([siphash(encoded)], np.uint64))[0]) if encoded else _MASK


def _mix(hashes: NDArray[Any]) -> NDArray[Any]:
    """Mix the bits of 64-bit integers, as pandas does."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def siphash(data: bytes, key: bytes = _HASH_KEY) -> int:
    """Return the 64-bit SipHash-2-4 of Aumasson and Bernstein."""
    first, second = (int.from_bytes(key[at : at + 8], "little") for at in (0, 8))
    state = (
        *(first ^ 0x736F6D6570736575, second ^ 0x646F72616E646F6D),
        *(first ^ 0x6C7967656E657261, second ^ 0x7465646279746573),
    )
    whole = len(data) - len(data) % 8
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, whole, 8)]
    words.append(((len(data) & 0xFF) << 56) | int.from_bytes(data[whole:], "little"))
    for word in words:
        a, b, c, d = state
        a, b, c, d = _round(*_round(a, b, c, d ^ word))
        state = a ^ word, b, c, d
    a, b, c, d = state
    c ^= 0xFF
    for _ in range(4):
        a, b, c, d = _round(a, b, c, d)
    return a ^ b ^ c ^ d


def _round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    a = (a + b) & _MASK
    b = _rotate(b, 13) ^ a
    a = _rotate(a, 32)
    c = (c + d) & _MASK
    d = _rotate(d, 16) ^ c
    a = (a + d) & _MASK
    d = _rotate(d, 21) ^ a
    c = (c + b) & _MASK
    b = _rotate(b, 17) ^ c
    return a, b, _rotate(c, 32), d


def _rotate(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (64 - bits))) & _MASK


_FORMULAS: dict[str, Formula] = {
    "number": _to_number,
    "integer": _to_integer,
    "fill": _fill,
    "clip": _clip,
    "log": _log,
    "standardize": _standardize,
    "scale": _scale,
    "bucketize": _bucketize,
    "hash": _hash,
}
