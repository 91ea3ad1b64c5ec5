"""Training, validation and test sessions: apart in time, or the last interactions of each."""

import numpy as np
import pandas as pd

from pipeline.core.columns import SESSION, TIMESTAMP
from pipeline.core.errors import DataError
from pipeline.core.recipe import Preprocess
from pipeline.core.spans import split_seconds

PARTS = ("train", "valid", "test")


def split(recipe: Preprocess, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Interactions of each part, by the recipe; a part not asked for is absent.

    DataError if training or a part that was asked for ends up without a session.
    """
    match recipe.split.by:
        case "time":
            return temporal_split(recipe, frame)
        case "leave-one-out" | "leave-last-out":
            return last_apart(recipe, frame)


def last_apart(recipe: Preprocess, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each part has the sessions up to its target: the last interaction, or the one before it.

    Training ends before both, or before the last where there is no validation. A session with no
    more than one interaction beside them has no target to spare: it is for training alone, if it
    is long enough for that. DataError if no session has more.
    """
    count = recipe.split.held_out
    # the order in which sessions are read later: by time, and in the order of the rows
    order = np.lexsort((frame[TIMESTAMP].to_numpy(), pd.factorize(frame[SESSION])[0]))
    sessions = frame[SESSION].to_numpy()[order]
    starts = np.flatnonzero(np.concatenate([[True], sessions[1:] != sessions[:-1]]))
    lengths = np.diff(np.append(starts, len(sessions)))
    length, left = np.empty(len(frame), np.int64), np.empty(len(frame), np.int64)
    length[order] = np.repeat(lengths, lengths)
    left[order] = np.repeat(starts + lengths, lengths) - np.arange(len(frame))
    held_out = length > count
    if not held_out.any():
        raise DataError(
            f"`split: {recipe.split.by}` needs sessions of {count + 1} interactions; the longest "
            f"of {len(lengths)} has {lengths.max()}. Check `session`, or split by time."
        )
    kept = np.where(held_out, length - count, length)
    rows = {"train": (kept >= recipe.min_session_length) & ((left > count) | ~held_out)}
    if recipe.split.by == "leave-one-out":
        rows["valid"] = held_out & (left > 1)
    rows["test"] = held_out
    if not rows["train"].any():
        raise DataError(
            f"No session for training: the longest of {len(lengths)} has {lengths.max()} "
            f"interactions, and {recipe.min_session_length} must be left without the last "
            f"{count}. Lower `min_session_length`."
        )
    return {name: frame[chosen].reset_index(drop=True) for name, chosen in rows.items()}


def temporal_split(recipe: Preprocess, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Interactions of each part, by where their session ends; a part not asked for is absent.

    Sessions shorter than the recipe's `min_session_length` are left out of training alone.
    DataError if training or a part that was asked for ends up without a session.
    """
    sessions = frame.groupby(SESSION, sort=True)[TIMESTAMP].agg(["max", "size"])
    ends = sessions["max"].sort_values(kind="stable")
    parts = {}
    for name in ("test", "valid"):
        share = getattr(recipe.split, name)
        if share is None:
            continue
        first = _first_of_newest(ends.to_numpy(), share)
        if first in (0, len(ends)):
            found = "every session" if first == 0 else "no session"
            raise DataError(
                f"`split.{name}: {share}` takes {found}: sessions end between "
                f"{_date(ends.min())} and {_date(ends.max())}. Choose another share."
            )
        parts[name] = ends.index[first:]
        ends = ends.iloc[:first]
    long_enough = sessions.loc[ends.index, "size"] >= recipe.min_session_length
    parts["train"] = ends.index[long_enough.to_numpy()]
    if parts["train"].empty:
        raise DataError(
            f"No session for training: none of {len(ends)} has {recipe.min_session_length} "
            "interactions or more. Check `session` or lower `min_session_length`."
        )
    if len(parts) == 1 and bool(long_enough.all()):
        return {"train": frame}
    codes = {name: frame[SESSION].isin(parts[name]) for name in PARTS if name in parts}
    return {name: frame[rows].reset_index(drop=True) for name, rows in codes.items()}


def _first_of_newest(ends: np.ndarray, share: str | float) -> int:
    """Position in sorted `ends` (microseconds) from which on sessions belong to the newest."""
    seconds, fraction = split_seconds(share)
    if seconds is not None:
        return int(np.searchsorted(ends, ends[-1] - seconds * 1e6, side="right"))
    assert fraction is not None  # noqa: S101
    return len(ends) - max(1, round(len(ends) * fraction))


def _date(microseconds: int) -> str:
    return str(np.datetime64(int(microseconds), "us").astype("datetime64[s]"))
