"""Exact top-K of a large catalogue in bounded memory, in the TorchScript program that is served.

Letters: B rows, V items, E width of their vectors, K length of a list, M preselected items, X
excluded items, C candidates.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_INT8 = 63
"""Largest absolute value of a quantized number. CPUs without VNNI add two products in 16 bits,
where 127 would overflow: (63 + 128) * 63 * 2 does not."""


class QuantizedItems(NamedTuple):
    """Item vectors in 8 bits: `quantized` times `scales`."""

    quantized: Tensor
    """(V, E) int8"""
    scales: Tensor
    """(E,) step of each dimension."""
    errors: Tensor
    """(E,) largest difference from the item vectors, by dimension."""
    max_row_sum: Tensor
    """() largest sum of absolute values over a row of `quantized`."""


def quantize(items: Tensor) -> QuantizedItems:
    """(V, E) float32 -> arguments of `best_items_int8`."""
    scales = (items.abs().amax(0) / MAX_INT8).clamp(min=torch.finfo(torch.float32).tiny)
    quantized = (items / scales).round().clamp(-MAX_INT8, MAX_INT8)
    errors = (items - quantized * scales).abs().amax(0)
    return QuantizedItems(quantized.to(torch.int8), scales, errors, quantized.abs().sum(1).amax())


@torch.jit.script
def lower_excluded(scores: Tensor, excluded: Tensor, lowest: float) -> Tensor:
    """(B, V) scores -> `lowest` for (B, X) excluded items, without waiting for a GPU."""
    first = 3
    unchanged = torch.full(excluded.shape, float("inf"), dtype=scores.dtype, device=scores.device)
    values = unchanged.masked_fill(excluded >= first, lowest)
    return scores.scatter_reduce_(1, (excluded - first).clamp(min=0), values, "amin")


@torch.jit.script
def mask_excluded(scores: Tensor, excluded: Tensor, candidates: Tensor, lowest: float) -> Tensor:
    """(B, V) scores -> `lowest` for (B, X) excluded items and for all but (B, C) candidates.

    Index 0 is padding; a row without candidates allows every item.
    """
    first = 3
    if candidates.size(1) > 0:
        has_candidates = (candidates > 0).any(1, keepdim=True)
        allowed = torch.zeros(
            (scores.size(0), scores.size(1) + first), dtype=torch.bool, device=scores.device
        ).scatter(1, candidates, True)
        scores = scores.masked_fill(has_candidates & ~allowed[:, first:], lowest)
    if excluded.size(1) > 0 and scores.is_cuda:
        scores = lower_excluded(scores, excluded, lowest)
    elif excluded.size(1) > 0:
        positions = (excluded >= first).nonzero()
        rows = positions[:, 0]
        columns = excluded[rows, positions[:, 1]] - first
        scores[rows, columns] = torch.tensor(lowest, dtype=scores.dtype, device=scores.device)
    return scores


@torch.jit.script
def topk_by_blocks(scores: Tensor, k: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """(B, V) -> (B, K) highest scores and their columns; `transposed` if memory holds (V, B).

    The maxima of blocks are ranked first: the K best items are in the K best blocks.
    """
    block = 64
    blocks = scores.size(1) // block
    if blocks < 4 * k or blocks < 64:
        top, columns = scores.topk(k)
        return top, columns
    # a block is every `blocks`-th item, so that its maximum reads whole rows of memory
    even = scores[:, : block * blocks]
    if transposed:
        highest = even.t().reshape([block, blocks, -1]).amax(0).t()
    else:
        highest = even.unflatten(1, [block, blocks]).amax(1)
    best_blocks = highest.topk(k, 1, True, False)[1]
    starts = torch.arange(block, device=scores.device) * blocks
    columns = (starts.unsqueeze(1) + best_blocks.unsqueeze(1)).flatten(1)  # (B, block * K)
    rest = torch.arange(block * blocks, scores.size(1), device=scores.device)
    columns = torch.cat([columns, rest.expand(scores.size(0), -1)], 1)
    top, order = scores.gather(1, columns).topk(k)
    return top, columns.gather(1, order)


@torch.jit.script
def rows_at_once(items: Tensor) -> int:
    """Return how many rows to score at a time for (V, E) items: 64 MiB, 512 MiB on a GPU."""
    scores = 134217728 if items.is_cuda else 16777216
    return max(1, scores // max(1, items.size(0)))


@torch.jit.script
def inner_products(queries: Tensor, items: Tensor, transposed: Tensor) -> Tensor:
    """(b, E), (V, E), (E, V) -> (b, V)."""
    if queries.size(0) >= 4 and not items.is_cuda:
        return (items @ queries.t()).t()  # faster on a CPU
    if queries.size(0) == 1:
        return queries @ transposed
    return queries @ items.t()


def best_items_by(score: Any) -> Any:
    """Return a program that ranks items by `score`, a program with the inputs of `inner_products`.

    (B, Q) queries, (V, E) items and (W, V) transposed items -> (B, K) best scores and item indices
    of each row. Rows are scored a few at a time, so that memory does not grow with B times V.
    """

    def best_items(
        queries: Tensor,
        items: Tensor,
        transposed: Tensor,
        num_items: Tensor,
        excluded: Tensor,
        candidates: Tensor,
    ) -> tuple[Tensor, Tensor]:
        first = 3
        k = min(int(num_items), items.size(0))
        at_once = rows_at_once(items)
        best: list[Tensor] = []
        indices: list[Tensor] = []
        for begin in range(0, queries.size(0), at_once):
            end = begin + at_once
            scores = score(queries[begin:end], items, transposed)
            is_transposed = scores.stride(0) < scores.stride(1)
            scores = mask_excluded(
                scores, excluded[begin:end], candidates[begin:end], float("-inf")
            )
            top, columns = topk_by_blocks(scores, k, is_transposed)
            best.append(top)
            indices.append(columns + first)
        return torch.cat(best), torch.cat(indices)

    return torch.jit.script(best_items)


best_items = best_items_by(inner_products)
"""Ranks by inner products; `transposed` is the transpose of the items."""


@torch.jit.script
def best_items_int8(
    queries: Tensor,
    items: Tensor,
    quantized: Tensor,
    scales: Tensor,
    errors: Tensor,
    max_row_sum: Tensor,
    num_items: Tensor,
    excluded: Tensor,
    candidates: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the result of `best_items`: int8 scores preselect M items, which float32 then ranks.

    The largest error of an int8 score bounds the score of an item outside the preselection; a row
    in which such an item could reach the list is ranked in float32. On a CPU int8 vectors take a
    quarter of the time to read, and less to multiply.
    """
    first, lowest = 3, -2147483648.0
    k = min(int(num_items), items.size(0))
    m = min(4 * k + 256, items.size(0))
    at_once = rows_at_once(items)
    best: list[Tensor] = []
    indices: list[Tensor] = []
    for begin in range(0, queries.size(0), at_once):
        some = queries[begin : begin + at_once]
        end = begin + at_once
        some_excluded, some_candidates = excluded[begin:end], candidates[begin:end]
        scaled = some * scales
        unit = (scaled.abs().amax(1, keepdim=True) / 63).clamp(min=1e-30)
        approximate = torch._int_mm(quantized, (scaled / unit).round().to(torch.int8).t()).t()
        approximate = mask_excluded(approximate, some_excluded, some_candidates, lowest)
        high, preselected = topk_by_blocks(approximate, m, True)
        scores = torch.bmm(items[preselected], some.unsqueeze(2)).squeeze(2)
        masked = high == int(lowest)
        top, order = scores.masked_fill(masked, float("-inf")).topk(k)
        columns = preselected.gather(1, order)
        if m < items.size(0):
            error = (some.abs() * errors).sum(1) + unit.squeeze(1) * max_row_sum / 2
            ceiling = high[:, m - 1].to(torch.float32) * unit.squeeze(1) + 1.0001 * error + 1e-6
            rows = ((top[:, k - 1] < ceiling) & ~masked[:, m - 1]).nonzero().squeeze(1)
            if rows.size(0) > 0:
                exact, exact_indices = best_items(
                    some[rows],
                    items,
                    items.t(),
                    num_items,
                    some_excluded[rows],
                    some_candidates[rows],
                )
                top[rows] = exact
                columns[rows] = exact_indices - first
        best.append(top)
        indices.append(columns + first)
    return torch.cat(best), torch.cat(indices)
