"""Ranks of the true next items in the full catalogue.

Each target is predicted from the newest L interactions before it in its session, as by a server. A
causal model ranks all positions of a window in one pass; a bidirectional model needs one row per
target.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY
from pipeline.data.loader import RaggedBatch, SessionLoader
from pipeline.evaluation.metrics import Ranked
from pipeline.evaluation.ranking import RankedRows, Seen, rank_by_scores, rank_in_catalogue
from pipeline.model.model import Model

Positions = Literal["all", "last"]


class Windows(NamedTuple):
    """Windows of sessions to evaluate, all fields (W,)."""

    rows: Tensor
    """Session of the batch."""
    starts: Tensor
    """First interaction of the window."""
    stops: Tensor
    """End of the window, exclusive; its last interaction is the (last) target."""
    every: Tensor
    """bool: whether all positions except the first are targets, or only the last."""


def evaluation_windows(
    lengths: Tensor, longest: int, positions: Positions, *, causal: bool
) -> Windows:
    """Windows of sessions of `lengths` (B,), with the newest `longest` interactions before each
    target.

    A session of one interaction has no target and gets no window.
    """
    targets = (lengths.to(torch.int64) - 1).clamp(min=0)
    # all positions of the first window are targets
    first = targets.clamp(max=longest if causal else 1)
    if positions == "last":
        first, windows = targets, targets.clamp(max=1)
    else:
        windows = torch.where(targets > 0, targets - first + 1, 0)
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(windows)
    nth = torch.arange(len(rows), device=lengths.device) - (windows.cumsum(0) - windows)[rows]
    stops = first[rows] + 1 + nth
    starts = (stops - 1 - longest).clamp(min=0)
    every = (nth == 0) & (positions == "all") & causal
    return Windows(rows, starts, stops, every)


def evaluation_loader(
    data: Path,
    part: str,
    model: Model,
    batch_size: int,
    *,
    indices: Mapping[str, NDArray[Any]] | None = None,
    with_loss: bool = False,
) -> SessionLoader:
    """Loader of a part in file order, with the target columns of the model.

    With `with_loss` it reads columns of the loss too. `indices` are those of `Run.index_mapping`.
    """
    return SessionLoader(
        data,
        part,
        item=model.inputs.item,
        features=model.training_columns if with_loss else model.columns,
        batch_size=batch_size,
        indices=indices,
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
    keep_lists: bool = False,
) -> Ranked:
    """Rank every target of `batches`; count the lists of each of `list_lengths` with each item.

    `keep_lists` keeps the longest lists, in CPU memory. `filter_seen` excludes all interactions
    before a target, also those that the model does not read, from its ranking. A list longer than
    the catalogue holds all items. The caller sets the mode and the device of the model. Memory is
    that of a batch and the ranks.
    """
    device = model.device
    catalogue = model.items()  # (items, W)
    # on the device until the end, as each copy would synchronize it
    ranks = [torch.empty(0, dtype=torch.int64, device=device)]
    targets = [torch.empty(0, dtype=torch.int64, device=device)]
    exposure = torch.zeros(len(list_lengths), len(catalogue), dtype=torch.int64, device=device)
    longest = min(max(list_lengths, default=0), len(catalogue))
    lists = [torch.empty(0, longest, dtype=torch.int32)]
    for batch in batches:
        seen = seen_before(batch, model.inputs.item, positions, device) if filter_seen else None
        hidden, items = hidden_at_targets(model, batch, positions, batch_size)
        ranked = rank_queries(
            model,
            model.queries(hidden),
            catalogue,
            items - FIRST_ITEM,
            max(list_lengths, default=0),
            seen=seen,
        )
        ranks.append(ranked.ranks)
        targets.append(items)
        if keep_lists:
            lists.append(ranked.best.to("cpu", torch.int32))
        for counts, length in zip(exposure, list_lengths, strict=True):
            shown = ranked.best[:, :length].reshape(-1)
            if filter_seen:
                shown = shown[shown >= 0]
            counts.index_add_(0, shown, torch.ones_like(shown))
    every = torch.cat(ranks).cpu(), torch.cat(targets).cpu(), exposure.cpu()
    result = Ranked(*(column.numpy() for column in every))
    return result._replace(lists=torch.cat(lists).numpy()) if keep_lists else result


def rank_queries(
    model: Model,
    queries: Tensor,
    catalogue: Tensor,
    targets: Tensor,
    list_length: int = 0,
    *,
    seen: Seen | None = None,
) -> RankedRows:
    """Rank (T,) targets, 0..V-1 or negative, by the scores of (T, Q) `queries`.

    `catalogue` is `model.items()`.
    """
    if model.scores_whole_catalogue:
        return rank_by_scores(
            queries,
            targets,
            len(catalogue),
            list_length,
            score=lambda chunk: model.score(chunk, catalogue.T),
            highest=model.highest,
            seen=seen,
        )
    return rank_in_catalogue(queries, catalogue, targets, list_length, seen=seen, score=model.score)


def seen_before(batch: RaggedBatch, item: str, positions: Positions, device: torch.device) -> Seen:
    """Items before each target of a batch, in the order of `hidden_at_targets`."""
    values = batch.sequences[item].cpu().to(torch.int64)
    offsets = batch.offsets.cpu().to(torch.int64).numpy()
    stops = target_positions(values.numpy(), offsets, positions)
    starts = np.repeat(offsets[:-1], np.diff(offsets))[stops]
    columns = values - FIRST_ITEM, torch.from_numpy(starts), torch.from_numpy(stops)
    return Seen(*(column.to(device) for column in columns))


def hidden_at_targets(
    model: Model, batch: RaggedBatch, positions: Positions, batch_size: int = 512
) -> tuple[Tensor, Tensor]:
    """Return (T, D) hidden states and (T,) targets of a batch, in the order of its sessions."""
    device = model.device
    longest = model.inputs.max_sequence_length or 2**31
    windows = evaluation_windows(batch.lengths, longest, positions, causal=model.causal)
    if not len(windows.rows):
        return torch.empty(0, model.query_width, device=device), windows.rows.to(device)
    parts = []
    # windows of similar lengths share a batch, to reduce padding
    for chosen in (windows.stops - windows.starts).argsort(stable=True).split(batch_size):
        part = Windows(*(column[chosen] for column in windows))
        output = model.at_targets(batch.window(part.rows, part.starts, part.stops).to(device))
        is_target = part.every.to(device)[output.rows] | output.is_last
        numbers = chosen.to(device)[output.rows[is_target]]
        parts.append((output.hidden[is_target], output.targets[is_target], numbers))
    hidden, targets, numbers = (torch.cat(column) for column in zip(*parts, strict=True))
    order = numbers.argsort(stable=True)
    return hidden[order], targets[order]


class Prefixes(NamedTuple):
    """Interactions before each target, ragged."""

    values: NDArray[Any]
    """Item indices of all prefixes, concatenated, oldest first."""
    offsets: NDArray[Any]
    """(N + 1,) start of each prefix in `values`."""
    targets: NDArray[Any]
    """(N,) item indices."""


def target_positions(
    values: NDArray[Any], offsets: NDArray[Any], positions: Positions
) -> NDArray[Any]:
    """Ragged sessions -> (N,) positions in `values` of the targets of `rank_targets`, in order."""
    index = np.arange(len(values))
    is_target = values >= OUT_OF_VOCABULARY
    if positions == "last":
        is_target &= index == np.repeat(offsets[1:], np.diff(offsets)) - 1
    is_target &= index > np.repeat(offsets[:-1], np.diff(offsets))
    return index[is_target]


def prefixes(
    values: NDArray[Any], offsets: NDArray[Any], positions: Positions, longest: int
) -> Prefixes:
    """Ragged sessions -> prefixes of the targets of `rank_targets`, in the same order."""
    index = target_positions(values, offsets, positions)
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    first = np.maximum(starts[index], index - longest)
    lengths = index - first
    new_offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(new_offsets[-1]) - np.repeat(new_offsets[:-1], lengths)
    return Prefixes(values[np.repeat(first, lengths) + within], new_offsets, values[index])
