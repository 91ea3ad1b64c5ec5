"""Softmax cross-entropy over a catalogue of any size: autograd keeps no (T, items) matrix.

The catalogue is read in chunks, with a running maximum and sum (the online softmax of Milakov and
Gimelshein, 2018), and the gradient of the queries is accumulated in the same pass, as in flash
attention. A chunk of scores is small enough to stay in the processor's cache, which on a CPU
makes the products twice as fast and the exponentials nearly free.

Shape letters: T targets, E width of queries and items, V rows of the table.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

_CHUNK_BYTES = {"cpu": 3 * 2**19}
"""Size of a chunk of scores; with its factors it fits a core's second-level cache of 2 MB."""
_DEVICE_CHUNK_BYTES = 256 * 2**20
"""Size of a chunk on other devices, where large products are faster."""
_FEWEST_ITEMS = 128
"""Fewest items in a chunk: narrower products are slow."""


MOST_KEPT_BYTES = 2**29
"""Largest size of exponentials that are kept for the backward pass by default."""


class Scratch:
    """Memory for (T, items) exponentials that is used again in each step.

    A new allocation in each step would cost as much in page faults as a product. The buffer is
    exclusive until it is released; while it is in use, further calls allocate.
    """

    def __init__(self) -> None:
        self._free: Tensor | None = None

    def take(self, size: int, like: Tensor) -> Tensor:
        """Return a buffer of at least (size,) numbers, not initialized."""
        free, self._free = self._free, None
        if free is None or free.numel() < size or not _alike(free, like):
            return like.new_empty(size)
        return free

    def take_like(self, like: Tensor) -> Tensor:
        """Return a buffer of the shape of `like`, not initialized."""
        free, self._free = self._free, None
        if free is None or free.shape != like.shape or not _alike(free, like):
            return torch.empty_like(like)
        return free

    def release(self, memory: Tensor) -> None:
        """Return the buffer to the pool."""
        if self._free is None or self._free.numel() < memory.numel():
            self._free = memory

    def __deepcopy__(self, memo: dict[int, Any]) -> "Scratch":
        return Scratch()


def _alike(free: Tensor, like: Tensor) -> bool:
    return free.device == like.device and free.dtype == like.dtype and free.is_contiguous()


