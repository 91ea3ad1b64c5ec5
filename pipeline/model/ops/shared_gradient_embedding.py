"""One item table in two places of a graph: where items are read and where they are scored."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Tied(NamedTuple):
    """The same weights (V, E) twice."""

    looked_up: Tensor
    scored: Tensor


def tie(table: Tensor) -> Tied:
    """(V, E) -> the same, of which the first may have a sparse gradient.

    autograd adds a few rows to a gradient of all rows by making two more tables: one of zeros and
    one for the sum. Here the rows are added in place.
    """
    return Tied(*_Tie.apply(table))


class _Tie(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return table.view_as(table), table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, by_lookup: Tensor | None, by_score: Tensor | None) -> Tensor | None:
        if by_lookup is None or by_score is None:
            return by_score if by_lookup is None else by_lookup
        # made in this pass and held by nobody else; of a loss of nothing it is one number, spread
        return by_score.contiguous().add_(by_lookup)
