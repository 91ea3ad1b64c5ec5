"""Passes over a catalogue on a GPU, and in low precision on any device.

Chunks are large and only the table's gradient is written in place, so that `torch.compile` traces
the passes and no step synchronizes the device. Products round their factors to `Settings.factors`;
results, maxima, exponentials and sums are float32.

Shape letters: T targets, E width of queries and items, V rows of the table, C items of a chunk.
"""

import math

import torch
from torch import Tensor

from pipeline.model.device import device_chunk_bytes
from pipeline.model.ops.catalogue_chunks import (
    Scan,
    Settings,
    chunk_bounds,
    item_rows,
    through_norm,
)

CPU_CHUNK_BYTES = 3 * 2**19
"""Bytes of a chunk of scores on a CPU, which fits a core's cache."""
MULTIPLE = 64
"""The items of a chunk are a multiple of this number, as tensor cores need aligned rows."""
_HALF_SHIFT = 14 * math.log(2)
"""float16 underflows below 6e-8: scaling exponentials up to 2^14 keeps probabilities of 4e-12."""


def scan_chunks(
    queries: Tensor, table: Tensor, settings: Settings, *, mix: bool, gradient: bool
) -> Scan:
    """(T, E), (first + items, E) -> Scan.

    `mix` is true if the queries need a gradient, `gradient` if the table does.
    """
    kind, precise = _types(queries, settings)
    shift = _HALF_SHIFT if kind == torch.float16 else 0.0
    top = queries.new_full((queries.size(0),), float("-inf"), dtype=precise)
    total = torch.zeros_like(top)
    mixed = torch.zeros(queries.shape, dtype=precise, device=queries.device)
    item_sum = torch.zeros(queries.size(1), dtype=precise, device=queries.device)
    factors = queries.to(kind)
    tops, kept = [], []
    for rows in _chunks(queries, table, settings):
        items = item_rows(table, rows.start, rows.stop, settings.normalize).to(kind)  # (C, E)
        scores = product(factors, items.T, precise)  # (T, C)
        new_top = torch.maximum(top, scores.amax(1) - shift)
        weights = (scores - new_top.unsqueeze(1)).exp()
        shrink = (top - new_top).exp()
        total = total * shrink + weights.sum(1)
        weights = weights.to(kind)
        if mix:
            mixed = mixed * shrink.unsqueeze(1) + product(weights, items, precise)
        if settings.smoothing:
            item_sum = item_sum + items.sum(0, dtype=precise)
        top = new_top
        tops.append(top)
        if gradient and settings.scratch is not None:
            kept.append(weights)
    return Scan(top, total, mixed, item_sum, torch.stack(tops), tuple(kept))


def chunk_gradients(
    queries: Tensor,
    table: Tensor,
    grad_output: Tensor,
    log_total: Tensor,
    settings: Settings,
    spread: float,
    *,
    tops: Tensor,
    kept: tuple[Tensor, ...],
) -> Tensor:
    """Return the result of `catalogue_cross_entropy.softmax_gradient`."""
    kind, precise = _types(queries, settings)
    factors = queries.to(kind)
    rounded = factors.to(precise)
    smoothed = grad_output @ rounded * -spread if spread else None  # (E,) added to every item
    grad_table = torch.empty_like(table)
    grad_table[: settings.first] = 0
    for number, rows in enumerate(_chunks(queries, table, settings)):
        top = tops[number] if kept else tops[-1]
        if kept:
            weights = kept[number]
        else:
            items = item_rows(table, rows.start, rows.stop, settings.normalize).to(kind)
            weights = (product(factors, items.T, precise) - top.unsqueeze(1)).exp().to(kind)
        # the exponentials lack one factor per row; it is applied to the smaller matrix
        weighted = rounded * (grad_output * (top - log_total).exp()).unsqueeze(1)  # (T, E)
        grad_items = _scaled_product(weights.T, weighted, kind)  # (C, E)
        if smoothed is not None:
            grad_items = grad_items + smoothed
        if settings.normalize:
            grad_items = through_norm(grad_items, table[rows])
        grad_table[rows] = grad_items.to(table.dtype)
    return grad_table


def product(left: Tensor, right: Tensor, precise: torch.dtype) -> Tensor:
    """(M, K), (K, N) of one type -> (M, N), summed and returned in `precise`."""
    if left.dtype == precise:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=precise)
    # other devices also round the result; in float32, products of rounded factors are exact
    return left.to(precise) @ right.to(precise)


def _scaled_product(weights: Tensor, weighted: Tensor, kind: torch.dtype) -> Tensor:
    """(C, T) of type `kind`, (T, E) -> (C, E) in the type of `weighted`.

    The gradients are scaled into the range of float16, in which they would underflow.
    """
    if kind != torch.float16:
        return product(weights, weighted.to(kind), weighted.dtype)
    unit = weighted.abs().amax().clamp(min=1e-30) / 2**14
    return product(weights, (weighted / unit).to(kind), weighted.dtype) * unit


def _types(queries: Tensor, settings: Settings) -> tuple[torch.dtype, torch.dtype]:
    """Types of factors and of sums; sums are at least float32."""
    return settings.factors or queries.dtype, torch.promote_types(queries.dtype, torch.float32)


def _chunks(queries: Tensor, table: Tensor, settings: Settings) -> list[slice]:
    """Rows of the table of each chunk."""
    first, device = settings.first, queries.device
    size = CPU_CHUNK_BYTES if device.type == "cpu" else device_chunk_bytes(device)
    step = max(2 * MULTIPLE, size // (4 * max(queries.size(0), 1)))
    bounds = chunk_bounds(table.size(0) - first, step, MULTIPLE)
    return [slice(first + start, first + stop) for start, stop in bounds]