class Settings(NamedTuple):
    """Computation of the scores from queries and table."""

    first: int
    """Number of rows of the table before the first item."""
    smoothing: float
    """Share of the target's probability that is spread over the catalogue."""
    normalize: bool
    """Scale items to length 1."""
    scratch: Scratch | None
    """Buffer of the exponentials; None computes the scores again in the backward pass."""
    gradients: Scratch | None
    """Buffer of the table's gradient; its values of an earlier step are overwritten."""


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

    `scratch` keeps the exponentials, T times items numbers, for the backward pass; without it they
    are computed again, which takes a third more products. `gradients` holds memory of a gradient
    of the table that is no longer in use.
    """
    settings = Settings(first, smoothing, normalize, scratch, gradients)
    return _CatalogueCrossEntropy.apply(queries, table, targets, settings)


class _CatalogueCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, table: Tensor, targets: Tensor, settings: Settings
    ) -> Tensor:
        first, smoothing = settings.first, settings.smoothing
        num_items = table.size(0) - first
        sums = scan(
            queries, table, settings, mix=ctx.needs_input_grad[0], gradient=ctx.needs_input_grad[1]
        )
        precise = sums.total.dtype
        log_total = sums.top + sums.total.log()
        target_rows = rows_of(table, targets + first, settings.normalize).to(precise)
        at_target = (queries.to(precise) * target_rows).sum(-1)
        losses = log_total - (1 - smoothing) * at_target
        # d loss / d query: the mean item under the softmax minus the target
        direction = sums.mixed.div_(sums.total.unsqueeze(1)).sub_(target_rows, alpha=1 - smoothing)
        if smoothing:
            losses = losses - smoothing / num_items * (queries.to(precise) @ sums.item_sum)
            direction -= smoothing / num_items * sums.item_sum
        ctx.save_for_backward(queries, table, targets, direction, log_total, sums.tops)
        ctx.settings, ctx.kept = settings, sums.kept
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        queries, table, targets, direction, log_total, tops = ctx.saved_tensors
        first, smoothing = ctx.settings.first, ctx.settings.smoothing
        grad_queries = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_queries = (direction * grad_output.unsqueeze(1)).to(queries.dtype)
        if ctx.needs_input_grad[1]:
            grad_output = grad_output.to(log_total.dtype)
            spread = smoothing / (table.size(0) - first)
            kept, ctx.kept = ctx.kept, None
            grad_table = softmax_gradient(
                queries, table, grad_output, log_total, ctx.settings, spread, tops=tops, kept=kept
            )
            grad_rows = queries.to(log_total.dtype) * (grad_output * (smoothing - 1)).unsqueeze(1)
            add_row_gradients(grad_table, grad_rows, table, targets + first, ctx.settings.normalize)
        return grad_queries, grad_table, None, None


class Scan(NamedTuple):
    """Sums of one pass over the items of a table, for T queries."""

    top: Tensor
    """(T,) largest score."""
    total: Tensor
    """(T,) sum of exp(score - top)."""
    mixed: Tensor
    """(T, E) sum of the items, each times its exp(score - top); 0 unless `mix`."""
    item_sum: Tensor
    """(E,) sum of the items; 0 without smoothing."""
    tops: Tensor | None
    """(chunks, T) running maximum after each chunk, None unless exponentials are kept."""
    kept: Tensor | None
    """Exponentials of all chunks in order, None unless they are kept."""


def scan(queries: Tensor, table: Tensor, settings: Settings, *, mix: bool, gradient: bool) -> Scan:
    """(T, E), (first + items, E) -> Scan.

    `mix` and `gradient` say whether the queries and the table need a gradient.
    """
    first = settings.first
    num_items, num_targets = table.size(0) - first, queries.size(0)
    # sums of many small numbers need float32 at least
    precise = torch.promote_types(queries.dtype, torch.float32)
    top = queries.new_full((num_targets,), float("-inf"), dtype=precise)
    total = torch.zeros_like(top)
    mixed = torch.zeros(queries.shape, dtype=precise, device=queries.device)
    item_sum = torch.zeros(queries.size(1), dtype=precise, device=queries.device)
    chunks = _chunks(num_items, num_targets, queries)
    keep = gradient and settings.scratch is not None
    short = _factor_type(queries)
    memory = None
    if keep:
        assert settings.scratch is not None  # noqa: S101
        memory = settings.scratch.take(num_targets * num_items, mixed.new_empty(0, dtype=short))
    buffer = mixed.new_empty(num_targets * chunks[0][1])
    tops = []
    for start, stop in chunks:
        items = _items(table, first + start, first + stop, settings.normalize).to(queries.dtype)
        part = slice(num_targets * start, num_targets * stop)
        block = (
            buffer[: part.stop - part.start]
            if memory is None or short is not None
            else memory[part]
        ).view(num_targets, stop - start)
        _product(queries, items.T, block)
        new_top = torch.maximum(top, block.amax(1))
        block.sub_(new_top.unsqueeze(1)).exp_()
        shrink = (top - new_top).exp_()
        total.mul_(shrink).add_(block.sum(1))
        if short is not None and (mix or memory is not None):
            narrow = None if memory is None else memory[part].view(num_targets, stop - start)
            block = block.to(short) if narrow is None else narrow.copy_(block)
        if mix:
            _add_product(mixed.mul_(shrink.unsqueeze(1)), block, items)
        if settings.smoothing:
            item_sum += items.sum(0)
        top = new_top
        if keep:
            tops.append(top)
    return Scan(top, total, mixed, item_sum, torch.stack(tops) if tops else None, memory)


def softmax_gradient(
    queries: Tensor,
    table: Tensor,
    grad_output: Tensor,
    log_total: Tensor,
    settings: Settings,
    spread: float,
    *,
    tops: Tensor | None,
    kept: Tensor | None,
) -> Tensor:
    """(V, E) gradient of the table by the softmax, without the part of the target rows.

    `grad_output` (T,) is the gradient of the losses, `log_total` (T,) the log of the sum of
    exp(score) over the catalogue, `spread` the probability that smoothing gives to an item. The
    exponentials that a `scan` kept are overwritten; a second backward pass computes them again.
    """
    first, num_targets = settings.first, queries.size(0)
    chunks = _chunks(table.size(0) - first, num_targets, queries)
    precise = queries.to(log_total.dtype)
    gradients = settings.gradients
    grad_table = torch.empty_like(table) if gradients is None else gradients.take_like(table)
    grad_table[:first] = 0
    smoothed = (grad_output @ precise) * -spread if spread else None  # (E,) added to every item
    buffer = None
    if kept is None:
        buffer = log_total.new_empty(num_targets * chunks[0][1])
    for number, (start, stop) in enumerate(chunks):
        rows = slice(first + start, first + stop)
        if kept is None:
            assert buffer is not None  # noqa: S101
            block = buffer[: num_targets * (stop - start)].view(num_targets, stop - start)
            items = _items(table, rows.start, rows.stop, settings.normalize)
            _product(queries, items.T.to(queries.dtype), block)
            block.sub_(log_total.unsqueeze(1)).exp_()
            weighted = precise * grad_output.unsqueeze(1)
        else:
            block = kept[num_targets * start : num_targets * stop].view(num_targets, stop - start)
            # the exponentials lack one factor per row, which the smaller matrix takes
            assert tops is not None  # noqa: S101
            weighted = precise * (grad_output * (tops[number] - log_total).exp_()).unsqueeze(1)
        grad_items = grad_table[rows]
        kind = block.dtype if block.dtype.itemsize < queries.dtype.itemsize else queries.dtype
        weighted, block = weighted.to(kind), block.to(kind)
        if grad_items.dtype == kind and not settings.normalize:
            torch.mm(block.T, weighted, out=grad_items)
            if smoothed is not None:
                grad_items += smoothed
            continue
        summed = (block.T @ weighted).to(grad_items.dtype)
        if smoothed is not None:
            summed = summed + smoothed
        grad_items.copy_(_through_norm(summed, table[rows]) if settings.normalize else summed)
    if kept is not None:
        assert settings.scratch is not None  # noqa: S101
        settings.scratch.release(kept)
    return grad_table


def rows_of(table: Tensor, rows: Tensor, normalize: bool) -> Tensor:
    """(V, E), (N,) -> (N, E), of length 1 if `normalize`."""
    vectors = functional.embedding(rows, table)
    return functional.normalize(vectors, dim=-1) if normalize else vectors


def add_row_gradients(
    grad_table: Tensor, grad_rows: Tensor, table: Tensor, rows: Tensor, normalize: bool
) -> None:
    """Add the gradients of `rows_of` (N, E) to that of the table (V, E), in place."""
    if normalize:
        grad_rows = _through_norm(grad_rows, functional.embedding(rows, table))
    grad_table.index_add_(0, rows, grad_rows.to(table.dtype))


def _chunks(num_items: int, num_targets: int, like: Tensor) -> list[tuple[int, int]]:
    """First and last + 1 item of each chunk of the catalogue."""
    size = _CHUNK_BYTES.get(like.device.type, _DEVICE_CHUNK_BYTES)
    step = max(_FEWEST_ITEMS, size // (4 * max(num_targets, 1)))
    count = max(1, round(num_items / step))
    step = -(-num_items // count)  # chunks of one width
    return [(start, min(start + step, num_items)) for start in range(0, num_items, step)]


def _items(table: Tensor, start: int, stop: int, normalize: bool) -> Tensor:
    rows = table[start:stop]
    return functional.normalize(rows, dim=-1) if normalize else rows


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write left @ right into `out`, whose type may be finer."""
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
    """bfloat16 on a CPU with bfloat16 products at precision "medium", else None.

    There products round their factors to bfloat16 in any case. Exponentials that are rounded once
    take half the memory, and the products need not round them again. Scores stay in float32: the
    exponential would amplify their rounding. With few queries, rounding the items and the factors
    of their gradients would cost more than it saves.
    """
    rounds = torch.get_float32_matmul_precision() == "medium" and queries.dtype == torch.float32
    many = queries.size(0) > 2 * queries.size(1)
    if not rounds or not many or queries.device.type != "cpu":
        return None
    supported = torch.cpu.get_capabilities()
    return torch.bfloat16 if supported.get("amx_bf16") or supported.get("avx512_bf16") else None


def _through_norm(grad_unit: Tensor, rows: Tensor) -> Tensor:
    """Gradient of x / max(|x|, 1e-12) -> gradient of x, (N, E) both."""
    rows = rows.to(grad_unit.dtype)
    norm = rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    unit = rows / norm
    return (grad_unit - unit * (unit * grad_unit).sum(-1, keepdim=True)) / norm
