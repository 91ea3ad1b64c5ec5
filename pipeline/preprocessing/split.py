"""Split into train, valid and test sessions, or by the last interactions of each session.

Sessions are sorted by id, and their interactions by time.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pandas.util import hash_array

from pipeline.core.columns import SESSION, SPLIT
from pipeline.core.errors import DataError
from pipeline.data import values
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.durations import split_seconds
from pipeline.recipe.preprocess import Preprocess

PARTS = ("train", "valid", "test")
LEFT_OUT = len(PARTS)
"""Part number of a session that is too short for training."""


def parts_of(recipe: Preprocess) -> list[str]:
    """Names of the parts that the recipe asks for, in the order of `PARTS`."""
    if recipe.split.held_out:
        return [name for name in PARTS if name != "valid" or recipe.split.by == "leave-one-out"]
    return [name for name in PARTS if name == "train" or getattr(recipe.split, name) is not None]


def split_keys(
    recipe: Preprocess, table: pa.Table, starts: NDArray[Any], report: RowCounts
) -> NDArray[Any] | None:
    """(S,) keys that determine the part of each session; None for a split by time.

    A key is a number from 0 to 1, the hash of the session or user, or the index in `PARTS` of the
    value of the recipe's column in the last interaction.
    """
    if recipe.split.by not in ("random", "user", "column"):
        return None
    ends = np.append(starts[1:], table.num_rows)[: len(starts)] - 1
    if recipe.split.by == "column":
        column = values.to_array(table[SPLIT])
        marks = [recipe.split.valid, recipe.split.test]
        names = pa.array([None if mark is None else str(mark) for mark in marks], pa.string())
        part = pc.fill_null(pc.index_in(column, value_set=names), -1).to_numpy() + 1
        part = np.where(column.is_valid().to_numpy(zero_copy_only=False), part, 0)
        session = np.repeat(np.arange(len(starts)), ends + 1 - starts)
        mixed = np.unique(session[part != part[ends][session]])
        report.warnings["sessions with rows of several parts, of which the last counts"] += len(
            mixed
        )
        return part[ends]
    sessions = values.as_text(values.to_array(table[SESSION]).take(pa.array(ends)))
    texts = sessions
    if recipe.split.by == "user":  # a session without a user has its own hash
        users = values.to_array(table[SPLIT]).take(pa.array(ends))
        texts = pc.coalesce(users, sessions)
    hashes = hash_array(
        texts.to_numpy(zero_copy_only=False), hash_key=f"{recipe.split.seed:016d}"[-16:]
    )
    return hashes / 2.0**64


def split_sessions(
    recipe: Preprocess,
    ends: NDArray[Any],
    lengths: NDArray[Any],
    keys: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """(S,) part number of each session, its index in `PARTS` or LEFT_OUT.

    `ends` (S,) are microseconds, `lengths` (S,) interactions, `keys` (S,) the result of
    `split_keys`. If the last interactions are held out, a session belongs to several parts, and its
    number is 0 or LEFT_OUT. DataError if training or a part of the recipe has no session.
    """
    if recipe.split.held_out:
        return _split_held_out(recipe, lengths)
    part = _split_by_time(recipe, ends) if keys is None else _split_by_keys(recipe, keys)
    num_training = int((part == 0).sum())
    part[(part == 0) & (lengths < recipe.min_session_length)] = LEFT_OUT
    if not (part == 0).any():
        raise DataError(
            f"No session for training: none of {num_training} has {recipe.min_session_length} "
            f"interactions or more{_left_by_repeats(recipe)}. Check `session` or lower "
            "`min_session_length`."
        )
    return part


def _split_by_keys(recipe: Preprocess, keys: NDArray[Any]) -> NDArray[Any]:
    """Part numbers by a fraction of the keys, or the keys themselves for a split by column."""
    split = recipe.split
    if split.by == "column":
        part = keys.astype(np.int8)
    else:
        test, valid = (float(share or 0) for share in (split.test, split.valid))
        part = np.zeros(len(keys), np.int8)
        part[keys >= (1 - test) * (1 - valid)] = PARTS.index("valid")
        part[keys >= 1 - test] = PARTS.index("test")
    for name in parts_of(recipe):
        if not (part == PARTS.index(name)).any():
            share = f"`split.{name}: {getattr(split, name)}`" if name != "train" else "training"
            raise DataError(
                f"No session of {len(keys)} is for {share}, by {split.by}. Choose other shares or "
                "another seed."
                if split.by != "column"
                else f"No session of {len(keys)} is for {share} by the column {split.column!r}."
            )
    return part


def _split_by_time(recipe: Preprocess, ends: NDArray[Any]) -> NDArray[Any]:
    order = np.argsort(ends, kind="stable")
    part = np.zeros(len(ends), np.int8)
    for name in ("test", "valid"):
        share = getattr(recipe.split, name)
        if share is None:
            continue
        first = _first_of_newest(ends[order], share)
        if first in (0, len(order)):
            taken = "every session" if first == 0 else "no session"
            raise DataError(
                f"`split.{name}: {share}` takes {taken}: sessions end between "
                f"{_date(ends[order[0]])} and {_date(ends[order[-1]])}. Choose another share, "
                "or leave `split` out for a log that is for training alone."
            )
        part[order[first:]] = PARTS.index(name)
        order = order[:first]
    return part


def _left_by_repeats(recipe: Preprocess) -> str:
    return " after `drop_repeats`" if recipe.drop_repeats else ""


def rows_of(
    recipe: Preprocess, parts: NDArray[Any], lengths: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """(N,) bool mask of the interactions of each part, by name.

    `parts` (S,) are the part numbers of `split_sessions`. If the last interactions are held out,
    each part has the sessions up to its target: the last interaction, or the one before it.
    Training ends before both, or before the last one without validation. A session of no more
    interactions than are held out is for training alone.
    """
    if not recipe.split.held_out:
        whole = np.repeat(parts, lengths)
        return {name: whole == PARTS.index(name) for name in parts_of(recipe)}
    count = recipe.split.held_out
    length = np.repeat(lengths, lengths)
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(length))  # 1 is the last
    held_out = length > count
    rows = {"train": (np.repeat(parts, lengths) == 0) & ((from_end > count) | ~held_out)}
    if recipe.split.by == "leave-one-out":
        rows["valid"] = held_out & (from_end > 1)
    rows["test"] = held_out
    return rows


def _split_held_out(recipe: Preprocess, lengths: NDArray[Any]) -> NDArray[Any]:
    count = recipe.split.held_out
    held_out = lengths > count
    if not held_out.any():
        raise DataError(
            f"`split: {recipe.split.by}` needs sessions of {count + 1} interactions; the longest "
            f"of {len(lengths)} has {lengths.max()}. Check `session`, or split by time."
        )
    kept = np.where(held_out, lengths - count, lengths)
    part = np.where(kept >= recipe.min_session_length, 0, LEFT_OUT).astype(np.int8)
    if not (part == 0).any():
        raise DataError(
            f"No session for training: the longest of {len(lengths)} has {lengths.max()} "
            f"interactions, and {recipe.min_session_length} must be left without the last "
            f"{count}. Lower `min_session_length`."
        )
    return part


def _first_of_newest(ends: NDArray[Any], share: str | float) -> int:
    """Position in sorted `ends` (microseconds) of the first session of the newest `share`."""
    seconds, fraction = split_seconds(share)
    if seconds is not None:
        return int(np.searchsorted(ends, ends[-1] - seconds * 1e6, side="right"))
    assert fraction is not None  # noqa: S101
    return len(ends) - max(1, round(len(ends) * fraction))


def _date(microseconds: int) -> str:
    return str(np.datetime64(int(microseconds), "us").astype("datetime64[s]"))
