"""One item table in two places of a graph: the input lookup and the scores share one gradient."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class SharedGradientTable(NamedTuple):
    """Two views of the same weights (V, E)."""

    looked_up: Tensor
    """Weights of the input lookup; their gradient may be sparse."""
    scored: Tensor
    """Weights of the scores, whose gradient is dense."""


def share_gradient(table: Tensor) -> SharedGradientTable:
    """(V, E) -> two views whose gradients are added in place.

    autograd adds a sparse gradient to a dense one with two more tables in memory: one of zeros and
    one for the sum.
    """
    return SharedGradientTable(*_ShareGradient.apply(table))


class _ShareGradient(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return table.view_as(table), table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(
        _ctx: Any, grad_lookup: Tensor | None, grad_scores: Tensor | None
    ) -> Tensor | None:
        if grad_lookup is None or grad_scores is None:
            return grad_scores if grad_lookup is None else grad_lookup
        # no other node holds this gradient; that of an empty loss is one number, expanded
        return grad_scores.contiguous().add_(grad_lookup)
