"""Strict JSON parser for artifacts: no duplicate keys, no NaN or infinity."""

import json
import math
from typing import Any, NoReturn


def parse_json(text: str | bytes, *, constants: bool = False) -> Any:
    """Parse JSON. ValueError for a duplicate key, too deep nesting, NaN, infinity and 1e999.

    `constants` allows NaN and infinity.
    """
    try:
        if constants:
            return json.loads(text, object_pairs_hook=_unique_keys)
        return json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:100]!r} occurs twice")
        values[key] = value
    return values


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:100]} is beyond the range of numbers")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
