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
from pipeline.model import ranking_metric
from pipeline.model.model import Model
from pipeline.train.loader import RaggedBatch
from pipeline.train.metrics import Ranked
from pipeline.train.seen import hide_seen, target_places

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
    model: Model,
    batches: Iterable[RaggedBatch],
    positions: Positions,
    batch_size: int = 512,
    *,
    list_lengths: tuple[int, ...] = (),
    filter_seen: bool = False,
) -> Ranked:
    """Rank every target of `batches`, and count what stands in lists of `list_lengths`.

    What came before a target in its session is not ranked if `filter_seen`. A list that is longer
    than the catalogue holds all of it. The model's mode and device are its caller's.
    """
    device = next(model.parameters()).device
    num_items = model.inputs.item_table.num_embeddings - FIRST_ITEM
    ranks = [torch.empty(0, dtype=torch.int64)]
    targets = [torch.empty(0, dtype=torch.int64)]
    exposure = torch.zeros(len(list_lengths), num_items, dtype=torch.int64, device=device)
    for scores, items in _scored_targets(model, batches, positions, batch_size, filter_seen):
        ranks.append(ranking_metric.ranks(scores, items - FIRST_ITEM).cpu())
        targets.append(items.cpu())
        if list_lengths:
            best = torch.topk(scores, min(max(list_lengths), num_items)).indices
            for counts, length in zip(exposure, list_lengths, strict=True):
                shown = best[:, :length].reshape(-1)
                counts.index_add_(0, shown, torch.ones_like(shown))
    return Ranked(torch.cat(ranks).numpy(), torch.cat(targets).numpy(), exposure.cpu().numpy())


def _scored_targets(
    model: Model,
    batches: Iterable[RaggedBatch],
    positions: Positions,
    batch_size: int,
    filter_seen: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(T, items) scores with (T,) targets, few enough at a time that memory does not grow."""
    device = next(model.parameters()).device
    longest = model.inputs.max_sequence_length
    num_items = model.inputs.item_table.num_embeddings - FIRST_ITEM
    step = max(1, _SCORES_IN_FLIGHT // max(1, num_items))
    for batch in batches:
        windows = evaluation_windows(
            batch.lengths, longest or 2**31, positions, causal=model.causal
        )
        for part in _chunks(windows, batch_size):
            window = batch.window(part.rows, part.starts, part.stops)
            rows = window.to(device)
            found = model.at_targets(rows)
            wanted = part.every.to(device)[found.rows] | found.is_last
            hidden, targets = found.hidden[wanted], found.targets[wanted]
            sessions, places = target_places(
                window.features[model.inputs.item],
                part.rows, part.starts, part.stops - part.starts, part.every,
            )  # fmt: skip
            for first in range(0, targets.numel(), step):
                scores = model.scores(hidden[first : first + step])[:, FIRST_ITEM:]
                if filter_seen:
                    chunk = slice(first, first + step)
                    scores = hide_seen(
                        scores, batch, model.inputs.item, sessions[chunk], places[chunk]
                    )
                yield scores, targets[first : first + step]


def _chunks(windows: Windows, size: int) -> Iterator[Windows]:
    for first in range(0, windows.rows.numel(), size):
        yield Windows(*(part[first : first + size] for part in windows))


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
