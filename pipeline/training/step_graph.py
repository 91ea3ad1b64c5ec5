"""A whole training step as one graph: forward, loss, backward, clipping and AdamW.

On a GPU a graph of `torch.compile(mode="reduce-overhead")` is recorded as a CUDA graph, so that a
step is a single launch. All values that change between steps are tensors: the batch, the scheduled
learning rate, the moments and step counters. No gradient outlives the step.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.adam import adam

from pipeline.data.batch import SessionBatch
from pipeline.training.compilation import Compiler, Loss
from pipeline.training.optimizer import TableAdamW, update_touched_rows

_SETTINGS = ("betas", "eps", "weight_decay")


@dataclass(frozen=True)
class _Group:
    """Weights with the same optimizer settings."""

    weights: list[Tensor]
    states: list[dict[str, Tensor]]
    rate: Tensor
    """() learning rate."""
    settings: dict[str, Any]


class StepGraph:
    """Training step of `loss` on the weights of `optimizer`."""

    def __init__(
        self,
        loss: Loss,
        optimizer: TableAdamW,
        compiler: Compiler,
        max_norm: float,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """`max_norm` bounds the gradient norm, `autocast()` is the context of the forward pass."""
        self._loss = loss
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._autocast = autocast
        self._graph = compiler(self._step)
        device = optimizer.param_groups[0]["params"][0].device
        self.norm = torch.zeros((), device=device)
        """() norm of the gradients of the last step, before clipping."""
        self._groups = [
            _Group(
                group["params"],
                [optimizer.state_of(weight) for weight in group["params"]],
                torch.zeros((), device=device),
                {name: group[name] for name in _SETTINGS},
            )
            for group in optimizer.param_groups
        ]
        self._fix_addresses()

    def __call__(self, batch: SessionBatch) -> Tensor:
        """Update the weights; return the loss before the update, ()."""
        for group, settings in zip(self._groups, self._optimizer.param_groups, strict=True):
            group.rate.fill_(settings["lr"])
        return self._graph(batch)

    def _fix_addresses(self) -> None:
        """Mark tensors with a fixed address, which a CUDA graph would otherwise copy in each
        step."""
        fixed = [self.norm]
        for group in self._groups:
            fixed += [group.rate, *group.weights]
            fixed += [values for state in group.states for values in state.values()]
        for values in fixed:
            torch._dynamo.mark_static_address(values)

    def _step(self, batch: SessionBatch) -> Tensor:
        with self._autocast():
            loss = self._loss(batch)
        weights = [weight for group in self._groups for weight in group.weights]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        with torch.no_grad():
            norm = get_total_norm([each for each in gradients if each is not None])
            self.norm.copy_(norm)
            scale = (norm / self._max_norm).clamp(min=1.0)
            self._update([None if each is None else each / scale for each in gradients])
        return loss.detach()

    def _update(self, gradients: Sequence[Tensor | None]) -> None:
        remaining = iter(gradients)
        for group in self._groups:
            dense = []
            for weight, state in zip(group.weights, group.states, strict=True):
                gradient = next(remaining)
                if gradient is None:
                    continue
                if "touches" in state:
                    update_touched_rows(weight, gradient, state, group.rate, group.settings)
                else:
                    dense.append((weight, gradient, state))
            first_decay, second_decay = group.settings["betas"]
            adam(
                [weight for weight, _, _ in dense],
                [gradient for _, gradient, _ in dense],
                [state["exp_avg"] for _, _, state in dense],
                [state["exp_avg_sq"] for _, _, state in dense],
                [],
                [state["step"] for _, _, state in dense],
                foreach=True,
                capturable=True,
                decoupled_weight_decay=True,
                amsgrad=False,
                maximize=False,
                beta1=first_decay,
                beta2=second_decay,
                eps=group.settings["eps"],
                weight_decay=group.settings["weight_decay"],
                lr=group.rate,
            )
