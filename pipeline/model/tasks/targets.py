"""Tasks whose targets are a column of the batch: binary classification and regression.

Shape letters: B sessions, L positions, D width of hidden states.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.errors import ConfigError, DataError
from pipeline.data.batch import SessionBatch, visible_positions
from pipeline.model.leakage import task_block_output_size
from pipeline.model.masking import Masking
from pipeline.model.ops.slots import Slots
from pipeline.model.target_labels import Units
from pipeline.model.tasks.item_output import ItemOutput

Summary = Literal["last", "mean", "first"] | None


class ColumnValues(nn.Module):
    """Numbers of a column of the batch, or entries of a `table` (rows,) at the column's indices.

    With a table, a categorical column becomes a target or a weight, as in {purchase: 5, view: 1}.
    """

    def __init__(self, column: str, table: Tensor | None = None) -> None:
        super().__init__()
        self.column = column
        self.table: Tensor | None
        self.register_buffer("table", table, persistent=False)

    def forward(self, batch: SessionBatch) -> Tensor:
        """SessionBatch -> (B,) or (B, L) float. ConfigError if the batch lacks the column."""
        if self.column not in batch.features:
            raise ConfigError(
                f"The batch has no column {self.column!r}, which a task reads. It has: "
                f"{', '.join(batch.features)}."
            )
        values = batch.features[self.column]
        # a batch may still be on the CPU
        return values.float() if self.table is None else self.table.to(values.device)[values]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read from a batch."""
        return (self.column,)


class Recency(nn.Module):
    """Weights that halve for every `half_life` of age before `newest`, in units of the column.

    `others` are further weights, which are multiplied.
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
        """SessionBatch with an integer column (B, L) -> (B, L) float64, 1 for the newest.

        Ages above a thousand half-lives count as a thousand.
        """
        age = (self.newest - batch.features[self.column]).clamp(min=0).double() / self.half_life
        weights = torch.exp2(-age.clamp(max=1000))
        if self.others is None:
            return weights
        others: Tensor = self.others(batch)
        return weights * (others.unsqueeze(1) if others.dim() == 1 else others)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read from a batch."""
        return (self.column, *(self.others.columns if self.others is not None else ()))


