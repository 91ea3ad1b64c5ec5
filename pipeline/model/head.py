"""A body with the tasks that read its hidden states."""

import copy
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
    check_sight,
)

Task = NextItemPredictionTask | TargetTask


class Head(nn.Module):
    """One or several tasks on one body.

    `task_weights` weigh the losses, in the order of the tasks; the head's loss is their weighted
    mean or sum. `task_blocks` stand between the body and the tasks: one that is copied for each
    task, or one by task name.
    """

    def __init__(
        self,
        body: SequentialBlock,
        prediction_tasks: Task | list[Task],
        task_blocks: nn.Module | dict[str, nn.Module] | None = None,
        task_weights: list[float] | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        inputs: TabularSequenceFeatures | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(body, SequentialBlock):
            raise ConfigError(
                f"Head got {type(body).__name__} as body, expected a SequentialBlock."
            )
        if inputs is not None and inputs is not body.inputs:
            raise ConfigError("`inputs` is not the input block that the body begins with.")
        several = isinstance(prediction_tasks, list | tuple)
        tasks: list[Task] = list(prediction_tasks) if several else [prediction_tasks]  # type: ignore[arg-type, list-item]
        for task in tasks:
            if not isinstance(task, Task):
                raise ConfigError(
                    f"Head got {task!r} as a task, expected one such as NextItemPredictionTask()."
                )
        names = [task.task_name for task in tasks]
        if not tasks:
            raise ConfigError("A Head needs a task, such as NextItemPredictionTask().")
        if len(set(names)) < len(names):
            raise ConfigError(f"Two tasks have one name among {', '.join(names)}. Set task_name.")
        self.body = body
        self.tasks = nn.ModuleList(tasks)
        self.task_weights = check_weights(task_weights, len(tasks), "task_weights")
        self.loss_reduction = check_reduction(loss_reduction)
        self._set_blocks(task_blocks, names)
        self._build()

    @classmethod
    def from_schema(
        cls,
        schema: Schema,
        body: SequentialBlock,
        task_blocks: nn.Module | dict[str, nn.Module] | None = None,
        task_weights: dict[str, float] | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
    ) -> "Head":
        """A task for each column that is tagged binary_classification or regression."""
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
        unknown = sorted(set(weights) - set(names))
        if unknown:
            raise ConfigError(f"task_weights names {unknown[0]!r}; tasks: {', '.join(names)}.")
        chosen = [weights.get(name, 1.0) for name in names]
        return cls(body, tasks, task_blocks, chosen, loss_reduction)

    @property
    def all_tasks(self) -> list[Task]:
        """The tasks in order."""
        return [task for task in self.tasks if isinstance(task, Task)]

    @property
    def task_names(self) -> list[str]:
        """Their names."""
        return [task.task_name for task in self.all_tasks]

    @property
    def task(self) -> NextItemPredictionTask:
        """The next-item task. ConfigError if there is none."""
        for task in self.all_tasks:
            if isinstance(task, NextItemPredictionTask):
                return task
        raise ConfigError("This head has no NextItemPredictionTask, so it scores no items.")

    @property
    def item_table(self) -> Tensor:
        """(V, item width) input embeddings of the items."""
        return self.body.inputs.item_table.weight

    def _set_blocks(
        self, blocks: nn.Module | dict[str, nn.Module] | None, names: list[str]
    ) -> None:
        if isinstance(blocks, dict):
            unknown = sorted(set(blocks) - set(names))
            if unknown:
                raise ConfigError(f"task_blocks names {unknown[0]!r}; tasks: {', '.join(names)}.")
        for name, task in zip(names, self.all_tasks, strict=True):
            block = blocks.get(name) if isinstance(blocks, dict) else copy.deepcopy(blocks)
            if block is not None:
                if task.task_block is not None:
                    raise ConfigError(f"{name} has a task_block already; give one of the two.")
                task.task_block = block

    def _build(self) -> None:
        masking = self.body.masking
        table = self.body.inputs.item_table
        for task in self.all_tasks:
            if isinstance(task, NextItemPredictionTask):
                if masking.name == "none":
                    raise ConfigError(
                        "The input block has no masking, so there is no next item to learn. Pass "
                        "masking='clm', 'mlm', 'plm' or 'rtd' to from_schema."
                    )
                task.build(self.body.output_size, table.num_embeddings, table.embedding_dim)
            else:
                if task.target.column in self.body.inputs.feature_names:
                    raise ConfigError(
                        f"{task.target.column!r} is a feature that the model reads, so it cannot "
                        "be predicted. Take it out of the schema of the input block."
                    )
                check_sight(task, causal=masking.causal, masking=masking.name)
                task.build(self.body.output_size)


def check_weights(weights: list[float] | None, count: int, name: str) -> list[float]:
    """Weights of `count` losses, 1 where none are given."""
    chosen = [1.0] * count if weights is None else weights
    numbers = isinstance(chosen, list | tuple) and all(
        isinstance(weight, int | float) and 0 <= weight < float("inf") for weight in chosen
    )
    if not numbers or len(chosen) != count or sum(chosen) == 0:
        raise ConfigError(f"{name} is {weights}, expected {count} numbers of 0 or more, one above.")
    return [float(weight) for weight in chosen]


def check_reduction(name: Literal["mean", "sum"]) -> Literal["mean", "sum"]:
    """ConfigError unless it is one of the two."""
    if name not in ("mean", "sum"):
        raise ConfigError(f"The reduction is {name!r}, expected mean or sum.")
    return name


def reduce_losses(
    losses: list[Tensor], weights: list[float], reduction: Literal["mean", "sum"]
) -> Tensor:
    """Weighted sum, or mean, of losses ()."""
    total = losses[0] * weights[0]
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        total = total + loss * weight
    return total / sum(weights) if reduction == "mean" else total
