"""Softmax cross-entropy over a catalogue of any size: no (T, items) matrix is kept by autograd.

The catalogue goes by in chunks, with a running maximum and sum (the online softmax of Milakov and
Gimelshein, 2018), and what the gradient of the queries needs is added up on the way, as in flash
attention. A chunk of scores is small enough to stay in the processor's cache, which on a CPU
makes the products twice as fast and the exponentials nearly free.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

_CHUNK_BYTES = {"cpu": 3 * 2**19}
"""Scores of a chunk, with what they are made of less than a core's second-level cache of 2 MB."""
_DEVICE_CHUNK_BYTES = 256 * 2**20
"""The same on other devices, which want large products."""
_FEWEST_ITEMS = 128
"""Of a chunk: narrower products are slow."""


MOST_KEPT_BYTES = 2**29
"""Exponentials that are kept for the backward pass where nobody says whether they should be."""


class Scratch:
    """Memory for (T, items) exponentials that goes from one step to the next.

    Allocated anew in each step, it would cost as much in page faults as a product. Whoever takes
    it has it alone until it is given back; who finds it taken gets memory of his own.
    """

    def __init__(self) -> None:
        self._free: Tensor | None = None

    def take(self, size: int, like: Tensor) -> Tensor:
        """(size,) or more numbers, with any values."""
        free, self._free = self._free, None
        if free is None or free.numel() < size or not _alike(free, like):
            return like.new_empty(size)
        return free

    def take_like(self, like: Tensor) -> Tensor:
        """Numbers of the shape of `like`, with any values."""
        free, self._free = self._free, None
        if free is None or free.shape != like.shape or not _alike(free, like):
            return torch.empty_like(like)
        return free

    def give_back(self, memory: Tensor) -> None:
        """For the next one who asks."""
        if self._free is None or self._free.numel() < memory.numel():
            self._free = memory

    def __deepcopy__(self, memo: dict[int, Any]) -> "Scratch":
        return Scratch()


def _alike(free: Tensor, like: Tensor) -> bool:
    return free.device == like.device and free.dtype == like.dtype and free.is_contiguous()


class Settings(NamedTuple):
    """How the scores are made of queries and table."""

    first: int
    """Rows of the table before the first item."""
    smoothing: float
    """Share of the target's probability that is spread over the catalogue."""
    normalize: bool
    """Items have length 1."""
    scratch: Scratch | None
    """None: the backward pass computes the scores again, and nothing is kept."""
    gradients: Scratch | None
    """Where the table's gradient of an earlier step may be, to be written over."""


def catalogue_cross_entropy(
    queries: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    first: int = 0,
    smoothing: float = 0.0,
    normalize: bool = False,
    scratch: Scratch | None = None,
    gradients: Scratch | None = None,
) -> Tensor:
    """(T, E), (first + items, E), (T,) positions among the items -> (T,) losses.

    With `scratch` the exponentials, T times items numbers, are kept there for the backward pass;
    without, it computes them again, which takes a third more products. `gradients` may hold the
    memory of a gradient of the table that nobody needs any more.
    """
    settings = Settings(first, smoothing, normalize, scratch, gradients)
    losses: Tensor = _CatalogueCrossEntropy.apply(queries, table, targets, settings)
    return losses


class _CatalogueCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, table: Tensor, targets: Tensor, settings: Settings
    ) -> Tensor:
        first, smoothing = settings.first, settings.smoothing
        num_items = table.size(0) - first
        found = scan(
            queries, table, settings, mix=ctx.needs_input_grad[0], gradient=ctx.needs_input_grad[1]
        )
        precise = found.total.dtype
        log_total = found.top + found.total.log()
        wanted = rows_of(table, targets + first, settings.normalize).to(precise)
        at_target = (queries.to(precise) * wanted).sum(-1)
        losses = log_total - (1 - smoothing) * at_target
        # d loss / d query: the mean item under the softmax, less the wanted one
        direction = found.mixed.div_(found.total.unsqueeze(1)).sub_(wanted, alpha=1 - smoothing)
        if smoothing:
            losses = losses - smoothing / num_items * (queries.to(precise) @ found.item_sum)
            direction -= smoothing / num_items * found.item_sum
        ctx.save_for_backward(queries, table, targets, direction, log_total, found.tops)
        ctx.settings, ctx.kept = settings, found.kept
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        queries, table, targets, direction, log_total, tops = ctx.saved_tensors
        first, smoothing = ctx.settings.first, ctx.settings.smoothing
        by_query = by_table = None
        if ctx.needs_input_grad[0]:
            by_query = (direction * given.unsqueeze(1)).to(queries.dtype)
        if ctx.needs_input_grad[1]:
            given = given.to(log_total.dtype)
            spread = smoothing / (table.size(0) - first)
            kept, ctx.kept = ctx.kept, None
            by_table = by_softmax(
                queries, table, given, log_total, ctx.settings, spread, tops=tops, kept=kept
            )
            missing = queries.to(log_total.dtype) * (given * (smoothing - 1)).unsqueeze(1)
            add_by_rows(by_table, missing, table, targets + first, ctx.settings.normalize)
        return by_query, by_table, None, None