class TargetTask(nn.Module):
    """One number from the hidden states of a session or of each interaction.

    `target_name` is a column of the batch, (B,) or (B, L), outside the features of the model.
    `summary_type` is "last" (the hidden state that predicts the next item), "mean" (over the
    interactions), "first" (of the oldest interaction; only for bidirectional models) or
    None for one target per interaction. `task_block` is a block between hidden states and output.

    `per_item` predicts a column of the next interaction for each candidate item, from the hidden
    state that predicts the next item, so that lists can be ranked by it.
    """

    kind: str
    """Suffix of the default task name, as in Transformers4Rec."""

    def __init__(
        self,
        target_name: str | ColumnValues,
        *,
        task_name: str | None = None,
        task_block: nn.Module | None = None,
        summary_type: Summary = "last",
        per_item: bool = False,
    ) -> None:
        super().__init__()
        if summary_type not in ("last", "mean", "first", None):
            raise ConfigError(
                f"summary_type is {summary_type!r}, expected 'last', 'mean', 'first', or None for "
                "one target per interaction."
            )
        if per_item and summary_type != "last":
            raise ConfigError("per_item reads the last hidden state; leave summary_type out.")
        self.target = ColumnValues(target_name) if isinstance(target_name, str) else target_name
        self.task_name = task_name or f"{self.target.column}/{self.kind}"
        self.task_block = task_block
        self.summary_type = summary_type
        self.per_item = per_item
        self.output: nn.Linear | ItemOutput | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the loss reads beside the features."""
        return (self.target.column,)

    def build(self, d_hidden: int, num_rows: int = 0, d_item: int = 0) -> None:
        """Build the output layer for hidden states of this width. ConfigError if it exists.

        `num_rows` and `d_item` are V and E of the item table, for a `per_item` target.
        """
        if self.output is not None:
            raise ConfigError("A task is used in two heads; create one for each.")
        if self.task_block is not None:
            d_hidden = task_block_output_size(self.task_block, d_hidden)
        per_item = self.per_item
        self.output = ItemOutput(d_hidden, num_rows, d_item) if per_item else nn.Linear(d_hidden, 1)

    def loss(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B,) -> (): mean over non-empty sessions, or over interactions."""
        outputs = self.outputs(hidden, query, batch)
        targets = self.labels(batch).to(outputs.dtype)
        if outputs.dim() == 2:
            outputs = outputs[:, : targets.size(1)]
        has_target = self.has_target(batch)
        slots = Slots.of(has_target, has_target.numel() if batch.is_static else None)
        if not batch.is_static:  # the check synchronizes the device
            self.check(targets[has_target])
        # an empty slot holds an arbitrary target, which may be NaN
        return slots.mean(self.objective(slots.take(outputs), slots.take(targets).nan_to_num()))

    @property
    def of_session(self) -> bool:
        """Whether there is one target per session rather than per interaction."""
        return self.summary_type is not None and not self.per_item

    def labels(self, batch: SessionBatch) -> Tensor:
        """(B,) or (B, L) targets of the loss, NaN for none.

        ConfigError unless the column has one value per session or per interaction, as the summary.
        """
        targets: Tensor = self.target(batch)
        if self.of_session and targets.dim() != 1:
            raise ConfigError(
                f"{self.target.column!r} has one value per interaction; set summary_type=None."
            )
        if not self.of_session and targets.dim() != 2:
            setting = "per_item" if self.per_item else "summary_type None"
            raise ConfigError(
                f"{self.target.column!r} has one value per session, and {setting} needs one "
                "per interaction."
            )
        return targets

    def has_target(self, batch: SessionBatch) -> Tensor:
        """(B,) or (B, L) bool: sessions, or interactions, with a target."""
        labels = self.labels(batch)
        inside = batch.lengths > 0
        if not self.of_session:
            inside = visible_positions(batch.lengths, labels.size(1))
        return inside & ~labels.isnan()

    def check(self, targets: Tensor) -> None:
        """DataError for (N,) invalid targets."""

    def in_units(self, values: Tensor) -> Tensor:
        """Predictions or targets of the loss -> in the units of the log, of the same shape."""
        return values

    def predictions(self, outputs: Tensor) -> Tensor:
        """Outputs of the last layer -> predictions in the units of the log, of the same shape."""
        return self.in_units(outputs)

    def outputs(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B,) -> (B,) or (B, L) outputs of the last layer."""
        if self.output is None:
            raise ConfigError("A task predicts as part of a Head.")
        summary = self._summarize(hidden, query, batch)  # (B, D) or (B, L, D)
        numbers: Tensor = self.output(self.through_block(summary.flatten(0, -2)))
        return numbers.squeeze(-1).unflatten(0, summary.shape[:-1])

    def predict(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B,) -> (B,) or (B, L) predictions."""
        return self.predictions(self.outputs(hidden, query, batch))

    def through_block(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, width of the task block)."""
        return hidden if self.task_block is None else self.task_block(hidden)

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,), (N,) -> (N,)."""
        raise NotImplementedError

    def _summarize(self, hidden: Tensor, query: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B,) -> (B, D), or (B, L, D) for one target per interaction."""
        match self.summary_type:
            case "last":
                return hidden[torch.arange(query.size(0), device=query.device), query]
            case "first":
                return hidden[:, 0]
            case "mean":
                inside = visible_positions(batch.lengths, hidden.size(1)).unsqueeze(-1)
                inside = inside.to(hidden.dtype)
                return (hidden * inside).sum(1) / inside.sum(1).clamp(min=1)
        return hidden


class BinaryClassificationTask(TargetTask):
    """Probability of a positive, trained by binary cross-entropy on a column of 0 and 1.

    DataError for any other number in a batch.
    """

    kind = "binary_classification_task"

    def check(self, targets: Tensor) -> None:
        """DataError for (N,) targets other than 0 and 1."""
        wrong = targets[(targets != 0) & (targets != 1)]
        if len(wrong):
            raise DataError(
                f"{self.target.column!r} has {float(wrong[0]):g} as a binary target, expected 0 "
                "or 1. Use RegressionTask for numbers."
            )

    def predictions(self, outputs: Tensor) -> Tensor:
        """Logits -> probabilities, of the same shape."""
        return outputs.sigmoid()

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,) logits, (N,) -> (N,): binary cross-entropy."""
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


class RegressionTask(TargetTask):
    """A number; `loss` is "mse", "l1" or "huber" (with PyTorch's delta, 1).

    The loss is over the numbers of the column; predictions are restored to its `units`.
    """

    kind = "regression_task"

    def __init__(
        self,
        target_name: str | ColumnValues,
        *,
        loss: Literal["mse", "l1", "huber"] = "mse",
        units: Units = Units(),  # noqa: B008  immutable
        task_name: str | None = None,
        task_block: nn.Module | None = None,
        summary_type: Summary = "last",
        per_item: bool = False,
    ) -> None:
        super().__init__(
            target_name,
            task_name=task_name,
            task_block=task_block,
            summary_type=summary_type,
            per_item=per_item,
        )
        if loss not in _LOSSES:
            raise ConfigError(f"loss is {loss!r}, expected mse, l1 or huber.")
        self._loss = _LOSSES[loss]
        self.units = units

    def in_units(self, values: Tensor) -> Tensor:
        """Standardized numbers -> numbers in the units of the log, of the same shape."""
        return self.units.restore(values)

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,), (N,) -> (N,): the chosen loss."""
        return self._loss(outputs, targets, reduction="none")


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
}


def check_summary_fits(task: TargetTask, masking: Masking) -> None:
    """ConfigError if the summary holds no information under the masking."""
    if task.per_item and masking.name == "rtd":
        raise ConfigError(
            f"{task.task_name}: rtd learns the next item from replaced interactions, so a per_item "
            "target is for clm, mlm and plm."
        )
    if task.summary_type == "first" and masking.causal:
        raise ConfigError(
            f"{task.task_name}: summary_type 'first' sees only one interaction, as the model is "
            "causal. Use 'last' or 'mean'."
        )
    if task.summary_type != "last" and masking.name == "plm":
        advice = "Use summary 'last'."
        if not task.of_session:
            advice = "A target of each interaction goes with masking clm, mlm or rtd."
        raise ConfigError(f"{task.task_name}: plm has hidden states of targets only. {advice}")
