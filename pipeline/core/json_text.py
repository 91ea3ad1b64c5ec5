"""JSON of an artifact as what it says: no key twice, and no number that JSON does not have."""

import json
from typing import Any, NoReturn


def parse_json(text: str | bytes, *, constants: bool = False) -> Any:
    """Value of a text. ValueError for a key that occurs twice, for NaN and infinity unless
    `constants`, and for nesting that is too deep."""
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
