"""Sessions as people hold them to the tensors of a request."""

from collections.abc import Iterable, Iterator, Set, Sized
from typing import Any

import numpy as np

from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.errors import ConfigError
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.runtime.encoder import MISSING
from pipeline.serve.runtime.lookups import MISSING_INTEGER

Columns = dict[str, list[Any]]
"""Of one session, by tensor name."""

_NUMPY_TYPES: dict[str, Any] = {"int64": np.int64, "float64": np.float64, "string": np.object_}


def request_tensors(
    served: ServedModel,
    sessions: list[Columns],
    *,
    k: int | None = None,
    exclude: list[Any] | None = None,
    candidates: list[Any] | None = None,
    filter_seen: bool | None = None,
) -> dict[str, np.ndarray]:
    """Tensors by name. ConfigError for a column that is not known, or of another length or type.

    `exclude` and `candidates` are raw item ids for all sessions, or a list of them for each.
    """
    _check_sessions(sessions)
    tensors = _columns(served, sessions)
    count = len(sessions)
    if k is not None:
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise ConfigError(f"k is {k!r}, expected a whole number, 1 to {served.max_k}.")
        if not -(2**31) <= k < 2**31:
            raise ConfigError(f"k is {k}, expected 1 to {served.max_k}.")
        tensors["k"] = np.full((count, 1), k, np.int32)
    chosen = listed({"exclude": exclude, "candidates": candidates})
    for name, ids in chosen.items():
        if ids is not None:
            tensors[name] = _ids(ids, served.types[ITEM], name, count)
    if filter_seen is not None:
        if not isinstance(filter_seen, bool | np.bool_):
            raise ConfigError(f"filter_seen is {filter_seen!r}, expected True or False.")
        tensors["filter_seen"] = np.full((count, 1), filter_seen, bool)
    return tensors


def listed(filters: dict[str, Any]) -> dict[str, Any]:
    """The same with lists in place of what can be gone through only once."""
    return {
        name: list(given) if isinstance(given, Iterator | Set) else given
        for name, given in filters.items()
    }


def _check_sessions(sessions: Any) -> None:
    expected = 'expected a list of sessions such as [{"item_id": [...]}]'
    if not isinstance(sessions, list | tuple) or not all(isinstance(s, dict) for s in sessions):
        raise ConfigError(f"The sessions are {type(sessions).__name__}, {expected}.")
    if not sessions or not any(ITEM in session for session in sessions):
        raise ConfigError(f"There is no session with an item_id, {expected}.")


def _columns(served: ServedModel, sessions: list[Columns]) -> dict[str, np.ndarray]:
    types = dict(served.types)
    if served.timestamp_type is not None:
        types[TIMESTAMP] = served.timestamp_type
    for session in sessions:
        for name, given in session.items():
            if isinstance(given, str | bytes) or not isinstance(given, Sized):
                raise ConfigError(f"{name} is {given!r}, expected a list of values.")
    separators = {f.name: f.separator for f in served.recipe.multi_valued_features}
    lengths = [len(session.get(ITEM, ())) for session in sessions]
    width = max(lengths, default=0)
    tensors = {}
    for name in {name: None for session in sessions for name in session}:
        if name not in types:
            raise ConfigError(
                f"The model has no column {name!r}. It has: {', '.join(sorted(types))}."
            )
        size = 1 if served.scopes.get(name) == "session" else width
        array = _array((len(sessions), size), types[name])
        for row, session in enumerate(sessions):
            if name not in session:
                continue  # missing throughout
            listed = session[name]
            if name in separators:
                listed = [_joined(values, separators[name]) for values in listed]
            given = _typed(listed, types[name], name)
            expected = size if size == 1 and name != ITEM else lengths[row]
            if len(given) != expected:
                raise ConfigError(
                    f"{name} has {len(given)} values, expected {expected} to go with "
                    f"{lengths[row]} item ids."
                )
            array[row, : len(given)] = given
        tensors[name] = array
    if len(sessions) > 1:
        tensors["length"] = np.array(lengths, np.int32)[:, np.newaxis]
    return tensors


def _joined(given: Any, separator: str) -> Any:
    """Several values of an interaction as the text that holds them, as of a list of Parquet."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        return given
    words = []
    for value in given:
        if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
            continue
        if isinstance(value, float | np.floating) and float(value).is_integer():
            value = int(value)
        words.append(value.decode() if isinstance(value, bytes) else str(value))
    return separator.join(words)


def _ids(given: list[Any], kind: str, name: str, count: int) -> np.ndarray:
    """(B, m), rows filled up with missing ids."""
    lists = id_lists(given, name)
    each = lists is not None
    rows = [_typed(list(ids), kind, name) for ids in (lists or [given])]
    if each and len(rows) != count:
        raise ConfigError(f"{name} has lists for {len(rows)} sessions, expected {count}.")
    array = _array((count, max(1, *map(len, rows))), kind)
    for row in range(count):
        ids = rows[row if each else 0]
        array[row, : len(ids)] = ids
    if name == "candidates" and not all(rows):
        raise ConfigError("candidates is empty, expected item ids. Leave it out for all items.")
    return array


def id_lists(given: Any, name: str) -> list[list[Any]] | None:
    """A list for each session; None if `given` is one for all. ConfigError for what is neither."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigError(f"{name} is {given!r}, expected a list of item ids.")
    lists = [isinstance(v, Iterable) and not isinstance(v, str | bytes) for v in given]
    if not any(lists):
        return None
    if not all(lists):
        raise ConfigError(f"{name} mixes item ids and lists of them. Send a list for each session.")
    return [list(ids) for ids in given]


def _array(shape: tuple[int, int], kind: str) -> np.ndarray:
    return np.full(shape, "" if kind == "string" else MISSING[kind], _NUMPY_TYPES[kind])


def _typed(given: list[Any], kind: str, name: str) -> list[Any]:
    """Values for a tensor; ConfigError for one that has another type."""
    try:
        if kind == "int64":
            return [MISSING_INTEGER if v in (None, "") else _integer(v) for v in given]
        if kind == "float64":
            return [float("nan") if v in (None, "") else float(v) for v in given]
    except (TypeError, ValueError):
        wanted = "whole numbers" if kind == "int64" else "numbers"
        raise ConfigError(f"{name} is {given!r}, expected {wanted}.") from None
    try:
        return ["" if v is None else v.decode() if isinstance(v, bytes) else str(v) for v in given]
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is {given!r}, expected text or bytes of UTF-8.") from None


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    whole = int(value)
    if not -(2**63) <= whole < 2**63:
        raise ValueError(value)
    return whole
