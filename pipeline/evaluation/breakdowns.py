"""Groups of targets, for metrics by session length, popularity, novelty and time."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.sessions import Interactions
from pipeline.data.times import are_dates
from pipeline.evaluation.targets import Positions, target_positions

_LENGTHS = (1, 2, 3, 4, 6, 10, 20)
"""Lower bounds of the groups by number of interactions before the target."""
_HOURS = 6
"""Width of the groups by hour of the day."""
_MOST_DAYS = 31
_MICROSECONDS_A_DAY = 86_400_000_000


class Targets(NamedTuple):
    """N targets, in the order of sessions and positions."""

    items: NDArray[Any]
    """(N,) item indices."""
    sessions: NDArray[Any]
    """(N,) session of each target, ascending."""
    num_before: NDArray[Any]
    """(N,) interactions before the target in its session, including those that no model reads."""
    repeated: NDArray[Any]
    """(N,) bool: whether the item is among the interactions before."""
    after_unknown: NDArray[Any]
    """(N,) bool: whether an unknown or missing item is among the interactions before."""
    times: NDArray[Any]
    """(N,) times of the targets, see `Interactions`."""


class Group(NamedTuple):
    """A group of targets."""

    label: str
    members: NDArray[Any]
    """(N,) bool."""


def describe_targets(interactions: Interactions, positions: Positions) -> Targets:
    """The targets of `rank_targets` in the same order, with properties of their prefixes."""
    values, offsets, times = interactions
    where = target_positions(values, offsets, positions)
    session = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    starts = offsets[session[where]]
    # the first of equal items of a session is not a repetition
    order = np.lexsort((np.arange(len(values)), values, session))
    same = (np.diff(session[order]) == 0) & (np.diff(values[order]) == 0)
    repeated = np.zeros(len(values), bool)
    repeated[order[1:]] = same
    unknown = np.concatenate([[0], np.cumsum(values < FIRST_ITEM)])
    return Targets(
        items=values[where],
        sessions=session[where],
        num_before=where - starts,
        repeated=repeated[where],
        after_unknown=unknown[where] > unknown[starts],
        times=times[where],
    )


def break_down(
    targets: Targets, item_counts: NDArray[Any], *, by_time: bool
) -> dict[str, list[Group]]:
    """Return at least two non-empty groups of targets per criterion, by its name.

    `item_counts` (items,) are training interactions. `by_time` is true if targets have times; times
    that are step counters, not dates, make no groups.
    """
    in_catalogue = targets.items >= FIRST_ITEM
    # -1 for an unknown item, which has no count
    counts = np.where(in_catalogue, item_counts[np.maximum(targets.items - FIRST_ITEM, 0)], -1)
    groups = {
        "interactions before the target": _by_length(targets.num_before),
        "popularity of the target": _by_popularity(counts, item_counts),
        "target": [
            Group("seen in training", counts > 0),
            Group("in the catalogue, in no training session", counts == 0),
            Group("unknown", counts < 0),
        ],
        "items before": [
            Group("all known", ~targets.after_unknown),
            Group("one or more unknown", targets.after_unknown),
        ],
        "known target": [
            Group("first time in the session", in_catalogue & ~targets.repeated),
            Group("seen before in the session", in_catalogue & targets.repeated),
        ],
    }
    if by_time and are_dates(int(targets.times.max(initial=0))):
        groups["hour of the day (UTC)"] = _by_hour(targets.times)
        groups["day (UTC)"] = _by_day(targets.times)
    filled = {name: [g for g in by_name if g.members.any()] for name, by_name in groups.items()}
    return {name: by_name for name, by_name in filled.items() if len(by_name) > 1}


def popularity_bounds(item_counts: NDArray[Any]) -> tuple[int, int]:
    """(items,) training interactions -> minimum count of head items, and of middle items.

    Head, middle and tail have about a third of the interactions each; items with equal counts are
    in one group.
    """
    falling = np.sort(item_counts[item_counts > 0])[::-1]
    if not len(falling):
        return 1, 1
    before = np.cumsum(falling) - falling
    thirds = np.searchsorted(before, falling.sum() * np.array([1, 2]) / 3) - 1
    head, middle = falling[thirds].tolist()
    return head, middle


def _by_length(num_before: NDArray[Any]) -> list[Group]:
    groups = []
    for first, following in zip(_LENGTHS, (*_LENGTHS[1:], None), strict=True):
        members = num_before >= first
        label = f"{first} or more"
        if following is not None:
            members &= num_before < following
            label = f"{first}" if following == first + 1 else f"{first} to {following - 1}"
        groups.append(Group(label, members))
    return groups


def _by_popularity(counts: NDArray[Any], item_counts: NDArray[Any]) -> list[Group]:
    """Head, middle and tail: about a third of the training interactions each."""
    if not item_counts.any():
        return []
    head, middle = popularity_bounds(item_counts)
    bounds = [("head", head, None), ("middle", middle, head), ("tail", 1, middle)]
    groups = []
    for name, least, above in bounds:
        members, items = counts >= least, item_counts >= least
        seen = f"{least:,} times or more"
        if above is not None:
            members, items = members & (counts < above), items & (item_counts < above)
            seen = f"{least:,} to {above - 1:,} times"
            if above == least + 1:
                seen = "once" if least == 1 else f"{least:,} times"
        groups.append(Group(f"{name}: {int(items.sum()):,} items seen {seen}", members))
    return groups


def _by_hour(times: NDArray[Any]) -> list[Group]:
    hours = times % _MICROSECONDS_A_DAY * 24 // _MICROSECONDS_A_DAY
    return [
        Group(f"{first:02}:00 to {first + _HOURS - 1:02}:59", hours // _HOURS == first // _HOURS)
        for first in range(0, 24, _HOURS)
    ]


def _by_day(times: NDArray[Any]) -> list[Group]:
    days = times // _MICROSECONDS_A_DAY
    unique_days = np.unique(days)
    if len(unique_days) > _MOST_DAYS:
        return []
    return [Group(str(np.datetime64(int(day), "D")), days == day) for day in unique_days]