class Scan(NamedTuple):
    """What one pass over the items of a table finds for T queries."""

    top: Tensor
    """(T,) largest score."""
    total: Tensor
    """(T,) sum of exp(score - top)."""
    mixed: Tensor
    """(T, E) sum of the items, each times its exp(score - top); 0 where nobody asked for it."""
    item_sum: Tensor
    """(E,) sum of the items; 0 without smoothing."""
    tops: Tensor | None
    """(chunks, T) maximum so far of each chunk, where exponentials are kept."""
    kept: Tensor | None
    """Exponentials of all chunks, one after the other."""


def scan(queries: Tensor, table: Tensor, settings: Settings, *, mix: bool, gradient: bool) -> Scan:
    """(T, E), (first + items, E) -> Scan; `mix` if queries have a gradient, `gradient` tables."""
    first = settings.first
    num_items, num_targets = table.size(0) - first, queries.size(0)
    # sums of many small numbers need float32 at least
    precise = torch.promote_types(queries.dtype, torch.float32)
    top = queries.new_full((num_targets,), float("-inf"), dtype=precise)
    total = torch.zeros_like(top)
    mixed = torch.zeros(queries.shape, dtype=precise, device=queries.device)
    item_sum = torch.zeros(queries.size(1), dtype=precise, device=queries.device)
    spans = _spans(num_items, num_targets, queries)
    keep = gradient and settings.scratch is not None
    short = _factor_type(queries)
    memory = None
    if keep:
        assert settings.scratch is not None  # noqa: S101
        memory = settings.scratch.take(num_targets * num_items, mixed.new_empty(0, dtype=short))
    own = mixed.new_empty(num_targets * spans[0][1])
    tops = []
    for start, stop in spans:
        items = _items(table, first + start, first + stop, settings.normalize).to(queries.dtype)
        place = slice(num_targets * start, num_targets * stop)
        block = (
            own[: place.stop - place.start]
            if memory is None or short is not None
            else memory[place]
        ).view(num_targets, stop - start)
        _product(queries, items.T, block)
        new_top = torch.maximum(top, block.amax(1))
        block.sub_(new_top.unsqueeze(1)).exp_()
        shrink = (top - new_top).exp_()
        total.mul_(shrink).add_(block.sum(1))
        if short is not None and (mix or memory is not None):
            narrow = None if memory is None else memory[place].view(num_targets, stop - start)
            block = block.to(short) if narrow is None else narrow.copy_(block)
        if mix:
            _add_product(mixed.mul_(shrink.unsqueeze(1)), block, items)
        if settings.smoothing:
            item_sum += items.sum(0)
        top = new_top
        if keep:
            tops.append(top)
    return Scan(top, total, mixed, item_sum, torch.stack(tops) if tops else None, memory)


