"""Softmax cross-entropy over a catalogue whose vectors are sharded over processes.

Each process scores its own items for the queries of all processes, so that time and memory are
divided like the table. Maxima and sums are merged like those of chunks in
`catalogue_cross_entropy.py`.

Shape letters: T targets of all processes, n of this one, E width of queries and items.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pipeline.model.ops.catalogue_chunks import Settings, add_row_gradients, rounded, rows_of
from pipeline.model.ops.catalogue_cross_entropy import (
    MOST_KEPT_BYTES,
    autocast_factors,
    full_precision,
    scan,
    softmax_gradient,
)
from pipeline.model.ops.shards import Shards


def sharded_cross_entropy(
    queries: Tensor,
    table: Tensor,
    targets: Tensor,
    settings: Settings,
    shards: Shards,
    *,
    recompute: bool | None = None,
) -> Tensor:
    """(n, E), (own rows, E), (n,) positions among all items -> (n,) losses.

    `settings.first` counts rows of the whole table; `recompute` is that of
    LabelSmoothCrossEntropyLoss. All processes, also one without targets, must call it in the same
    step. The gradient of the table is that of the mean over processes, as in DDP.
    """
    settings = settings._replace(factors=autocast_factors(queries))
    with full_precision(queries):
        return _ShardedCrossEntropy.apply(queries, table, targets, settings, shards, recompute)


class _ShardedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        table: Tensor,
        targets: Tensor,
        settings: Settings,
        shards: Shards,
        recompute: bool | None,
    ) -> Tensor:
        smoothing = settings.smoothing
        spread = smoothing / (shards.num_rows - settings.first)
        sizes = shards.sizes(len(targets))
        every = shards.gather(queries, sizes)  # (T, E)
        target_rows = shards.gather(targets + settings.first, sizes)
        settings = settings._replace(first=max(0, settings.first - shards.first))
        if recompute is None:
            recompute = 4 * len(every) * len(table) > MOST_KEPT_BYTES
        if recompute:
            settings = settings._replace(scratch=None)
        sums = scan(
            every, table, settings, mix=ctx.needs_input_grad[0], gradient=ctx.needs_input_grad[1]
        )
        kind, precise = settings.factors, sums.total.dtype
        positions = shards.owns(target_rows).nonzero().squeeze(1)
        rows = target_rows[positions] - shards.first
        target_items = rounded(rows_of(table, rows, settings.normalize), kind, precise)
        at_target = torch.zeros_like(sums.total)
        at_target[positions] = (rounded(every[positions], kind, precise) * target_items).sum(-1)
        top = shards.maximum(sums.top.clone())
        shrink = (sums.top - top).exp_()
        total, at_target = shards.sum(torch.stack([sums.total * shrink, at_target]))
        log_total = top + total.log()
        own = slice(sum(sizes[: shards.rank]), sum(sizes[: shards.rank + 1]))
        losses = log_total[own] - (1 - smoothing) * at_target[own]
        # d loss / d query: the mean item under the softmax minus the target
        part = sums.mixed.mul_((shrink / total).unsqueeze(1))
        part.index_add_(0, positions, target_items, alpha=-(1 - smoothing))
        if smoothing:
            part -= spread * sums.item_sum
            item_sum = shards.sum(sums.item_sum)
            losses = losses - spread * (rounded(queries, kind, precise) @ item_sum)
        direction = shards.sum_of_own(part, sizes) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(every, table, rows, positions, direction, log_total, sums.tops)
        ctx.settings, ctx.shards, ctx.sizes = settings, shards, sizes
        ctx.spread, ctx.kept = spread, sums.kept
        return losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        every, table, rows, positions, direction, log_total, tops = ctx.saved_tensors
        settings: Settings = ctx.settings
        shards: Shards = ctx.shards
        grad_queries = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_queries = (direction * grad_output.unsqueeze(1)).to(every.dtype)
        if ctx.needs_input_grad[1]:
            grad_output = shards.gather(grad_output.to(log_total.dtype), ctx.sizes)
            grad_output.div_(shards.count)
            kept, ctx.kept = ctx.kept, ()
            grad_table = softmax_gradient(
                every, table, grad_output, log_total, settings, ctx.spread, tops=tops, kept=kept
            )
            grad_rows = rounded(every[positions], settings.factors, log_total.dtype)
            grad_rows = grad_rows * (grad_output[positions] * (settings.smoothing - 1)).unsqueeze(1)
            add_row_gradients(grad_table, grad_rows, table, rows, settings.normalize)
        return grad_queries, grad_table, None, None, None, None
