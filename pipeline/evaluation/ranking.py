"""Ranks of targets in a catalogue of any size, and the best items, from chunks of scores.

Neither a sort nor a (T, V) matrix is needed: a chunk fits a core's cache, is compared with the
targets' scores, and is overwritten by the next. On one core, with 200,000 items of width 128,
chunks of 256 x 2,048 scores (2 MiB) rank 1,760 targets per second, where the products alone
reach 2,000; chunks of 16 MiB rank 1,420.

Letters: T targets, V items of the catalogue, Q and W width of queries and items, K length of a
list.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.model.device import device_chunk_bytes
from pipeline.model.ops.shards import Shards

_SCORES = {"cpu": 1 << 19}
"""Scores per chunk. A GPU needs larger chunks, see `device_chunk_bytes`."""
_WIDTHS = {"cpu": 2048, "cuda": 1 << 15}
"""Items per chunk."""


Score = Callable[[Tensor, Tensor], Tensor]
"""(T, Q) queries, (W, C) items -> (T, C) independent scores: inner products or `Model.score`."""


class Seen(NamedTuple):
    """Items excluded from the ranking of each of T targets: a slice of (N,) items."""

    items: Tensor
    """(N,) 0..V-1, negative for reserved indices."""
    starts: Tensor
    """(T,) first position of the slice."""
    stops: Tensor
    """(T,) end of the slice, exclusive."""


class RankedRows(NamedTuple):
    """Ranks of T targets, and their lists."""

    ranks: Tensor
    """(T,) int64, 1 is best; V + 1 for a target outside the catalogue."""
    best: Tensor
    """(T, K) items, best first, -1 after the end; K is 0 if no list is needed."""


def rank_in_catalogue(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    list_length: int = 0,
    *,
    seen: Seen | None = None,
    score: Score = torch.matmul,
) -> RankedRows:
    """(T, Q) queries, (V, W) items, (T,) targets -> ranks and the best `list_length` items.

    A target is 0..V-1, or negative outside the catalogue. Its rank is the number of items that do
    not score less, itself included: ties and NaN count against it. A list longer than the catalogue
    holds all items; equal scores are in any order. Items in `seen` rank after every target and are
    in no list; a target in `seen` has rank V, as it is never recommended.
    """
    width = min(_WIDTHS.get(queries.device.type, _WIDTHS["cuda"]), len(items))
    scores = _scores_of_chunk(queries.device)
    step = max(1, scores // max(1, width))
    if width < len(items):
        step = min(step, width)  # the targets' scores are computed in a chunk as well
    parts = [
        _rank_rows(
            queries[first : first + step],
            targets[first : first + step],
            items,
            width,
            min(list_length, len(items)),
            score,
            None if seen is None else _entries(seen, slice(first, first + step)),
        )
        for first in range(0, max(1, len(targets)), step)
    ]
    return RankedRows(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def rank_by_scores(
    queries: Tensor,
    targets: Tensor,
    num_items: int,
    list_length: int = 0,
    *,
    score: Callable[[Tensor], Tensor],
    highest: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    seen: Seen | None = None,
) -> RankedRows:
    """Return the ranks and lists of `rank_in_catalogue` from scores of the whole catalogue.

    `score` computes (t, V) scores of (t, Q) queries, a few rows at a time, and `highest` selects
    their `list_length` best columns.
    """
    step = max(1, _scores_of_chunk(queries.device) * 8 // num_items)
    ranks, best = [targets[:0]], [targets.new_empty(0, min(list_length, num_items))]
    for first in range(0, len(targets), step):
        chunk = slice(first, first + step)
        scores, own_targets = score(queries[chunk]), targets[chunk]
        if seen is not None:
            rows, items = _entries(seen, chunk)
            scores[rows, items] = float("-inf")
        own = scores.gather(1, own_targets.clamp(min=0).unsqueeze(1))
        ahead = (~(scores < own)).sum(1)
        ranks.append(torch.where(own_targets >= 0, ahead, num_items + 1))
        if list_length:
            values, columns = highest(scores, min(list_length, num_items))
            best.append(columns.masked_fill(values.isneginf(), -1))
    return RankedRows(torch.cat(ranks), torch.cat(best))


def rank_in_shards(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    shards: Shards,
    *,
    seen: Seen | None = None,
) -> Tensor:
    """Return ranks of `rank_in_catalogue` for queries and items sharded over processes. Collective.

    (n, E) queries and (n,) targets of this process, in the whole catalogue, and the items of this
    process -> (T,) ranks of the targets of all processes, by rank of the process.
    """
    sizes = shards.sizes(len(targets))
    queries, targets = shards.gather(queries, sizes), shards.gather(targets, sizes)
    first = max(0, shards.first - FIRST_ITEM)
    local = torch.where(shards.owns(targets + FIRST_ITEM) & (targets >= 0), targets - first, -1)
    fewest = min(b - max(a, FIRST_ITEM) for a, b in pairwise(shards.bounds))
    # equal widths in all processes round scores equally
    width = min(_WIDTHS.get(queries.device.type, _WIDTHS["cuda"]), fewest)
    scores = _scores_of_chunk(queries.device)
    step = max(1, min(width, scores // width))
    if seen is not None:
        rows, seen_items = _entries(seen, slice(None))
        counts = shards.sizes(len(rows))
        rows = shards.gather(rows + sum(sizes[: shards.rank]), counts)
        seen_items = shards.gather(seen_items, counts)
    behind = torch.zeros_like(targets)
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        own = _own_scores(queries[part], items, local[part].clamp(min=0), width, torch.matmul)
        own = shards.sum(torch.where(local[part].unsqueeze(1) >= 0, own, 0))
        entries = None
        if seen is not None:
            inside = (rows >= start) & (rows < start + step)
            part_rows, part_items = rows[inside] - start, seen_items[inside]
            own[part_rows[targets[part][part_rows] == part_items]] = float("-inf")
            mine = shards.owns(part_items + FIRST_ITEM)
            order = part_items[mine].argsort()
            entries = part_rows[mine][order], part_items[mine][order] - first
        behind[part] = _count_behind(
            queries[part], local[part], own, items, width, torch.matmul, entries
        )
    behind = shards.sum(behind)
    num_items = shards.num_rows - FIRST_ITEM
    return torch.where(targets >= 0, num_items - behind, num_items + 1)


def _scores_of_chunk(device: torch.device) -> int:
    return _SCORES.get(device.type) or device_chunk_bytes(device) // 4


def _entries(seen: Seen, chunk: slice) -> tuple[Tensor, Tensor]:
    """Rows of a chunk of targets and their seen items, both (entries,), sorted by item."""
    starts, stops = seen.starts[chunk], seen.stops[chunk]
    lengths = stops - starts
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    nth = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
    items = seen.items[starts[rows] + nth].to(torch.int64)
    rows, items = rows[items >= 0], items[items >= 0]
    order = items.argsort()
    return rows[order], items[order]


def _rank_rows(
    queries: Tensor,
    targets: Tensor,
    items: Tensor,
    width: int,
    list_length: int,
    score: Score,
    seen: tuple[Tensor, Tensor] | None,
) -> RankedRows:
    """Return the ranks and lists of targets that share each chunk of `width` items."""
    own = _own_scores(queries, items, targets.clamp(min=0), width, score)  # (T, 1)
    if seen is not None:
        seen_rows, seen_items = seen
        own[seen_rows[targets[seen_rows] == seen_items]] = float("-inf")
    best = _Best(queries, list_length)
    behind = _count_behind(queries, targets, own, items, width, score, seen, best)
    ranks = torch.where(targets >= 0, len(items) - behind, len(items) + 1)
    return RankedRows(ranks, best.items)


def _count_behind(
    queries: Tensor,
    targets: Tensor,
    own: Tensor,
    items: Tensor,
    width: int,
    score: Score,
    seen: tuple[Tensor, Tensor] | None,
    best: "_Best | None" = None,
) -> Tensor:
    """Return (T,) numbers of items that score less than `own` (T, 1); add the scores to `best`.

    A negative target is not among these items.
    """
    behind = torch.zeros(len(targets), dtype=torch.int64, device=targets.device)
    form = _PresetScores if _on_cpu(targets) else _MaskedPresetScores
    preset = form(targets, own, seen, torch.arange(0, len(items) + width, width))
    for chunk, first in enumerate(range(0, len(items), width)):
        begin = min(first, len(items) - width)  # the last chunk overlaps, so that widths are equal
        scores = score(queries, items[begin : begin + width].T)  # (T, width)
        preset.write(scores, chunk, begin)
        scores = scores[:, first - begin :]
        if best is not None:
            best.add(scores, first)
        # `<`, as NaN must not count as less; floats are summed faster than booleans
        behind += scores.lt_(own).sum(1).to(torch.int64)
    return behind


class _PresetScores:
    """Scores without a product: those of the targets, and minus infinity for seen items.

    Writing the target's score makes it equal to `own`, even if a library rounds by position.
    """

    def __init__(
        self,
        targets: Tensor,
        own: Tensor,
        seen: tuple[Tensor, Tensor] | None,
        starts: Tensor,
    ) -> None:
        """(T,), (T, 1), (rows, items) of `seen`, (chunks + 1,) first items of chunks."""
        self.targets, self.own, self.seen = targets, own, seen
        # rows sorted by the chunk of their target
        self._order = targets.argsort()
        self._bounds = torch.searchsorted(targets[self._order], starts).tolist()
        self._seen_bounds = [] if seen is None else torch.searchsorted(seen[1], starts).tolist()

    def write(self, scores: Tensor, chunk: int, begin: int) -> None:
        """(T, C) scores of the items from `begin` on."""
        rows = self._order[self._bounds[chunk] : self._bounds[chunk + 1]]
        scores[rows, self.targets[rows] - begin] = self.own[rows, 0]
        if self.seen is not None:
            entries = slice(self._seen_bounds[chunk], self._seen_bounds[chunk + 1])
            rows, items = self.seen[0][entries], self.seen[1][entries]
            scores[rows, items - begin] = float("-inf")


class _MaskedPresetScores:
    """`_PresetScores` on a GPU without synchronization: entries outside a chunk are masked."""

    def __init__(
        self,
        targets: Tensor,
        own: Tensor,
        seen: tuple[Tensor, Tensor] | None,
        _starts: Tensor,
    ) -> None:
        self.targets, self.own, self.seen = targets, own, seen

    def write(self, scores: Tensor, _chunk: int, begin: int) -> None:
        """(T, C) scores of the items from `begin` on."""
        width = scores.size(1)
        columns, inside = self._columns(self.targets.unsqueeze(1), begin, width)
        scores.scatter_(1, columns, torch.where(inside, self.own, scores.gather(1, columns)))
        if self.seen is not None:
            rows, items = self.seen
            columns, inside = self._columns(items, begin, width)
            highest = torch.where(inside, float("-inf"), float("inf")).to(scores.dtype)
            scores.view(-1).scatter_reduce_(0, rows * width + columns, highest, "amin")

    @staticmethod
    def _columns(items: Tensor, begin: int, width: int) -> tuple[Tensor, Tensor]:
        columns = items - begin
        return columns.clamp(0, width - 1), (columns >= 0) & (columns < width)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _own_scores(
    queries: Tensor, items: Tensor, targets: Tensor, width: int, score: Score
) -> Tensor:
    """(T, Q), (V, W), (T,) -> (T, 1) scores of the targets, bitwise equal to those of a chunk.

    Another order of summation would break ties of items with the same vector.
    """
    if width == len(items):
        return score(queries, items.T).gather(1, targets.unsqueeze(1))
    chosen = items.new_zeros(width, items.size(1))
    chosen[: len(targets)] = items[targets]
    return score(queries, chosen.T).diagonal().unsqueeze(1)[: len(targets)]


class _Best:
    """Best items so far."""

    def __init__(self, queries: Tensor, length: int) -> None:
        """(T, E) queries, length K of a list."""
        self.scores = queries.new_full((len(queries), length), float("-inf"))
        self.items = torch.full_like(self.scores, -1, dtype=torch.int64)

    def add(self, scores: Tensor, first: int) -> None:
        """Merge (T, C) scores of the items from `first` on; minus infinity excludes an item."""
        if not self.scores.size(1):
            return
        if not _on_cpu(scores):  # selecting rows would synchronize the device
            self._merge(slice(None), scores, first)
            return
        # most chunks improve few rows
        rows = (~(scores.amax(1) <= self.scores[:, -1])).nonzero().squeeze(1)
        if len(rows):
            self._merge(rows, scores[rows], first)

    def _merge(self, rows: Tensor | slice, scores: Tensor, first: int) -> None:
        length = self.scores.size(1)
        best = scores.topk(min(length, scores.size(1)))
        merged = torch.cat([self.scores[rows], best.values], 1).topk(length)
        items = torch.cat([self.items[rows], best.indices + first], 1)
        self.scores[rows] = merged.values
        self.items[rows] = items.gather(1, merged.indices)
        self.items.masked_fill_(self.scores.isneginf(), -1)