def by_softmax(
    queries: Tensor,
    table: Tensor,
    given: Tensor,
    log_total: Tensor,
    settings: Settings,
    spread: float,
    *,
    tops: Tensor | None,
    kept: Tensor | None,
) -> Tensor:
    """(V, E) gradient of the table but for what the targets' own rows get.

    `given` (T,) is the gradient of the losses, `log_total` (T,) the log of the sum of exp(score)
    over the catalogue, `spread` the probability that smoothing gives to an item. What a `scan`
    kept is used up; whoever goes back a second time computes it again.
    """
    first, num_targets = settings.first, queries.size(0)
    spans = _spans(table.size(0) - first, num_targets, queries)
    precise = queries.to(log_total.dtype)
    gradients = settings.gradients
    by_table = torch.empty_like(table) if gradients is None else gradients.take_like(table)
    by_table[:first] = 0
    everywhere = (given @ precise) * -spread if spread else None  # (E,)
    own = None
    if kept is None:
        own = log_total.new_empty(num_targets * spans[0][1])
    for number, (start, stop) in enumerate(spans):
        rows = slice(first + start, first + stop)
        if kept is None:
            assert own is not None  # noqa: S101
            block = own[: num_targets * (stop - start)].view(num_targets, stop - start)
            items = _items(table, rows.start, rows.stop, settings.normalize)
            _product(queries, items.T.to(queries.dtype), block)
            block.sub_(log_total.unsqueeze(1)).exp_()
            weighted = precise * given.unsqueeze(1)
        else:
            block = kept[num_targets * start : num_targets * stop].view(num_targets, stop - start)
            # what the exponentials lack is a factor a row, which the smaller matrix takes
            assert tops is not None  # noqa: S101
            weighted = precise * (given * (tops[number] - log_total).exp_()).unsqueeze(1)
        by_items = by_table[rows]
        kind = block.dtype if block.dtype.itemsize < queries.dtype.itemsize else queries.dtype
        weighted, block = weighted.to(kind), block.to(kind)
        if by_items.dtype == kind and not settings.normalize:
            torch.mm(block.T, weighted, out=by_items)
            if everywhere is not None:
                by_items += everywhere
            continue
        found = (block.T @ weighted).to(by_items.dtype)
        if everywhere is not None:
            found = found + everywhere
        by_items.copy_(_through_norm(found, table[rows]) if settings.normalize else found)
    if kept is not None:
        assert settings.scratch is not None  # noqa: S101
        settings.scratch.give_back(kept)
    return by_table


def rows_of(table: Tensor, rows: Tensor, normalize: bool) -> Tensor:
    """(V, E), (N,) -> (N, E), of length 1 if `normalize`."""
    found = functional.embedding(rows, table)
    return functional.normalize(found, dim=-1) if normalize else found


def add_by_rows(
    by_table: Tensor, by_items: Tensor, table: Tensor, rows: Tensor, normalize: bool
) -> None:
    """Add (N, E), gradients of `rows_of`, to those of the table, (V, E), in place."""
    if normalize:
        by_items = _through_norm(by_items, functional.embedding(rows, table))
    by_table.index_add_(0, rows, by_items.to(table.dtype))


def _spans(num_items: int, num_targets: int, like: Tensor) -> list[tuple[int, int]]:
    """Chunks of the catalogue, from and to."""
    size = _CHUNK_BYTES.get(like.device.type, _DEVICE_CHUNK_BYTES)
    step = max(_FEWEST_ITEMS, size // (4 * max(num_targets, 1)))
    count = max(1, round(num_items / step))
    step = -(-num_items // count)  # chunks of one width
    return [(start, min(start + step, num_items)) for start in range(0, num_items, step)]


def _items(table: Tensor, start: int, stop: int, normalize: bool) -> Tensor:
    rows = table[start:stop]
    return functional.normalize(rows, dim=-1) if normalize else rows


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """left @ right into `out`, which may be of a finer type."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        kind = min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
        total += left.to(kind) @ right.to(kind)


def _factor_type(queries: Tensor) -> torch.dtype | None:
    """bfloat16 where products round their factors to it in any case, on a CPU made for that.

    Exponentials that are rounded once take half the memory, and the products need not do it again.
    Scores stay as they are: the exponential would make much of their rounding. With few queries,
    rounding the items and what their gradients are made from would cost more than it saves.
    """
    rounds = torch.get_float32_matmul_precision() == "medium" and queries.dtype == torch.float32
    many = queries.size(0) > 2 * queries.size(1)
    if not rounds or not many or queries.device.type != "cpu":
        return None
    known = torch.cpu.get_capabilities()
    return torch.bfloat16 if known.get("amx_bf16") or known.get("avx512_bf16") else None


def _through_norm(by_unit: Tensor, rows: Tensor) -> Tensor:
    """Gradient of x / max(|x|, 1e-12) -> gradient of x, (N, E) both."""
    rows = rows.to(by_unit.dtype)
    norm = rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    unit = rows / norm
    return (by_unit - unit * (unit * by_unit).sum(-1, keepdim=True)) / norm
