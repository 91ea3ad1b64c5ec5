"""Head and Model with the arguments and methods of Transformers4Rec.

Shape letters: B sessions, L positions, V rows of the item table, K list length, T targets.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline import model as blocks
from pipeline.compat.arguments import PAGE, expect, naming_the_page
from pipeline.compat.construction import Rebuildable
from pipeline.compat.evaluation import evaluate_batches, tested
from pipeline.compat.features import ROW, as_schema, as_sessions
from pipeline.compat.fitting import fit
from pipeline.compat.ranking_metric import default_metrics
from pipeline.compat.saving import load_model, save_model
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.data.schema import ColumnSchema, Schema
from pipeline.model.head import Task
from pipeline.model.tasks.next_item import NextItemPredictionTask

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor] | SessionBatch
"""Features by name, (B, L) or (B,), or ragged as `NAME__values` and `NAME__offsets`."""


class Head(Rebuildable, blocks.Head):
    """One or several tasks on one body."""

    def __init__(
        self,
        body: blocks.SequentialBlock,
        prediction_tasks: Any,
        task_blocks: nn.Module | dict[str, nn.Module] | None = None,
        task_weights: list[float] | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        inputs: Any = None,
    ) -> None:
        arguments = (body, prediction_tasks, task_blocks, task_weights, loss_reduction, inputs)
        with naming_the_page():
            super().__init__(*arguments)

    @classmethod
    def from_schema(
        cls,
        schema: Schema | Iterable[Any],
        body: blocks.SequentialBlock,
        task_blocks: nn.Module | dict[str, nn.Module] | None = None,
        task_weight_dict: dict[str, float] | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        inputs: Any = None,
    ) -> Self:
        """Make a task for each column that is tagged binary_classification or regression.

        `task_weight_dict` are weights by task name, 1 by default.
        """
        expect("inputs", inputs, None, body.inputs, because="the body begins with its input block")
        made = super().from_schema(
            as_schema(schema), body, task_blocks, task_weight_dict, loss_reduction
        )
        assert isinstance(made, cls)  # noqa: S101
        return made

    def to_model(self, **arguments: Any) -> "Model":
        """Build a model with this head."""
        return Model(self, **arguments)


class Model(Rebuildable, blocks.Model):
    """Model that reads dictionaries, has `fit` and `evaluate`, and is saved without pickle.

    The argument `top_k` is the length of the lists that a call returns, see `forward`; the method
    `model.top_k(batch, k)` returns lists with filters. `optimizer` is the class that `fit` uses.
    """

    def __init__(
        self,
        *head: blocks.Head,
        head_weights: list[float] | None = None,
        head_reduction: Literal["mean", "sum"] = "mean",
        optimizer: Any = torch.optim.Adam,
        name: str | None = None,
        max_sequence_length: int | None = None,
        top_k: int | None = None,
    ) -> None:
        super().__init__(*head, head_weights=head_weights, head_reduction=head_reduction)
        if self.item_tasks:
            raise ConfigError("Targets per item are for `pipeline.model.Model`, without compat.")
        set_longest(self, max_sequence_length)
        self.optimizer = optimizer
        self.name = name
        self.last_metrics: dict[str, float] = {}
        """Metrics and loss of the last evaluation."""
        self.list_length: int | None = None
        """K of the lists that a call returns, None for scores of the whole catalogue."""
        if top_k is not None:
            self._set_list_length(top_k)

    def __setattr__(self, name: str, value: Any) -> None:
        """`model.top_k = k` sets the length of the lists and keeps the method of that name."""
        if name == "top_k":
            self._set_list_length(value)
        else:
            super().__setattr__(name, value)

    def _set_list_length(self, length: int | None) -> None:
        if length is not None and (not isinstance(length, int) or length < 1):
            raise ConfigError(f"top_k is {length!r}, expected a whole number above 0, or None.")
        self.list_length = length

    def forward(
        self,
        inputs: Batch,
        targets: Mapping[str, Tensor] | Tensor | None = None,
        training: bool = False,
        testing: bool = False,
    ) -> Any:
        """Predict, or with `training` or `testing` return the loss.

        For a SessionBatch, return scores (B, V). For a dictionary, return the prediction of the
        task, or a dictionary by name for several tasks: scores (B, V), with `top_k` (scores, items)
        of (B, K), probabilities or numbers. With `training`, return {"loss": ()}, with masks of
        training; with `testing`, {"loss", "labels" (T,), "predictions" (T, V)} at the targets of an
        evaluation, by name for several tasks. `targets` are columns, or the values of a single one.
        """
        batch = as_sessions(self.inputs, inputs, self._named(targets))
        if training:
            return {"loss": self.loss(batch)}
        if testing:
            return tested(self, batch)
        if isinstance(inputs, SessionBatch):
            return super().forward(batch)
        predictions: dict[str, Any] = self.predict(batch)
        if self.list_length is not None:
            best = self.top_k(batch, self.list_length)
            predictions[self.head.next_item_task().task_name] = best.scores, best.items
        return predictions if len(predictions) > 1 else next(iter(predictions.values()))

    def _named(self, targets: Any) -> Any:
        """Targets by column; a tensor is the target of the only target task."""
        columns = {task.target.column for _, task in self.target_tasks}
        if not isinstance(targets, Tensor):
            return targets
        if len(columns) != 1:
            raise ConfigError(f"Give targets by column: {', '.join(sorted(columns)) or 'none'}.")
        return {columns.pop(): targets}

    def fit(
        self,
        dataloader: Iterable[Any],
        optimizer: Any = None,
        eval_dataloader: Iterable[Any] | None = None,
        num_epochs: int = 1,
        amp: bool = False,
        train: bool = True,
        verbose: bool = True,
        compute_metric: bool = True,
    ) -> NDArray[Any]:
        """Take one step per batch of a loader; return (epochs,) mean losses.

        Batches are (features, targets) or features; a torch DataLoader is replaced by its data set.
        `optimizer` is a class, such as torch.optim.Adam, or an optimizer. The metrics of
        `eval_dataloader` are logged. Schedules, accumulation and several processes need the
        Trainer.
        """
        expect("train", train, True, because="`evaluate` computes losses without training")
        batches = batches_of(dataloader)
        evaluation = batches_of(eval_dataloader) if compute_metric and eval_dataloader else None
        chosen = self.optimizer if optimizer is None else optimizer
        return fit(self, batches, chosen, evaluation, num_epochs, amp=amp, verbose=verbose)

    def evaluate(
        self,
        dataloader: Iterable[Any],
        targets: Any = None,
        training: bool = False,
        testing: bool = True,
        verbose: bool = True,  # noqa: ARG002  (nothing is printed)
        mode: str = "eval",
    ) -> dict[str, float]:
        """Metrics of the tasks by `TASK/METRIC`, and the mean loss as `loss`.

        Batches are those of `fit`. `mode` is ignored, as for a single task of the original.
        """
        expect("targets", targets, None, because="they come with the batches")
        expect("training", training, False, because="an evaluation tests")
        expect("testing", testing, True, because="an evaluation tests")
        values = evaluate_batches(self, batches_of(dataloader), prefix=mode)
        self.last_metrics = {k.removeprefix(f"{mode}_/"): value for k, value in values.items()}
        return dict(self.last_metrics)

    def calculate_metrics(self, predictions: Any, targets: Any) -> dict[str, Tensor]:
        """Ranking metrics (cutoffs,) of scores (T, V) and items (T,), the output with `testing`."""
        task = self.head.next_item_task()
        name = task.task_name
        if isinstance(predictions, Mapping):
            predictions, targets = predictions[name], targets[name]
        metrics = getattr(task, "metrics", None) or default_metrics()
        return {
            f"{name}/{m.name}": type(m)(m.top_ks, labels_onehot=True)(predictions, targets)
            for m in metrics
        }

    def compute_metrics(self, mode: str | None = None) -> dict[str, Tensor]:
        """Metrics of the last evaluation, of the model or the Trainer, by `TASK/METRIC`."""
        prefix = "" if mode is None else f"{mode}_"
        metrics = {k: v for k, v in self.last_metrics.items() if k != "loss"}
        return {prefix + name: torch.tensor(value) for name, value in metrics.items()}

    @property
    def prediction_tasks(self) -> dict[str, Task]:
        """Tasks by name."""
        return {task.task_name: task for _, task in self.tasks_with_heads}

    @property
    def input_schema(self) -> Schema:
        """Columns that a batch must have."""
        columns = getattr(self.inputs, "schema", None)
        if columns is None:
            raise ConfigError(
                "The input block keeps no schema. Make it by `pipeline.compat`, as in "
                f"TabularSequenceFeatures.from_schema(schema). See {PAGE}."
            )
        names = self.inputs.feature_names
        return Schema(tuple(column for column in columns if column.name in names))

    @property
    def output_schema(self) -> Schema:
        """Columns that a call returns: one for each task, or scores and items with `top_k`."""
        columns = []
        for _, task in self.tasks_with_heads:
            is_list = isinstance(task, NextItemPredictionTask)
            if is_list and self.list_length is not None:
                items = {"is_list": True, "max_length": self.list_length}
                columns.append(ColumnSchema(name="item_id_scores", is_float=True, **items))  # type: ignore[arg-type]
                columns.append(ColumnSchema(name="item_ids", **items))  # type: ignore[arg-type]
            else:
                columns.append(ColumnSchema(name=task.task_name, is_float=True, is_list=is_list))
        return Schema(tuple(columns))

    def save(self, path: str | Path, model_name: str = "t4rec_model_class") -> None:
        """Write `model.json` and `model.safetensors` to a directory, for `load`.

        ConfigError for a model that cannot be rebuilt from JSON, such as one with a custom module;
        its weights are `model.state_dict()`. `model_name` is ignored.
        """
        del model_name
        save_model(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, model_name: str = "t4rec_model_class") -> "Model":
        """Rebuild a model that `save` wrote, without executing code from the files.

        ArtifactError if the files do not fit each other. `model_name` is ignored.
        """
        del model_name
        model = load_model(Path(path))
        assert isinstance(model, Model)  # noqa: S101
        return model


def set_longest(model: blocks.Model, length: int | None) -> None:
    """Set the input blocks to read the newest `length` interactions.

    An input block with its own length keeps it, which is logged.
    """
    if length is None:
        return
    for head in model.all_heads:
        inputs = head.body.inputs
        if inputs.max_sequence_length is None and inputs.item != ROW:
            inputs.max_sequence_length = length
        elif inputs.max_sequence_length != length:
            logger.warning(
                "max_sequence_length %d: the input block reads %s interactions. See %s.",
                *(length, inputs.max_sequence_length, PAGE),
            )


def batches_of(dataloader: Iterable[Any]) -> Iterable[Any]:
    """Batches of a loader; a torch DataLoader is replaced by its data set, as in the original."""
    batches: Any = dataloader.dataset if isinstance(dataloader, DataLoader) else dataloader
    return batches
