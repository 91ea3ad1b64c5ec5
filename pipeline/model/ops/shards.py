"""Rows of an embedding table sharded over processes, and the collectives that exchange them.

The collectives are torch's. torch.distributed.tensor (DTensor) also has a sharded embedding and a
`loss_parallel`, but it holds several tensors of scores (T, V / N) at once, label smoothing fails,
and all processes must have equally many targets. Here each process has its own batch, and the
number of targets differs. TorchRec's tables have lookups but no loss over the catalogue.
docs/reference/sharding.md has the comparison.

All processes must call methods marked "Collective" in the same order.

Shape letters: N processes, V rows of the table, r the rank of a process, 0..N - 1.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Process r of N holds rows r * V // N up to (r + 1) * V // N."""

    rank: int
    """r, the rank of this process."""
    count: int
    """N, the number of processes."""
    num_rows: int
    """V, the rows of the whole table."""
    group: Any = None
    """Process group separate from DDP's collectives; None is torch's default group."""

    @property
    def bounds(self) -> list[int]:
        """First row of each process, then V: N + 1 numbers."""
        return [rank * self.num_rows // self.count for rank in range(self.count + 1)]

    @property
    def first(self) -> int:
        """First row of this process."""
        return self.bounds[self.rank]

    @property
    def last(self) -> int:
        """Last row of this process plus 1."""
        return self.bounds[self.rank + 1]

    def owns(self, rows: Tensor) -> Tensor:
        """(n,) rows -> (n,) bool: whether this process holds them."""
        return (rows >= self.first) & (rows < self.last)

    def sizes(self, number: int) -> list[int]:
        """Gather `number` of all processes, by rank. Collective."""
        # on the CPU, without synchronizing the GPU
        numbers = torch.empty(self.count, dtype=torch.int64)
        distributed.all_gather_single(numbers, torch.tensor([number]), group=self.group)
        return numbers.tolist()

    def gather(self, values: Tensor, sizes: list[int]) -> Tensor:
        """(n, ...) of each process, n as in `sizes`, -> (sum of n, ...) by rank. Collective."""
        longest = max(sizes)
        padded = values.new_zeros(longest, *values.shape[1:])
        padded[: len(values)] = values
        gathered = values.new_empty(self.count * longest, *values.shape[1:])
        distributed.all_gather_single(gathered, padded, group=self.group)
        parts = gathered.split(longest) if longest else [gathered] * self.count
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def exchange(self, values: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows ordered by receiving process -> rows ordered by sending process. Collective.

        `sent` and `received` are the numbers of rows to and from each process.
        """
        rows = values.new_empty(sum(received), *values.shape[1:])
        distributed.all_to_all_single(rows, values.contiguous(), received, sent, group=self.group)
        return rows

    def sum_of_own(self, values: Tensor, sizes: list[int]) -> Tensor:
        """(sum of `sizes`, ...) of each process -> sum of this process's rows. Collective."""
        own = sizes[self.rank]
        parts = self.exchange(values, sizes, [own] * self.count)
        return parts.view(self.count, own, *values.shape[1:]).sum(0)

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values`, of equal shape in all processes, in place. Collective."""
        distributed.all_reduce(values, group=self.group)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the processes, in place. Collective."""
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self.group)
        return values


class ShardedEmbedding(torch.nn.Embedding):
    """An embedding table of V rows, of which this process holds its shard.

    `weight`, its gradient and its optimizer state are (own rows, d). A lookup is collective. The
    gradient is that of the mean of the losses of all processes, as in DDP.
    """

    def __init__(self, whole: torch.nn.Embedding, shards: Shards) -> None:
        """Copy the rows of this process from the `whole` table."""
        own = whole.weight.detach()[shards.first : shards.last].clone()
        super().__init__(len(own), own.size(1), _weight=own)
        self.weight.requires_grad_(whole.weight.requires_grad)
        self.num_embeddings = shards.num_rows
        self.padding_idx = whole.padding_idx
        self.shards = shards

    def forward(self, indices: Tensor) -> Tensor:
        """(...) indices 0..V-1 -> (..., d). Collective."""
        return self.look_up(indices, self.weight, sparse=self.sparse)

    def look_up(self, indices: Tensor, weight: Tensor, *, sparse: bool) -> Tensor:
        """Look up `indices` in a `weight` (own rows, d) in place of the table's. Collective."""
        shards = self.shards
        # each distinct row is sent once
        rows_read, positions = indices.to(torch.int64).unique(return_inverse=True)
        cuts = torch.searchsorted(rows_read, rows_read.new_tensor(shards.bounds[1:-1])).tolist()
        received = [stop - start for start, stop in pairwise([0, *cuts, len(rows_read)])]
        ones = [1] * shards.count
        sent = shards.exchange(torch.tensor(received), ones, ones).tolist()
        requests = shards.exchange(rows_read, received, sent) - shards.first
        padding = None
        if self.padding_idx is not None and shards.first <= self.padding_idx < shards.last:
            padding = self.padding_idx - shards.first
        rows = functional.embedding(requests, weight, padding, sparse=sparse)
        vectors: Tensor = _Exchange.apply(rows, sent, received, shards)
        return functional.embedding(positions, vectors)


class _Exchange(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], shards: Shards
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.shards = sent, received, shards
        return shards.exchange(rows, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        grad_rows = ctx.shards.exchange(grad_output, ctx.received, ctx.sent)
        return grad_rows.div_(ctx.shards.count), None, None, None
