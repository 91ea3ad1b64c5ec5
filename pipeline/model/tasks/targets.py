"""Tasks whose targets stand in a column of the batch: yes or no, and numbers."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch, visible_positions
from pipeline.model.leakage_reference import task_block_size

Summary = Literal["last", "mean", "first"] | None


class ColumnValues(nn.Module):
    """Numbers read off a column of the batch; with `table` (rows,) the column holds its indices.

    So a categorical column becomes a target or a weight: with {purchase: 5, view: 1} as a table.
    """

    def __init__(self, column: str, table: Tensor | None = None) -> None:
        super().__init__()
        self.column = column
        self.table: Tensor | None
        self.register_buffer("table", table, persistent=False)

    def forward(self, batch: SessionBatch) -> Tensor:
        """SessionBatch -> (B,) or (B, L) float."""
        if self.column not in batch.features:
            raise ConfigError(
                f"The batch has no column {self.column!r}, which a task reads. It has: "
                f"{', '.join(batch.features)}."
            )
        values = batch.features[self.column]
        return values.float() if self.table is None else self.table[values]

    @property
    def columns(self) -> tuple[str, ...]:
        """What the batch must hold."""
        return (self.column,)


class Recency(nn.Module):
    """Weights that halve for every `half_life` of age before `newest`, both in the column's units.

    `others` are weights that multiply them.
    """

    def __init__(
        self, column: str, *, newest: int, half_life: float, others: ColumnValues | None = None
    ) -> None:
        super().__init__()
        self.column = column
        self.newest = newest
        self.half_life = half_life
        self.others = others

    def forward(self, batch: SessionBatch) -> Tensor:
        """SessionBatch with whole numbers (B, L) -> (B, L) float64, 1 for the newest.

        What is a thousand half-lives old counts as that.
        """
        age = (self.newest - batch.features[self.column]).clamp(min=0).double() / self.half_life
        weights = torch.exp2(-age.clamp(max=1000))
        if self.others is None:
            return weights
        given: Tensor = self.others(batch)
        return weights * (given.unsqueeze(1) if given.dim() == 1 else given)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the batch must hold."""
        return (self.column, *(self.others.columns if self.others is not None else ()))


class BinaryClassificationTask(nn.Module):
    """The chance of a yes, of each session or (with `summary_type` None) of each interaction.

    `target` is a column of the batch with 0 and 1, (B,) or (B, L), that the model does not read.
    `summary_type`: "last" is the hidden state that predicts the next item, "mean" that over the
    interactions, "first" the oldest one's, which says something only if the model looks both ways.
    """

    def __init__(
        self,
        target_name: str | ColumnValues,
        *,
        task_name: str | None = None,
        task_block: nn.Module | None = None,
        summary_type: Summary = "last",
    ) -> None:
        super().__init__()
        self.target = ColumnValues(target_name) if isinstance(target_name, str) else target_name
        self.task_name = task_name or f"{self.target.column}/binary_classification_task"
        self.task_block = task_block
        self.summary_type = check_summary(summary_type)
        self.output: nn.Linear | None = None

    def build(self, d_hidden: int) -> None:
        """Make the last layer for hidden states of this width."""
        self.output = last_layer(self.output, self.task_block, d_hidden)

    def loss(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B,) -> (): mean binary cross-entropy."""
        logits = self._logits(hidden, query, batch)
        objective = functional.binary_cross_entropy_with_logits
        return target_loss(self.target, logits, batch, objective)

    def predict(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B,) -> (B,) or (B, L) chances."""
        return self._logits(hidden, query, batch).sigmoid()

    def _logits(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        summary = summarise(self.summary_type, hidden, query, batch)
        return project(self.output, self.task_block, summary)


class RegressionTask(nn.Module):
    """A number of each session or (with `summary_type` None) of each interaction.

    As BinaryClassificationTask; `loss` is "mse", "l1" or "huber" (of PyTorch's delta, 1).
    """

    def __init__(
        self,
        target_name: str | ColumnValues,
        *,
        loss: Literal["mse", "l1", "huber"] = "mse",
        task_name: str | None = None,
        task_block: nn.Module | None = None,
        summary_type: Summary = "last",
    ) -> None:
        super().__init__()
        losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mse": functional.mse_loss,
            "l1": functional.l1_loss,
            "huber": functional.huber_loss,
        }
        if loss not in losses:
            raise ConfigError(f"loss is {loss!r}, expected mse, l1 or huber.")
        self.objective = losses[loss]
        self.target = ColumnValues(target_name) if isinstance(target_name, str) else target_name
        self.task_name = task_name or f"{self.target.column}/regression_task"
        self.task_block = task_block
        self.summary_type = check_summary(summary_type)
        self.output: nn.Linear | None = None

    def build(self, d_hidden: int) -> None:
        """Make the last layer for hidden states of this width."""
        self.output = last_layer(self.output, self.task_block, d_hidden)

    def loss(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B,) -> ()."""
        found = self.predict(hidden, query, batch)
        return target_loss(self.target, found, batch, self.objective)

    def predict(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B,) -> (B,) or (B, L) numbers."""
        summary = summarise(self.summary_type, hidden, query, batch)
        return project(self.output, self.task_block, summary)


