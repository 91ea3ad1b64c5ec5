"""Softmax cross-entropy over a catalogue of any size: autograd keeps no (T, items) matrix.

The catalogue is read in chunks, with a running maximum and sum (the online softmax of Milakov and
Gimelshein, 2018), and the gradient of the queries is accumulated in the same pass, as in flash
attention. On a CPU a chunk of scores stays in the processor's cache, which makes the products twice
as fast and the exponentials nearly free. On a GPU, and under autocast on any device,
`catalogue_scan_device.py` computes the passes.

Shape letters: T targets, E width of queries and items, V rows of the table.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pipeline.model.ops.catalogue_chunks import (
    Scan,
    Scratch,
    Settings,
    add_row_gradients,
    rounded,
    rows_of,
)
from pipeline.model.ops.catalogue_scan_cpu import cached_gradients, scan_cached
from pipeline.model.ops.catalogue_scan_device import chunk_gradients, scan_chunks

MOST_KEPT_BYTES = 2**29
"""Maximum size of the exponentials kept for the backward pass by default."""


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
    are recomputed, at a third more products. `gradients` is reusable memory for the gradient of the
    table.
    """
    settings = Settings(first, smoothing, normalize, scratch, gradients, autocast_factors(queries))
    with full_precision(queries):
        return _CatalogueCrossEntropy.apply(queries, table, targets, settings)


def autocast_factors(queries: Tensor) -> torch.dtype | None:
    """Type of the factors of products: that of autocast, or of queries in half precision.

    None stands for the type of the queries. Autocast does not change float64.
    """
    device = queries.device.type
    if torch.is_autocast_enabled(device) and queries.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return queries.dtype if queries.dtype.itemsize < 4 else None


def full_precision(queries: Tensor) -> torch.autocast:
    """Context without autocast, which would round sums and maxima."""
    return torch.autocast(queries.device.type, enabled=False)


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
        kind, precise = settings.factors, sums.total.dtype
        log_total = sums.top + sums.total.log()
        # rounded as in the products, so that the target never scores more than the whole catalogue
        target_rows = rounded(rows_of(table, targets + first, settings.normalize), kind, precise)
        query_factors = rounded(queries, kind, precise)
        at_target = (query_factors * target_rows).sum(-1)
        losses = log_total - (1 - smoothing) * at_target
        # d loss / d query: the mean item under the softmax minus the target
        direction = sums.mixed.div_(sums.total.unsqueeze(1)).sub_(target_rows, alpha=1 - smoothing)
        if smoothing:
            losses = losses - smoothing / num_items * (query_factors @ sums.item_sum)
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
            kept, ctx.kept = ctx.kept, ()
            grad_table = softmax_gradient(
                queries, table, grad_output, log_total, ctx.settings, spread, tops=tops, kept=kept
            )
            grad_rows = rounded(queries, ctx.settings.factors, log_total.dtype)
            grad_rows = grad_rows * (grad_output * (smoothing - 1)).unsqueeze(1)
            add_row_gradients(grad_table, grad_rows, table, targets + first, ctx.settings.normalize)
        return grad_queries, grad_table, None, None


def scan(queries: Tensor, table: Tensor, settings: Settings, *, mix: bool, gradient: bool) -> Scan:
    """(T, E), (first + items, E) -> Scan.

    `mix` is true if the queries need a gradient, `gradient` if the table does.
    """
    scan_all = scan_cached if _fits_cache(queries, settings) else scan_chunks
    return scan_all(queries, table, settings, mix=mix, gradient=gradient)


def softmax_gradient(
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
    """(V, E) softmax gradient of the table, without the term of the target rows.

    `grad_output` (T,) is the gradient of the losses, `log_total` (T,) the log of the sum of
    exp(score) over the catalogue, `spread` the probability of an item by smoothing. The
    exponentials that a `scan` kept are overwritten; a second backward pass recomputes them.
    """
    gradients = cached_gradients if _fits_cache(queries, settings) else chunk_gradients
    return gradients(queries, table, grad_output, log_total, settings, spread, tops=tops, kept=kept)


def _fits_cache(queries: Tensor, settings: Settings) -> bool:
    """Whether the CPU passes apply, whose buffers cannot be compiled."""
    is_plain = settings.factors is None and not torch.compiler.is_compiling()
    return queries.device.type == "cpu" and is_plain
