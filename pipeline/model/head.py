"""A body with the tasks that read its hidden states."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.data.schema import Schema, Tags
from pipeline.model.blocks import SequentialBlock
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import (
    BinaryClassificationTask,
    RegressionTask,
    TargetTask,
    check_summary_fits,
)

Task = NextItemPredictionTask | TargetTask
Reduction = Literal["mean", "sum"]


class Head(nn.Module):
    """One or several tasks on one body.

    `task_weights` are the weights of the losses, in the order of the tasks; the loss of the head is
    their weighted mean or sum. `task_blocks` are applied between the body and the tasks: one block
    that is copied for each task, or a block by task name. `inputs`, if present, must be the input
    block of the body.
    """

    def __init__(
        self,
        body: SequentialBlock,
        prediction_tasks: Task | list[Task],
        task_blocks: nn.Module | dict[str, nn.Module] | None = None,
        task_weights: list[float] | None = None,
        loss_reduction: Reduction = "mean",
        inputs: TabularSequenceFeatures | None = None,
    ) -> None:
        super().__init__()
        tasks = (
            prediction_tasks if isinstance(prediction_tasks, list | tuple) else [prediction_tasks]
        )
        _check_parts(body, tasks, inputs)
        self.body = body
        self.tasks = nn.ModuleList(tasks)
        self.task_weights = check_weights(task_weights, len(tasks), "task_weights")
        self.loss_reduction = check_reduction(loss_reduction)
        self._set_blocks(task_blocks)
        # per_item targets read the item vectors of the next-item task
        for task in sorted(self.all_tasks, key=lambda task: isinstance(task, TargetTask)):
            self._build(task)

    @classmethod
    def from_schema(
        cls,
        schema: Schema,
        body: SequentialBlock,
        task_blocks: nn.Module | dict[str, nn.Module] | None = None,
        task_weights: dict[str, float] | None = None,
        loss_reduction: Reduction = "mean",
    ) -> "Head":
        """Make a task for each column that is tagged binary_classification or regression.

        `task_weights` are by task name, 1 by default.
        """
        tasks: list[Task] = []
        for column in schema:
            summary: Literal["last"] | None = None if column.is_list else "last"
            if Tags.BINARY_CLASSIFICATION in column.tags:
                tasks.append(BinaryClassificationTask(column.name, summary_type=summary))
            elif Tags.REGRESSION in column.tags:
                tasks.append(RegressionTask(column.name, summary_type=summary))
        if not tasks:
            raise ConfigError("No column of the schema is tagged binary_classification/regression.")
        weights = dict(task_weights or {})
        names = [task.task_name for task in tasks]
        _check_task_names("task_weights", weights, names)
        chosen = [weights.get(name, 1.0) for name in names]
        return cls(body, tasks, task_blocks, chosen, loss_reduction)

    @property
    def all_tasks(self) -> list[Task]:
        """The tasks in order."""
        return [task for task in self.tasks if isinstance(task, Task)]

    @property
    def item_tasks(self) -> list[TargetTask]:
        """The tasks with a target for each candidate item, in order."""
        return [task for task in self.all_tasks if isinstance(task, TargetTask) and task.per_item]

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks in order."""
        return [task.task_name for task in self.all_tasks]

    def next_item_task(self) -> NextItemPredictionTask:
        """Return the next-item task. ConfigError if the head has none."""
        for task in self.all_tasks:
            if isinstance(task, NextItemPredictionTask):
                return task
        raise ConfigError("This head has no NextItemPredictionTask, so it scores no items.")

    @property
    def item_table(self) -> Tensor:
        """(V, item width) input embeddings of the items."""
        return self.body.inputs.item_table.weight

    def _set_blocks(self, blocks: nn.Module | dict[str, nn.Module] | None) -> None:
        if isinstance(blocks, dict):
            _check_task_names("task_blocks", blocks, self.task_names)
        for task in self.all_tasks:
            name = task.task_name
            block = blocks.get(name) if isinstance(blocks, dict) else copy.deepcopy(blocks)
            if block is not None:
                if task.task_block is not None:
                    raise ConfigError(f"{name} has a task_block already; give one of the two.")
                task.task_block = block

    def _build(self, task: Task) -> None:
        """Build the layers of a task. ConfigError if it does not fit the body."""
        inputs, masking = self.body.inputs, self.body.masking
        if isinstance(task, NextItemPredictionTask):
            if not masking.has_targets:
                raise ConfigError(
                    "The input block has no masking, so there is no next item to learn. Pass "
                    "masking='clm', 'mlm', 'plm' or 'rtd' to from_schema."
                )
            table = inputs.item_table
            task.build(self.body.output_size, table.num_embeddings, table.embedding_dim)
            return
        if task.target.column in inputs.feature_names:
            raise ConfigError(
                f"{task.target.column!r} is a feature that the model reads, so it cannot be "
                "predicted. Take it out of the schema of the input block."
            )
        check_summary_fits(task, masking)
        d_item = self.next_item_task().width if task.per_item else 0
        task.build(self.body.output_size, inputs.item_table.num_embeddings, d_item)


def _check_parts(body: object, tasks: Sequence[object], inputs: object) -> None:
    """ConfigError unless the body is a SequentialBlock and the tasks have different names."""
    if not isinstance(body, SequentialBlock):
        raise ConfigError(f"Head got {type(body).__name__} as body, expected a SequentialBlock.")
    if inputs is not None and inputs is not body.inputs:
        raise ConfigError("`inputs` is not the input block that the body begins with.")
    if not tasks:
        raise ConfigError("A Head needs a task, such as NextItemPredictionTask().")
    for task in tasks:
        if not isinstance(task, Task):
            raise ConfigError(
                f"Head got {task!r} as a task, expected one such as NextItemPredictionTask()."
            )
    check_unique([task.task_name for task in tasks if isinstance(task, Task)])


def _check_task_names(argument: str, named: Mapping[str, object], names: list[str]) -> None:
    unknown = sorted(set(named) - set(names))
    if unknown:
        raise ConfigError(f"{argument} names {unknown[0]!r}; tasks: {', '.join(names)}.")


def check_unique(names: list[str]) -> None:
    """ConfigError if two tasks have one name."""
    if len(set(names)) < len(names):
        raise ConfigError(f"Two tasks have the same name among {', '.join(names)}. Set task_name.")


def check_weights(weights: list[float] | None, count: int, name: str) -> list[float]:
    """Weights of `count` losses, 1 each for None. ConfigError for invalid weights."""
    chosen = [1.0] * count if weights is None else weights
    numbers = isinstance(chosen, list | tuple) and all(
        isinstance(weight, int | float) and 0 <= weight < float("inf") for weight in chosen
    )
    if not numbers or len(chosen) != count or sum(chosen) == 0:
        raise ConfigError(f"{name} is {weights}, expected {count} numbers of 0 or more, one above.")
    return [float(weight) for weight in chosen]


def check_reduction(name: Reduction) -> Reduction:
    """ConfigError unless `name` is mean or sum."""
    if name not in ("mean", "sum"):
        raise ConfigError(f"The reduction is {name!r}, expected mean or sum.")
    return name


def reduce_losses(losses: list[Tensor], weights: list[float], reduction: Reduction) -> Tensor:
    """Weighted sum, or mean, of losses ()."""
    total = losses[0] * weights[0]
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        total = total + loss * weight
    return total / sum(weights) if reduction == "mean" else total