TargetTask = BinaryClassificationTask | RegressionTask


def check_summary(name: Summary) -> Summary:
    """ConfigError unless `name` is a way to summarise a session."""
    if name not in ("last", "mean", "first", None):
        raise ConfigError(
            f"summary_type is {name!r}, expected 'last', 'mean', 'first', or None for one target "
            "an interaction."
        )
    return name


def check_sight(task: TargetTask, *, causal: bool, masking: str) -> None:
    """ConfigError if the summary cannot tell anything under this masking."""
    if task.summary_type == "first" and causal:
        raise ConfigError(
            f"{task.task_name}: summary_type 'first' sees one interaction alone, since the model "
            "looks back. Use 'last' or 'mean'."
        )
    if task.summary_type != "last" and masking == "plm":
        raise ConfigError(
            f"{task.task_name}: plm has a hidden state for what is predicted alone. Use "
            "summary_type 'last'."
        )


def summarise(kind: Summary, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
    """(B, L, D), (B,) -> (B, D), or (B, L, D) of the interactions."""
    if kind == "last":
        return hidden[torch.arange(query.size(0), device=query.device), query]
    if kind == "first":
        return hidden[:, 0]
    if kind is None:
        return hidden
    inside = visible_positions(batch.lengths, hidden.size(1)).unsqueeze(-1).to(hidden.dtype)
    return (hidden * inside).sum(1) / inside.sum(1).clamp(min=1)


def last_layer(before: nn.Linear | None, task_block: nn.Module | None, width: int) -> nn.Linear:
    """One number from a hidden state of this width; builds the block in front of it."""
    if before is not None:
        raise ConfigError("A task stands in two heads; make one for each.")
    return nn.Linear(width if task_block is None else task_block_size(task_block, width), 1)


def project(output: nn.Linear | None, task_block: nn.Module | None, summary: Tensor) -> Tensor:
    """(B, D) -> (B,), or (B, L, D) -> (B, L)."""
    if output is None:
        raise ConfigError("A task predicts as part of a Head.")
    rows = summary.flatten(0, -2)
    numbers: Tensor = output(rows if task_block is None else task_block(rows))
    return numbers.squeeze(-1).unflatten(0, summary.shape[:-1])


def target_loss(
    target: ColumnValues,
    found: Tensor,
    batch: SessionBatch,
    objective: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Mean over sessions that are not empty, or over interactions."""
    wanted = target(batch).to(found.dtype)
    if found.dim() == 2:
        if wanted.dim() != 2:
            raise ConfigError(
                f"{target.column!r} has one value a session, and summary_type None wants one an "
                "interaction."
            )
        found = found[:, : wanted.size(1)]
        inside = visible_positions(batch.lengths, wanted.size(1))
    else:
        if wanted.dim() != 1:
            raise ConfigError(
                f"{target.column!r} has one value an interaction; set summary_type=None."
            )
        inside = batch.lengths > 0
    if not bool(inside.any()):
        return found.sum() * 0
    return objective(found[inside], wanted[inside])
