"""Strict JSON parser for artifacts: no duplicate keys, no NaN or infinity."""

import json
from typing import Any, NoReturn


def parse_json(text: str | bytes, *, constants: bool = False) -> Any:
    """Parse JSON. ValueError for a duplicate key, for too deep nesting, and for NaN and infinity.

    `constants` allows NaN and infinity.
    """
    try:
        if constants:
            return json.loads(text, object_pairs_hook=_unique_keys)
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:100]!r} occurs twice")
        values[key] = value
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
