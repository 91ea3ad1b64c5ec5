"""Dropout with cheap random numbers on a CPU.

torch draws a float per element, which takes a quarter of a training step on short sessions. Here 64
random bits decide four elements; the probability is rounded to a multiple of 1 / 65,536, and the
scale follows it. Other devices use torch's dropout.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

_STEPS = 2**16
_LOWEST = -(2**63)


class FastDropout(nn.Dropout):
    """Drop-in replacement of nn.Dropout."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        threshold = round(self.p * _STEPS)
        if not self.training or threshold == 0:
            return values
        traced = torch.compiler.is_compiling()
        if traced or values.device.type != "cpu" or threshold >= _STEPS:
            return functional.dropout(values, self.p)
        return _Dropout.apply(values, threshold)


def with_fast_dropout(module: nn.Module) -> nn.Module:
    """Replace each nn.Dropout inside the module, in place."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                fast = FastDropout(child.p)
                fast.train(child.training)
                setattr(parent, name, fast)
    return module


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: int) -> Tensor:
        count = values.numel()
        words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(_LOWEST, None)
        draws = words.view(torch.int16)[:count].view(values.shape)
        kept = draws >= threshold - _STEPS // 2
        ctx.save_for_backward(kept)
        ctx.scale = _STEPS / (_STEPS - threshold)
        return values.mul(kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad_output.mul(kept).mul_(ctx.scale), None
