"""One item table for the input lookup and the scores, which share one gradient."""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def share_gradient(table: Tensor) -> tuple[Tensor, Tensor]:
    """(V, E) -> views for lookup and for scores, whose gradients are added in place.

    autograd itself would add a sparse gradient to a dense one with two more tables in memory, zeros
    and the sum.
    """
    return _ShareGradient.apply(table)


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
        # no other node holds this gradient; the gradient of an empty loss is an expanded number
        return grad_scores.contiguous().add_(grad_lookup)
