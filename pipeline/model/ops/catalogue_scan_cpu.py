"""Passes over a catalogue on a CPU in float32 or float64.

A chunk of scores stays in the processor's cache, and all work on it is in place.

Shape letters: T targets, E width of queries and items, V rows of the table.
"""

import torch
from torch import Tensor

from pipeline.model.ops.catalogue_chunks import (
    Scan,
    Settings,
    chunk_bounds,
    item_rows,
    through_norm,
)

CHUNK_BYTES = 3 * 2**19
"""Bytes of a chunk of scores; with its factors it fits a core's L2 cache of 2 MB."""
FEWEST_ITEMS = 128
"""Minimum items of a chunk, as narrower products are slow."""


def scan_cached(
    queries: Tensor, table: Tensor, settings: Settings, *, mix: bool, gradient: bool
) -> Scan:
    """(T, E), (first + items, E) -> Scan.

    `mix` is true if the queries need a gradient, `gradient` if the table does.
    """
    first = settings.first
    num_items, num_targets = table.size(0) - first, queries.size(0)
    top = queries.new_full((num_targets,), float("-inf"))
    total = torch.zeros_like(top)
    mixed = torch.zeros(queries.shape, dtype=queries.dtype)
    item_sum = queries.new_zeros(queries.size(1))
    chunks = _chunks(num_items, num_targets)
    keep = gradient and settings.scratch is not None
    short = _factor_type(queries)
    memory = None
    if keep:
        assert settings.scratch is not None  # noqa: S101
        memory = settings.scratch.take(num_targets * num_items, mixed.new_empty(0, dtype=short))
    buffer = mixed.new_empty(num_targets * chunks[0][1])
    tops = []
    for start, stop in chunks:
        items = item_rows(table, first + start, first + stop, settings.normalize).to(queries.dtype)
        part = slice(num_targets * start, num_targets * stop)
        block = (
            buffer[: part.stop - part.start]
            if memory is None or short is not None
            else memory[part]
        ).view(num_targets, stop - start)
        torch.mm(queries, items.T, out=block)
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
    stacked = torch.stack(tops) if tops else None
    return Scan(top, total, mixed, item_sum, stacked, () if memory is None else (memory,))


def cached_gradients(
    queries: Tensor,
    table: Tensor,
    grad_output: Tensor,
    log_total: Tensor,
    settings: Settings,
    spread: float,
    *,
    tops: Tensor | None,
    kept: tuple[Tensor, ...],
) -> Tensor:
    """Return the result of `catalogue_cross_entropy.softmax_gradient`."""
    first, num_targets = settings.first, queries.size(0)
    chunks = _chunks(table.size(0) - first, num_targets)
    memory = kept[0] if kept else None
    gradients = settings.gradients
    grad_table = torch.empty_like(table) if gradients is None else gradients.take_like(table)
    grad_table[:first] = 0
    smoothed = (grad_output @ queries) * -spread if spread else None  # (E,) added to every item
    buffer = None
    if memory is None:
        buffer = log_total.new_empty(num_targets * chunks[0][1])
    for number, (start, stop) in enumerate(chunks):
        rows = slice(first + start, first + stop)
        if memory is None:
            assert buffer is not None  # noqa: S101
            block = buffer[: num_targets * (stop - start)].view(num_targets, stop - start)
            items = item_rows(table, rows.start, rows.stop, settings.normalize)
            torch.mm(queries, items.T.to(queries.dtype), out=block)
            block.sub_(log_total.unsqueeze(1)).exp_()
            weighted = queries * grad_output.unsqueeze(1)
        else:
            block = memory[num_targets * start : num_targets * stop].view(num_targets, stop - start)
            # the exponentials lack one factor per row; it is applied to the smaller matrix
            assert tops is not None  # noqa: S101
            weighted = queries * (grad_output * (tops[number] - log_total).exp_()).unsqueeze(1)
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
        grad_items.copy_(through_norm(summed, table[rows]) if settings.normalize else summed)
    if memory is not None:
        assert settings.scratch is not None  # noqa: S101
        settings.scratch.release(memory)
    return grad_table


def _chunks(num_items: int, num_targets: int) -> list[tuple[int, int]]:
    step = max(FEWEST_ITEMS, CHUNK_BYTES // (4 * max(num_targets, 1)))
    return chunk_bounds(num_items, step)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        kind = min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
        total += left.to(kind) @ right.to(kind)


def _factor_type(queries: Tensor) -> torch.dtype | None:
    """bfloat16 on a CPU with bfloat16 products at precision "medium", else None.

    There products round their factors to bfloat16 anyway. Exponentials rounded once take half the
    memory, and products need not round them again. Scores stay in float32: the exponential would
    amplify their rounding. With few queries, rounding the items and the factors of their gradients
    would cost more than it saves.
    """
    rounds = torch.get_float32_matmul_precision() == "medium" and queries.dtype == torch.float32
    many = queries.size(0) > 2 * queries.size(1)
    if not rounds or not many:
        return None
    supported = torch.cpu.get_capabilities()
    return torch.bfloat16 if supported.get("amx_bf16") or supported.get("avx512_bf16") else None
