"""The best of a large catalogue, exactly and in bounded memory; scripts of the served program.

Letters: B rows, V items, E width of their vectors, K best ones, M that stand for a choice, X and C
of what is left out and what alone may be listed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 63
"""Of the numbers of 8 bits. CPUs without VNNI add two products in 16 bits, where 127 would not
fit: (63 + 128) * 63 * 2 does."""


class Rounded(NamedTuple):
    """Items of 8 bits: about `steps` times `whole`."""

    whole: Tensor
    """(V, E) int8"""
    steps: Tensor
    """(E,) of each number of a vector."""
    errors: Tensor
    """(E,) by which an item differs from that at most."""
    reach: Tensor
    """() largest sum of the absolute numbers of a row of `whole`."""


def rounded(items: Tensor) -> Rounded:
    """(V, E) float32 -> what `best_items_int8` takes."""
    steps = (items.abs().amax(0) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    whole = (items / steps).round().clamp(-LARGEST, LARGEST)
    errors = (items - whole * steps).abs().amax(0)
    return Rounded(whole.to(torch.int8), steps, errors, whole.abs().sum(1).amax())


@torch.jit.script
def hide(scores: Tensor, excluded: Tensor, candidates: Tensor, lowest: float) -> Tensor:
    """(B, V) scores, `lowest` where (B, X) and (B, C) indices say so, 0 being none."""
    first = 3
    if candidates.size(1) > 0:
        has = (candidates > 0).any(1, keepdim=True)
        wide = torch.zeros(
            (scores.size(0), scores.size(1) + first), dtype=torch.bool, device=scores.device
        ).scatter(1, candidates, True)
        scores = scores.masked_fill(has & ~wide[:, first:], lowest)
    if excluded.size(1) > 0:
        places = (excluded >= first).nonzero()
        rows = places[:, 0]
        columns = excluded[rows, places[:, 1]] - first
        scores[rows, columns] = torch.tensor(lowest, dtype=scores.dtype, device=scores.device)
    return scores


@torch.jit.script
def best_of(scores: Tensor, k: int, across: bool) -> tuple[Tensor, Tensor]:
    """(B, V) -> (B, K) highest and their places; `across` where memory has it as (V, B).

    Of many items the best of each block are ranked first: K items are in the K best blocks.
    """
    block = 64
    blocks = scores.size(1) // block
    if blocks < 4 * k or blocks < 64:
        top, place = scores.topk(k)
        return top, place
    # a block is every `blocks`-th item: so its maximum is one of whole rows of memory
    even = scores[:, : block * blocks]
    if across:
        highest = even.t().reshape([block, blocks, -1]).amax(0).t()
    else:
        highest = even.unflatten(1, [block, blocks]).amax(1)
    chosen = highest.topk(k, 1, True, False)[1]
    places = torch.arange(block, device=scores.device) * blocks
    among = (places.unsqueeze(1) + chosen.unsqueeze(1)).flatten(1)  # (B, block * K)
    rest = torch.arange(block * blocks, scores.size(1), device=scores.device)
    among = torch.cat([among, rest.expand(scores.size(0), -1)], 1)
    top, place = scores.gather(1, among).topk(k)
    return top, among.gather(1, place)


@torch.jit.script
def best_items(
    queries: Tensor,
    items: Tensor,
    transposed: Tensor,
    num_items: Tensor,
    excluded: Tensor,
    candidates: Tensor,
) -> tuple[Tensor, Tensor]:
    """(B, E) queries and (V, E) items -> (B, K) best scores and indices of each row.

    `transposed` are the items once more, (E, V). Rows are taken a few at a time, so that memory
    does not grow with B times V.
    """
    first = 3
    k = min(int(num_items), items.size(0))
    at_once = max(1, 16777216 // max(1, items.size(0)))
    best: list[Tensor] = []
    found: list[Tensor] = []
    for begin in range(0, queries.size(0), at_once):
        some = queries[begin : begin + at_once]
        across = some.size(0) >= 4 and not items.is_cuda
        if across:
            scores = (items @ some.t()).t()  # on a CPU the faster way round
        elif some.size(0) == 1:
            scores = some @ transposed
        else:
            scores = some @ items.t()
        end = begin + at_once
        scores = hide(scores, excluded[begin:end], candidates[begin:end], float("-inf"))
        top, place = best_of(scores, k, across)
        best.append(top)
        found.append(place + first)
    return torch.cat(best), torch.cat(found)


@torch.jit.script
def best_items_int8(
    queries: Tensor,
    items: Tensor,
    whole: Tensor,
    steps: Tensor,
    errors: Tensor,
    reach: Tensor,
    num_items: Tensor,
    excluded: Tensor,
    candidates: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same, and as exact: `Rounded` items choose M, which are scored as they are.

    Whether an item that was not chosen could belong to the best is told by how far rounded scores
    can be from true ones; a row where it could is ranked without rounding. On a CPU whole numbers
    of 8 bits take a quarter of the time to read, and less to multiply.
    """
    first, nothing = 3, -2147483648.0
    k = min(int(num_items), items.size(0))
    m = min(4 * k + 256, items.size(0))
    at_once = max(1, 16777216 // max(1, items.size(0)))
    best: list[Tensor] = []
    found: list[Tensor] = []
    for begin in range(0, queries.size(0), at_once):
        some = queries[begin : begin + at_once]
        hidden, allowed = excluded[begin : begin + at_once], candidates[begin : begin + at_once]
        scaled = some * steps
        unit = (scaled.abs().amax(1, keepdim=True) / 63).clamp(min=1e-30)
        near = torch._int_mm(whole, (scaled / unit).round().to(torch.int8).t()).t()
        near = hide(near, hidden, allowed, nothing)
        high, chosen = best_of(near, m, True)
        scores = torch.bmm(items[chosen], some.unsqueeze(2)).squeeze(2)
        out = high == int(nothing)
        top, place = scores.masked_fill(out, float("-inf")).topk(k)
        index = chosen.gather(1, place)
        if m < items.size(0):
            error = (some.abs() * errors).sum(1) + unit.squeeze(1) * reach / 2
            ceiling = high[:, m - 1].to(torch.float32) * unit.squeeze(1) + 1.0001 * error + 1e-6
            unsure = ((top[:, k - 1] < ceiling) & ~out[:, m - 1]).nonzero().squeeze(1)
            if unsure.size(0) > 0:
                again, at = best_items(
                    some[unsure], items, items.t(), num_items, hidden[unsure], allowed[unsure]
                )
                top[unsure] = again
                index[unsure] = at - first
        best.append(top)
        found.append(index + first)
    return torch.cat(best), torch.cat(found)
