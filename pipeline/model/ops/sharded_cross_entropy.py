"""Softmax cross-entropy over a catalogue whose vectors are spread over processes.

Each process goes over its own items for the queries of all, so that time and memory are shared as
the table is. Maxima and sums are put together as those of chunks are in `catalogue.py`.

Letters: T targets of all processes, n of this one, E width of queries and items.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pipeline.model.ops.catalogue_cross_entropy import (
    MOST_KEPT_BYTES,
    Settings,
    add_by_rows,
    by_softmax,
    rows_of,
    scan,
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

    `settings.first` is of the whole table; `recompute` as in LabelSmoothCrossEntropyLoss. All
    processes must call it together, also one without targets. Gradients of the table are those of
    the mean over processes, as DDP's are.
    """
    losses: Tensor = _ShardedCrossEntropy.apply(
        queries, table, targets, settings, shards, recompute
    )
    return losses


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
        wanted_rows = shards.gather(targets + settings.first, sizes)
        settings = settings._replace(first=max(0, settings.first - shards.first))
        if recompute is None:
            recompute = 4 * len(every) * len(table) > MOST_KEPT_BYTES
        if recompute:
            settings = settings._replace(scratch=None)
        found = scan(
            every, table, settings, mix=ctx.needs_input_grad[0], gradient=ctx.needs_input_grad[1]
        )
        precise = found.total.dtype
        places = shards.here(wanted_rows).nonzero().squeeze(1)
        rows = wanted_rows[places] - shards.first
        wanted = rows_of(table, rows, settings.normalize).to(precise)
        at_target = torch.zeros_like(found.total)
        at_target[places] = (every[places].to(precise) * wanted).sum(-1)
        top = shards.maximum(found.top.clone())
        shrink = (found.top - top).exp_()
        total, at_target = shards.sum(torch.stack([found.total * shrink, at_target]))
        log_total = top + total.log()
        own = slice(sum(sizes[: shards.rank]), sum(sizes[: shards.rank + 1]))
        losses = log_total[own] - (1 - smoothing) * at_target[own]
        # d loss / d query: the mean item under the softmax, less the wanted one
        part = found.mixed.mul_((shrink / total).unsqueeze(1))
        part.index_add_(0, places, wanted, alpha=-(1 - smoothing))
        if smoothing:
            part -= spread * found.item_sum
            item_sum = shards.sum(found.item_sum)
            losses = losses - spread * (queries.to(precise) @ item_sum)
        direction = shards.sum_of_own(part, sizes) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(every, table, rows, places, direction, log_total, found.tops)
        ctx.settings, ctx.shards, ctx.sizes = settings, shards, sizes
        ctx.spread, ctx.kept = spread, found.kept
        return losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, given: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        every, table, rows, places, direction, log_total, tops = ctx.saved_tensors
        settings: Settings = ctx.settings
        by_query = by_table = None
        if ctx.needs_input_grad[0]:
            by_query = (direction * given.unsqueeze(1)).to(every.dtype)
        if ctx.needs_input_grad[1]:
            given = ctx.shards.gather(given.to(log_total.dtype), ctx.sizes).div_(ctx.shards.count)
            kept, ctx.kept = ctx.kept, None
            by_table = by_softmax(
                every, table, given, log_total, settings, ctx.spread, tops=tops, kept=kept
            )
            missing = every[places].to(log_total.dtype)
            missing *= (given[places] * (settings.smoothing - 1)).unsqueeze(1)
            add_by_rows(by_table, missing, table, rows, settings.normalize)
        return by_query, by_table, None, None, None, None
