"""Training, validation and test sessions: apart in time, or the last interactions of each.

Sessions stand in the order of their ids, and the interactions of each in that of time.
"""

import numpy as np

from pipeline.core.errors import DataError
from pipeline.recipe.durations import split_seconds
from pipeline.recipe.preprocess import Preprocess

PARTS = ("train", "valid", "test")
LEFT_OUT = len(PARTS)
"""In place of a part's position, of a session that is too short for training."""


def parts_of(recipe: Preprocess) -> list[str]:
    """Names of the parts that the recipe asks for, in the order of `PARTS`."""
    if recipe.split.held_out:
        return [name for name in PARTS if name != "valid" or recipe.split.by == "leave-one-out"]
    return [name for name in PARTS if name == "train" or getattr(recipe.split, name) is not None]


def split_sessions(recipe: Preprocess, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(S,) positions in `PARTS` of all sessions, by when they end (microseconds), or LEFT_OUT.

    Where the last interactions are held out, a session has several parts: then 0 or LEFT_OUT, for
    training. DataError if training or a part that was asked for ends up without a session.
    """
    if recipe.split.held_out:
        return _check_held_out(recipe, lengths)
    order = np.argsort(ends, kind="stable")
    found = np.zeros(len(ends), np.int8)
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
        found[order[first:]] = PARTS.index(name)
        order = order[:first]
    found[(found == 0) & (lengths < recipe.min_session_length)] = LEFT_OUT
    if not (found == 0).any():
        raise DataError(
            f"No session for training: none of {len(order)} has {recipe.min_session_length} "
            "interactions or more. Check `session` or lower `min_session_length`."
        )
    return found


def rows_of(recipe: Preprocess, parts: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Which interactions belong to each part: {name: (N,) bool}, of sessions with these `parts`.

    Where the last interactions are held out, each part has the sessions up to its target: the last
    interaction, or the one before it. Training ends before both, or before the last where there is
    no validation. A session with no more than one interaction beside them has no target to spare:
    it is for training alone, if it is long enough for that.
    """
    if not recipe.split.held_out:
        whole = np.repeat(parts, lengths)
        return {name: whole == PARTS.index(name) for name in parts_of(recipe)}
    count = recipe.split.held_out
    length = np.repeat(lengths, lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(length))  # 1 is the last
    held_out = length > count
    rows = {"train": (np.repeat(parts, lengths) == 0) & ((left > count) | ~held_out)}
    if recipe.split.by == "leave-one-out":
        rows["valid"] = held_out & (left > 1)
    rows["test"] = held_out
    return rows


def _check_held_out(recipe: Preprocess, lengths: np.ndarray) -> np.ndarray:
    count = recipe.split.held_out
    held_out = lengths > count
    if not held_out.any():
        raise DataError(
            f"`split: {recipe.split.by}` needs sessions of {count + 1} interactions; the longest "
            f"of {len(lengths)} has {lengths.max()}. Check `session`, or split by time."
        )
    kept = np.where(held_out, lengths - count, lengths)
    found = np.where(kept >= recipe.min_session_length, 0, LEFT_OUT).astype(np.int8)
    if not (found == 0).any():
        raise DataError(
            f"No session for training: the longest of {len(lengths)} has {lengths.max()} "
            f"interactions, and {recipe.min_session_length} must be left without the last "
            f"{count}. Lower `min_session_length`."
        )
    return found


def _first_of_newest(ends: np.ndarray, share: str | float) -> int:
    """Position in sorted `ends` (microseconds) from which on sessions belong to the newest."""
    seconds, fraction = split_seconds(share)
    if seconds is not None:
        return int(np.searchsorted(ends, ends[-1] - seconds * 1e6, side="right"))
    assert fraction is not None  # noqa: S101
    return len(ends) - max(1, round(len(ends) * fraction))


def _date(microseconds: int) -> str:
    return str(np.datetime64(int(microseconds), "us").astype("datetime64[s]"))
