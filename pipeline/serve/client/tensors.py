"""Tensors of a request from sessions as Python values."""

from collections.abc import Iterable, Iterator, Set, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.errors import ConfigError
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.runtime.lookups import MISSING_INTEGER, SEPARATOR_IN_TAG
from pipeline.serve.runtime.rows import MISSING

Columns = dict[str, list[Any]]
"""Values of one session by tensor name."""

_NUMPY_TYPES: dict[str, Any] = {"int64": np.int64, "float64": np.float64, "string": np.object_}


def request_tensors(
    served: ServedModel,
    sessions: list[Columns],
    *,
    k: int | None = None,
    exclude: list[Any] | None = None,
    candidates: list[Any] | None = None,
    filter_seen: bool | None = None,
) -> dict[str, NDArray[Any]]:
    """Return tensors by name. ConfigError for an unknown column and a wrong length or type.

    `exclude` and `candidates` are raw item ids for all sessions, or a list of them for each.
    """
    _check_sessions(sessions)
    tensors = _column_tensors(served, sessions)
    count = len(sessions)
    if k is not None:
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise ConfigError(f"k is {k!r}, expected a whole number, 1 to {served.max_k}.")
        if not -(2**31) <= k < 2**31:
            raise ConfigError(f"k is {k}, expected 1 to {served.max_k}.")
        tensors["k"] = np.full((count, 1), k, np.int32)
    for name, ids in listed({"exclude": exclude, "candidates": candidates}).items():
        if ids is not None:
            tensors[name] = _id_tensor(ids, served.types[ITEM], name, count)
    if filter_seen is not None:
        if not isinstance(filter_seen, bool | np.bool_):
            raise ConfigError(f"filter_seen is {filter_seen!r}, expected True or False.")
        tensors["filter_seen"] = np.full((count, 1), filter_seen, bool)
    return tensors


def listed(filters: dict[str, Any]) -> dict[str, Any]:
    """Replace iterators and sets by lists, which can be read more than once."""
    return {
        name: list(value) if isinstance(value, Iterator | Set) else value
        for name, value in filters.items()
    }


def _check_sessions(sessions: Any) -> None:
    expected = 'expected a list of sessions such as [{"item_id": [...]}]'
    if not isinstance(sessions, list | tuple) or not all(isinstance(s, dict) for s in sessions):
        raise ConfigError(f"The sessions are {type(sessions).__name__}, {expected}.")
    if not sessions or not any(ITEM in session for session in sessions):
        raise ConfigError(f"There is no session with an item_id, {expected}.")
    for session in sessions:
        for name, values in session.items():
            if isinstance(values, str | bytes) or not isinstance(values, Sized):
                raise ConfigError(f"{name} is {values!r}, expected a list of values.")


def _column_tensors(served: ServedModel, sessions: list[Columns]) -> dict[str, NDArray[Any]]:
    types = dict(served.types)
    if served.timestamp_type is not None:
        types[TIMESTAMP] = served.timestamp_type
    separators = {f.name: f.separator for f in served.recipe.multi_valued_features}
    lengths = [len(session.get(ITEM, ())) for session in sessions]
    tensors = {}
    for name in {name: None for session in sessions for name in session}:
        if name not in types:
            raise ConfigError(
                f"The model has no column {name!r}. It has: {', '.join(sorted(types))}."
            )
        per_session = served.scopes.get(name) == "session"
        rows: list[list[Any]] = []
        for session, length in zip(sessions, lengths, strict=True):
            if name not in session:
                rows.append([])  # all missing
                continue
            values = session[name]
            if name in separators:
                values = [_join(value, separators[name]) for value in values]
            values = _typed(values, types[name], name)
            expected = 1 if per_session and name != ITEM else length
            if len(values) != expected:
                raise ConfigError(
                    f"{name} has {len(values)} values, expected {expected} to go with "
                    f"{length} item ids."
                )
            rows.append(values)
        tensors[name] = _padded(rows, 1 if per_session else max(lengths), types[name])
    if len(sessions) > 1:
        tensors["length"] = np.array(lengths, np.int32)[:, np.newaxis]
    return tensors


def _join(values: Any, separator: str) -> Any:
    """Join the tags of an interaction as preprocessing joins a list of Parquet."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return values
    words = []
    for value in values:
        if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
            continue
        if isinstance(value, float | np.floating) and float(value).is_integer():
            value = int(value)
        word = value.decode() if isinstance(value, bytes) else str(value)
        words.append(word.replace(separator, SEPARATOR_IN_TAG))
    return separator.join(words)


def _id_tensor(ids: list[Any], kind: str, name: str, count: int) -> NDArray[Any]:
    """Return (B, m) ids, rows padded with missing ids."""
    lists = id_lists(ids, name)
    if lists is not None and len(lists) != count:
        raise ConfigError(f"{name} has lists for {len(lists)} sessions, expected {count}.")
    rows = [_typed(row, kind, name) for row in ([list(ids)] if lists is None else lists)]
    array = _padded(rows, max(1, *map(len, rows)), kind)
    if name == "candidates" and not all(rows):
        raise ConfigError("candidates is empty, expected item ids. Leave it out for all items.")
    return array.repeat(count, 0) if lists is None else array


def id_lists(ids: Any, name: str) -> list[list[Any]] | None:
    """Return a list per session, None if `ids` are for all sessions. ConfigError otherwise."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ConfigError(f"{name} is {ids!r}, expected a list of item ids.")
    is_list = [isinstance(v, Iterable) and not isinstance(v, str | bytes) for v in ids]
    if not any(is_list):
        return None
    if not all(is_list):
        raise ConfigError(f"{name} mixes item ids and lists of them. Send a list for each session.")
    return [list(row) for row in ids]


def _padded(rows: list[list[Any]], width: int, kind: str) -> NDArray[Any]:
    """Return (rows, width) values, missing ones after the end of a row."""
    missing = "" if kind == "string" else MISSING[kind]
    array = np.full((len(rows), width), missing, _NUMPY_TYPES[kind])
    for row, values in zip(array, rows, strict=True):
        row[: len(values)] = values
    return array


def _typed(values: list[Any], kind: str, name: str) -> list[Any]:
    """Convert to the type of a tensor; ConfigError for a value of another type."""
    try:
        if kind == "int64":
            return [MISSING_INTEGER if v in (None, "") else _integer(v) for v in values]
        if kind == "float64":
            return [float("nan") if v in (None, "") else float(v) for v in values]
    except (TypeError, ValueError):
        expected = "whole numbers" if kind == "int64" else "numbers"
        raise ConfigError(f"{name} is {values!r}, expected {expected}.") from None
    try:
        return ["" if v is None else v.decode() if isinstance(v, bytes) else str(v) for v in values]
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is {values!r}, expected text or bytes of UTF-8.") from None


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    whole = int(value)
    if not -(2**63) <= whole < 2**63:
        raise ValueError(value)
    return whole
