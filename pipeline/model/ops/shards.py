"""Rows of one table spread over processes, and what the processes tell each other about them.

These are torch's own collectives. torch.distributed.tensor (DTensor) has a sharded embedding and a
`loss_parallel` too, but they are made for a batch that all processes share: every process would
look up the interactions of all, and scores would be a tensor (T, V / N) kept by autograd, without
label smoothing. Here each process has a batch of its own, and no two have equally many targets.

Every method that says so is one step that all processes must take together, in the same order.

Letters: N processes, V rows of the table, r a process, 0..N - 1.
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
    """r of this process."""
    count: int
    """N."""
    num_rows: int
    """V."""
    group: Any = None
    """Process group of their own, so that nothing of DDP's comes in between; None: torch's."""

    @property
    def bounds(self) -> list[int]:
        """(N + 1,) where the rows of each process begin; the last is V."""
        return [rank * self.num_rows // self.count for rank in range(self.count + 1)]

    @property
    def first(self) -> int:
        """First row of this process."""
        return self.bounds[self.rank]

    @property
    def last(self) -> int:
        """One past its last row."""
        return self.bounds[self.rank + 1]

    def here(self, rows: Tensor) -> Tensor:
        """(n,) rows -> (n,) bool: whether this process holds them."""
        return (rows >= self.first) & (rows < self.last)

    def sizes(self, number: int) -> list[int]:
        """A number of each process, by rank. Together."""
        # on the CPU, so that a GPU need not be waited for
        found = torch.empty(self.count, dtype=torch.int64)
        distributed.all_gather_single(found, torch.tensor([number]), group=self.group)
        return found.tolist()

    def gather(self, values: Tensor, sizes: list[int]) -> Tensor:
        """(n, ...) of each process, n as in `sizes`, -> all of them by rank. Together."""
        longest = max(sizes)
        padded = values.new_zeros(longest, *values.shape[1:])
        padded[: len(values)] = values
        found = values.new_empty(self.count * longest, *values.shape[1:])
        distributed.all_gather_single(found, padded, group=self.group)
        parts = found.split(longest) if longest else [found] * self.count
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def exchange(self, values: Tensor, given: list[int], taken: list[int]) -> Tensor:
        """Rows in the order of the processes they go to -> of those they come from. Together.

        `given` and `taken` are how many go to and come from each.
        """
        found = values.new_empty(sum(taken), *values.shape[1:])
        distributed.all_to_all_single(found, values.contiguous(), taken, given, group=self.group)
        return found

    def sum_of_own(self, values: Tensor, sizes: list[int]) -> Tensor:
        """(T, ...) of all, `sizes` of each process -> own ones, added up over all. Together."""
        own = sizes[self.rank]
        found = self.exchange(values, sizes, [own] * self.count)
        return found.view(self.count, own, *values.shape[1:]).sum(0)

    def sum(self, values: Tensor) -> Tensor:
        """`values` of the same shape everywhere, added up in place. Together."""
        distributed.all_reduce(values, group=self.group)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The largest of each number, in place. Together."""
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self.group)
        return values


class ShardedEmbedding(torch.nn.Embedding):
    """An embedding table of V rows, of which this process holds its own.

    `weight` is (own rows, d), and so are its gradient and what an optimizer keeps for it. Looking
    up is a step that all processes take together. The gradient is the mean of the processes'
    losses', as DDP's are.
    """

    def __init__(self, whole: torch.nn.Embedding, shards: Shards) -> None:
        """Keeps the rows of a `whole` table that are its own, nothing else of it."""
        own = whole.weight.detach()[shards.first : shards.last].clone()
        super().__init__(len(own), own.size(1), _weight=own)
        self.weight.requires_grad_(whole.weight.requires_grad)
        self.num_embeddings = shards.num_rows
        self.padding_idx = whole.padding_idx
        self.shards = shards

    def forward(self, indices: Tensor) -> Tensor:
        """(...) 0..V-1 -> (..., d). Together."""
        return self.look_up(indices, self.weight, sparse=self.sparse)

    def look_up(self, indices: Tensor, weight: Tensor, *, sparse: bool) -> Tensor:
        """The same by a `weight` (own rows, d) that stands in for the table's. Together."""
        shards = self.shards
        # each row goes over the wire once, however often a batch has it
        wanted, places = indices.to(torch.int64).unique(return_inverse=True)
        cuts = torch.searchsorted(wanted, wanted.new_tensor(shards.bounds[1:-1])).tolist()
        taken = [stop - start for start, stop in pairwise([0, *cuts, len(wanted)])]
        given = shards.exchange(torch.tensor(taken), [1] * shards.count, [1] * shards.count)
        asked = shards.exchange(wanted, taken, given.tolist()) - shards.first
        padding = None
        if self.padding_idx is not None and shards.first <= self.padding_idx < shards.last:
            padding = self.padding_idx - shards.first
        rows = functional.embedding(asked, weight, padding, sparse=sparse)
        sent: Tensor = _Exchange.apply(rows, given.tolist(), taken, shards)
        return functional.embedding(places, sent)


class _Exchange(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, given: list[int], taken: list[int], shards: Shards
    ) -> Tensor:
        ctx.given, ctx.taken, ctx.shards = given, taken, shards
        return shards.exchange(rows, given, taken)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_row: Tensor) -> tuple[Tensor, None, None, None]:
        back = ctx.shards.exchange(by_row, ctx.taken, ctx.given)
        return back.div_(ctx.shards.count), None, None, None
