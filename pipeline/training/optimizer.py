"""AdamW for models whose largest weights are tables.

Clipping is folded into the step, and a table whose gradient is sparse is updated in the rows that
the batch touched alone, so that a step costs what the batch costs and not what the catalogue does.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.model import Model
from pipeline.model.ops.shards import ShardedEmbedding
from pipeline.recipe.train import TableOptimizer
from pipeline.training.sparse_gradients import set_sparse_gradients


class TableAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, ICLR 2019), fused; sparse gradients update touched rows.

    Of a touched row, the moments decay once a touch, and their bias is corrected by the number of
    its own touches: by that of all steps, the first update of a rare item would be three times
    too large (as in torch's SparseAdam). Weights decay when they are touched. With `row_wise` a
    row has one second moment, the mean of its squares, in place of one for each number.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        lazy: Iterable[Tensor] = (),
        row_wise: bool = False,
        sharded: ShardedEmbedding | None = None,
    ) -> None:
        """`lazy`: weights whose sparse gradients update rows; others' become dense.

        Of a table that is `sharded` the other processes' rows count in the norm as well.
        """
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)
        self._lazy = {id(weight) for weight in lazy}
        self._row_wise = row_wise
        self._sharded = sharded
        self.grad_scale: Tensor | None = None

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """(): norm of all gradients; the next step divides them so that it is at most `max_norm`.

        The gradients stay as they are.
        """
        norms = []
        if self._sharded is not None:
            own = torch.zeros((), device=self._sharded.weight.device)
        for weight in self._weights():
            if weight.grad is None:
                continue
            if weight.grad.is_sparse:
                # the same row may stand there several times, whose sum is what counts
                weight.grad = weight.grad.coalesce()
                norm = torch.linalg.vector_norm(weight.grad.values(), dtype=torch.float32)
            else:
                norm = torch.linalg.vector_norm(weight.grad, dtype=torch.float32)
            if self._sharded is not None and weight is self._sharded.weight:
                own = norm
            else:
                norms.append(norm)
        if self._sharded is not None:
            norms.append(self._sharded.shards.sum(own.square()).sqrt())
        if not norms:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.grad_scale = (norm / max_norm).clamp(min=1.0)
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update, of gradients that `clip` may have limited."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or not weight.grad.is_sparse:
                    continue
                if id(weight) in self._lazy:
                    self._step_rows(weight, group)
                    rows.append((weight, weight.grad))
                    weight.grad = None
                else:
                    weight.grad = weight.grad.to_dense()
        super().step()
        for weight, gradient in rows:
            weight.grad = gradient
        self.grad_scale = None
        return loss

    def _weights(self) -> Iterable[Tensor]:
        return (weight for group in self.param_groups for weight in group["params"])

    def _step_rows(self, weight: Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None  # noqa: S101
        gradient = weight.grad.coalesce()
        rows, given = gradient.indices()[0], gradient.values()  # (R,), (R, D)
        if self.grad_scale is not None:
            given = given / self.grad_scale
        state = self.state[weight]
        if not state:
            second = weight[:, :1] if self._row_wise else weight
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(second, memory_format=torch.contiguous_format)
            state["touches"] = torch.zeros(weight.size(0), 1, device=weight.device)
        state["step"] += 1
        first_decay, second_decay = group["betas"]
        touches = state["touches"][rows] + 1
        mean = state["exp_avg"][rows].lerp_(given, 1 - first_decay)
        square = given.square()
        if self._row_wise:
            square = square.mean(1, keepdim=True)
        second = state["exp_avg_sq"][rows].lerp_(square, 1 - second_decay)
        state["touches"].index_copy_(0, rows, touches)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, second)
        deviation = (second / (1 - second_decay**touches)).sqrt_().add_(group["eps"])
        step = mean / (1 - first_decay**touches) / deviation
        kept = weight[rows] * (1 - group["lr"] * group["weight_decay"])
        weight.index_copy_(0, rows, kept.sub_(step, alpha=float(group["lr"])))


def build_optimizer(
    module: nn.Module,
    model: Model,
    decayed: set[str],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    tables: TableOptimizer = "adamw",
    sharded: ShardedEmbedding | None = None,
) -> TableAdamW:
    """Optimizer of the weights of `module`, around `model`; `decayed` names those that decay.

    `tables` says how embedding tables are updated, see `TrainConfig.table_optimizer`; one may
    be `sharded` over processes.
    """
    lazy = set_sparse_gradients(model, sparse=tables != "adamw")
    named = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [w for name, w in named if name in decayed], "weight_decay": weight_decay},
        {"params": [w for name, w in named if name not in decayed], "weight_decay": 0.0},
    ]
    return TableAdamW(
        [group for group in groups if group["params"]],
        learning_rate,
        betas,
        eps,
        weight_decay,
        lazy=lazy,
        row_wise=tables == "rowwise-adamw",
        sharded=sharded,
    )
