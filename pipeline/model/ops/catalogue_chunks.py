"""Shared parts of the catalogue cross-entropy: settings, sums, rows and chunks.

Shape letters: T targets, E width of queries and items, V rows of the table.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Scratch:
    """Memory for (T, items) exponentials, reused in each step.

    A new allocation per step costs as much in page faults as a product. The buffer is exclusive
    until it is released; while it is in use, further calls allocate.
    """

    def __init__(self) -> None:
        self._free: Tensor | None = None

    def take(self, size: int, like: Tensor) -> Tensor:
        """Return an uninitialized buffer of at least (size,) numbers."""
        free, self._free = self._free, None
        if free is None or free.numel() < size or not _alike(free, like):
            return like.new_empty(size)
        return free

    def take_like(self, like: Tensor) -> Tensor:
        """Return an uninitialized buffer of the shape of `like`."""
        free, self._free = self._free, None
        if free is None or free.shape != like.shape or not _alike(free, like):
            return torch.empty_like(like)
        return free

    def release(self, memory: Tensor) -> None:
        """Return the buffer to the pool, on a CPU: allocators of other devices reuse memory."""
        if memory.device.type != "cpu":
            return
        if self._free is None or self._free.numel() < memory.numel():
            self._free = memory

    def __deepcopy__(self, memo: dict[int, Any]) -> "Scratch":
        return Scratch()


def _alike(free: Tensor, like: Tensor) -> bool:
    return free.device == like.device and free.dtype == like.dtype and free.is_contiguous()


class Settings(NamedTuple):
    """Settings of the computation of scores from queries and table."""

    first: int
    """Number of rows of the table before the first item."""
    smoothing: float
    """Share of the target's probability spread over the catalogue."""
    normalize: bool
    """Whether items are scaled to length 1."""
    scratch: Scratch | None
    """Buffer of the exponentials; None recomputes the scores in the backward pass."""
    gradients: Scratch | None
    """Buffer of the table's gradient; values of earlier steps are overwritten."""
    factors: torch.dtype | None = None
    """Type to which factors of products are rounded, None for the type of the queries."""


class Scan(NamedTuple):
    """Sums over the items of a table for T queries, computed in one pass."""

    top: Tensor
    """(T,) shift subtracted from scores before the exponential, near the largest score."""
    total: Tensor
    """(T,) sum of exp(score - top)."""
    mixed: Tensor
    """(T, E) sum of the items, weighted by exp(score - top); 0 unless `mix`."""
    item_sum: Tensor
    """(E,) sum of the items; 0 without smoothing."""
    tops: Tensor | None
    """(chunks, T) `top` after each chunk, None if no later pass reads it."""
    kept: tuple[Tensor, ...]
    """Exponentials of the chunks, in one buffer or one tensor per chunk; empty if not kept."""


def rounded(values: Tensor, factors: torch.dtype | None, precise: torch.dtype) -> Tensor:
    """Values rounded to `factors` as in a product, in the type `precise`."""
    return (values if factors is None else values.to(factors)).to(precise)


def item_rows(table: Tensor, start: int, stop: int, normalize: bool) -> Tensor:
    """(V, E) -> (stop - start, E) item vectors, of length 1 if `normalize`."""
    rows = table[start:stop]
    return functional.normalize(rows, dim=-1) if normalize else rows


def rows_of(table: Tensor, rows: Tensor, normalize: bool) -> Tensor:
    """(V, E), (N,) -> (N, E), of length 1 if `normalize`."""
    vectors = functional.embedding(rows, table)
    return functional.normalize(vectors, dim=-1) if normalize else vectors


def add_row_gradients(
    grad_table: Tensor, grad_rows: Tensor, table: Tensor, rows: Tensor, normalize: bool
) -> None:
    """Add the gradients of `rows_of` (N, E) to the gradient of the table (V, E), in place."""
    if normalize:
        grad_rows = through_norm(grad_rows, functional.embedding(rows, table))
    grad_table.index_add_(0, rows, grad_rows.to(table.dtype))


def through_norm(grad_unit: Tensor, rows: Tensor) -> Tensor:
    """Gradient of x / max(|x|, 1e-12) -> gradient of x, (N, E) both."""
    rows = rows.to(grad_unit.dtype)
    norm = rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    unit = rows / norm
    return (grad_unit - unit * (unit * grad_unit).sum(-1, keepdim=True)) / norm


def chunk_bounds(num_items: int, step: int, multiple: int = 1) -> list[tuple[int, int]]:
    """(first, last + 1) item of chunks of equal width, a multiple of `multiple` near `step`."""
    count = max(1, round(num_items / step))
    step = -(-num_items // count)
    step = -(-step // multiple) * multiple
    return [(start, min(start + step, num_items)) for start in range(0, num_items, step)]
