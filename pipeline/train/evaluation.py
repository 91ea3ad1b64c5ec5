"""Ranks of the items that came next, in the full catalogue.

Each target is predicted from the interactions before it in its session, the newest L of them, as
a server would. A model that looks back alone gives all positions of a window in one pass; one
that looks both ways gets a row for each target.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY
from pipeline.model.model import Model
from pipeline.train.loader import RaggedBatch

Positions = Literal["all", "last"]
_SCORES_IN_FLIGHT = 16_000_000
"""Scores held at a time, 64 MB in float32: memory must not grow with sessions times items."""


class Windows(NamedTuple):
    """Rows to evaluate, all (W,)."""

    rows: Tensor
    """Session of the batch."""
    starts: Tensor
    """First interaction of the window."""
    stops: Tensor
    """One past its last, which is the (last) target."""
    every: Tensor
    """bool: whether all positions but the first are targets, or the last alone."""


class Ranked(NamedTuple):
    """Targets with their ranks, all (N,), in the order of sessions and positions."""

    ranks: np.ndarray
    """1-based; an unknown target is behind the whole catalogue."""
    targets: np.ndarray
    """Item indices."""


def evaluation_windows(
    lengths: Tensor, longest: int, positions: Positions, *, causal: bool
) -> Windows:
    """Windows of sessions of `lengths` (B,): each target has its newest `longest` before it.

    A session of one interaction has no target and gets no window.
    """
    rows, starts, stops, every = [], [], [], []
    for row, length in enumerate(lengths.tolist()):
        if length < 2:
            continue
        if positions == "last":
            ends = [length]
        elif causal:
            # the first window answers for the first `longest` targets at once
            first = min(length, longest + 1)
            rows.append(row)
            starts.append(0)
            stops.append(first)
            every.append(True)
            ends = list(range(first + 1, length + 1))
        else:
            ends = list(range(2, length + 1))
        rows += [row] * len(ends)
        starts += [max(0, end - 1 - longest) for end in ends]
        stops += ends
        every += [False] * len(ends)
    device = lengths.device
    return Windows(
        torch.tensor(rows, dtype=torch.int64, device=device),
        torch.tensor(starts, dtype=torch.int64, device=device),
        torch.tensor(stops, dtype=torch.int64, device=device),
        torch.tensor(every, dtype=torch.bool, device=device),
    )


@torch.inference_mode()
def rank_targets(
    model: Model, batches: Iterable[RaggedBatch], positions: Positions, batch_size: int = 512
) -> Ranked:
    """Rank every target of `batches`. The model's mode and device are its caller's."""
    device = next(model.parameters()).device
    longest = model.inputs.max_sequence_length
    ranks: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for batch in batches:
        windows = evaluation_windows(
            batch.lengths, longest or 2**31, positions, causal=model.causal
        )
        for part in _chunks(windows, batch_size):
            rows = batch.window(part.rows, part.starts, part.stops).to(device)
            found = model.at_targets(rows)
            wanted = part.every.to(device)[found.rows] | found.is_last
            ranks.append(_ranks(model, found.hidden[wanted], found.targets[wanted]).cpu().numpy())
            targets.append(found.targets[wanted].cpu().numpy())
    empty = np.empty(0, np.int64)
    return Ranked(np.concatenate([empty, *ranks]), np.concatenate([empty, *targets]))


def _chunks(windows: Windows, size: int) -> Iterator[Windows]:
    for first in range(0, windows.rows.numel(), size):
        yield Windows(*(part[first : first + size] for part in windows))


def _ranks(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """(T, D), (T,) -> (T,) ranks, by counting: no sort, no one-hot.

    An item with the target's score counts as ahead of it.
    """
    num_items = model.inputs.item_table.num_embeddings - FIRST_ITEM
    step = max(1, _SCORES_IN_FLIGHT // max(1, num_items))
    ranks = []
    for first in range(0, targets.numel(), step):
        scores = model.scores(hidden[first : first + step])[:, FIRST_ITEM:]
        known = targets[first : first + step] >= FIRST_ITEM
        columns = (targets[first : first + step] - FIRST_ITEM).clamp(min=0)
        own = scores.gather(1, columns.unsqueeze(1))  # (step, 1)
        # not `>=`: a score that is not a number must not count as worse
        ahead = (~(scores < own)).sum(1)
        ranks.append(torch.where(known, ahead, num_items + 1))
    return torch.cat(ranks) if ranks else targets.new_empty(0)


class Prefixes(NamedTuple):
    """What comes before each target, ragged."""

    values: np.ndarray
    """Item indices of all prefixes, one after the other, oldest first."""
    offsets: np.ndarray
    """(N + 1,) where each begins."""
    targets: np.ndarray
    """(N,) item indices."""


def prefixes(
    values: np.ndarray, offsets: np.ndarray, positions: Positions, longest: int
) -> Prefixes:
    """Ragged sessions -> the same targets in the same order as `rank_targets`."""
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    ends = np.repeat(offsets[1:], np.diff(offsets))
    where = np.arange(len(values))
    wanted = (where > starts) & (values >= OUT_OF_VOCABULARY)
    if positions == "last":
        wanted &= where == ends - 1
    where = where[wanted]
    first = np.maximum(starts[wanted], where - longest)
    lengths = where - first
    new_offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(new_offsets[-1]) - np.repeat(new_offsets[:-1], lengths)
    return Prefixes(values[np.repeat(first, lengths) + within], new_offsets, values[where])
