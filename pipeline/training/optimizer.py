"""AdamW for models whose largest weights are embedding tables.

Clipping is part of the step. A table with a sparse gradient is updated only in the rows of the
batch, so the cost of a step grows with the batch, not with the catalogue.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from pipeline.model.model import Model
from pipeline.model.ops.shards import ShardedEmbedding
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.recipe.train import TableOptimizer


class TableAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, ICLR 2019), fused; lazy weights update touched rows.

    Moments and weights of a row decay once per update of the row, and the bias of the moments is
    corrected by the row's own number of updates: with the number of steps, as in torch's
    SparseAdam, the first update of a rare item would be three times too large. With `row_wise` a
    row has one second moment, the mean of its squared gradients, instead of one per weight.
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
        """`lazy` are the weights of which a step updates only the rows with a gradient.

        These are the rows of a sparse gradient, or the non-zero rows of a dense one, which a GPU
        computes without synchronization. Sparse gradients of other weights become dense. The norm
        of the gradients includes the rows of a `sharded` table in other processes.
        """
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)
        self._lazy = {id(weight) for weight in lazy}
        self._row_wise = row_wise
        self._sharded = sharded
        self.grad_scale: Tensor | None = None

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Return the norm of all gradients (); the next step scales them to at most `max_norm`.

        The gradients themselves are unchanged.
        """
        norms: dict[int, Tensor] = {}
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            if weight.grad is None:
                continue
            values = weight.grad
            if values.is_sparse:
                # the gradient of a row is the sum of its entries
                weight.grad = values.coalesce()
                values = weight.grad.values()
            norms[id(weight)] = torch.linalg.vector_norm(values, dtype=torch.float32)
        if self._sharded is not None:
            table = self._sharded.weight
            own = norms.pop(id(table), torch.zeros((), device=table.device))
            norms[id(table)] = self._sharded.shards.sum(own.square()).sqrt()
        if not norms:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(torch.stack([*norms.values()]))
        self.grad_scale = (norm / max_norm).clamp(min=1.0)
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights, with gradients scaled by the last `clip`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if id(weight) in self._lazy:
                    update = self._step_rows if weight.grad.is_sparse else self._step_dense
                    update(weight, group)
                    rows.append((weight, weight.grad))
                    weight.grad = None
                elif weight.grad.is_sparse:
                    weight.grad = weight.grad.to_dense()
        super().step()
        for weight, gradient in rows:
            weight.grad = gradient
        self.grad_scale = None
        return loss

    def _step_rows(self, weight: Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None  # noqa: S101
        gradient = weight.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()  # (R,), (R, D)
        if self.grad_scale is not None:
            values = values / self.grad_scale
        state = self.state_of(weight)
        state["step"] += 1
        first_decay, second_decay = group["betas"]
        touches = state["touches"][rows] + 1
        mean = state["exp_avg"][rows].lerp_(values, 1 - first_decay)
        square = values.square()
        if self._row_wise:
            square = square.mean(1, keepdim=True)
        second = state["exp_avg_sq"][rows].lerp_(square, 1 - second_decay)
        state["touches"].index_copy_(0, rows, touches)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, second)
        deviation = (second / (1 - second_decay**touches)).sqrt_().add_(group["eps"])
        step = mean / (1 - first_decay**touches) / deviation
        decayed = weight[rows] * (1 - group["lr"] * group["weight_decay"])
        weight.index_copy_(0, rows, decayed.sub_(step, alpha=float(group["lr"])))

    def _step_dense(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Counterpart of `_step_rows` for the non-zero rows of a dense gradient."""
        assert weight.grad is not None  # noqa: S101
        values = weight.grad if self.grad_scale is None else weight.grad / self.grad_scale
        overflowed = getattr(self, "found_inf", None)  # set by GradScaler under fp16
        if overflowed is not None:
            values = torch.where(overflowed > 0, 0.0, values)  # no row is touched
        update_touched_rows(weight, values, self.state_of(weight), group["lr"], group)

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """State of a weight, all zeros before its first step."""
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            is_lazy = id(weight) in self._lazy
            second = weight[:, :1] if is_lazy and self._row_wise else weight
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(second, memory_format=torch.contiguous_format)
            if is_lazy:
                state["touches"] = torch.zeros(weight.size(0), 1, device=weight.device)
        return state


def update_touched_rows(
    weight: Tensor,
    values: Tensor,
    state: dict[str, Tensor],
    rate: float | Tensor,
    settings: dict[str, Any],
) -> None:
    """Update the rows of a weight (V, D) in which its gradient `values` (V, D) is not 0.

    `state` is the state of a lazy weight, `rate` the learning rate, a number or ().
    """
    touched = values.any(1, keepdim=True).to(weight.dtype)  # (V, 1)
    first_decay, second_decay = settings["betas"]
    touches, mean, second = state["touches"], state["exp_avg"], state["exp_avg_sq"]
    state["step"] += 1
    touches += touched
    mean.lerp_(values, touched * (1 - first_decay))
    square = values.square()
    if second.size(1) < values.size(1):  # one second moment a row
        square = square.mean(1, keepdim=True)
    second.lerp_(square, touched * (1 - second_decay))
    counts = touches.clamp(min=1)
    deviation = (second / (1 - second_decay**counts)).sqrt_().add_(settings["eps"])
    step = mean / (1 - first_decay**counts) / deviation
    weight.mul_(1 - touched * (rate * settings["weight_decay"]))
    weight.sub_(step * (touched * rate))


def build_optimizer(
    module: nn.Module,
    model: Model,
    decayed: set[str],
    arguments: TrainingArguments,
    tables: TableOptimizer = "adamw",
    sharded: ShardedEmbedding | None = None,
    dense_gradients: bool = False,
) -> TableAdamW:
    """Optimizer of `module`, which wraps `model`; `decayed` are names of weights with decay.

    `arguments` have the learning rate and the other settings of AdamW. `tables` is
    `TrainConfig.table_optimizer`, `sharded` the table sharded over processes. With
    `dense_gradients` all lookups have dense gradients, of fixed shapes.
    """
    lazy = set_sparse_gradients(model, sparse=tables != "adamw")
    if dense_gradients:
        set_sparse_gradients(model, sparse=False)
    named = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    groups = [
        {
            "params": [weight for name, weight in named if name in decayed],
            "weight_decay": arguments.weight_decay,
        },
        {"params": [weight for name, weight in named if name not in decayed], "weight_decay": 0.0},
    ]
    return TableAdamW(
        [group for group in groups if group["params"]],
        arguments.learning_rate,
        (arguments.adam_beta1, arguments.adam_beta2),
        arguments.adam_epsilon,
        arguments.weight_decay,
        lazy=lazy,
        row_wise=tables == "rowwise-adamw",
        sharded=sharded,
    )


def set_sparse_gradients(model: Model, *, sparse: bool) -> list[Tensor]:
    """Set whether table lookups have sparse gradients; return the weights with sparse gradients.

    The gradient of an item table whose rows are all scored is always dense.
    """
    weights: dict[int, Tensor] = {}
    for head, task in model.tasks_with_heads:
        inputs = head.body.inputs
        scored = None
        if isinstance(task, NextItemPredictionTask):
            task.sparse_gradients = sparse and task.sampled
            if task.sparse_gradients and task.output_table is not None:
                weights[id(task.output_table)] = task.output_table
            scored = inputs.item_table if task.weight_tying and not task.sampled else None
        for table in inputs.tables.values():
            table.sparse = sparse and table is not scored
            if table.sparse:
                weights[id(table.weight)] = table.weight
    return list(weights.values())
