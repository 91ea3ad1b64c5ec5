"""Evaluation of a model on batches: its metrics by the keys of Transformers4Rec.

Shape letters: D width of hidden states, T targets, N rows with a target of another task.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.compat.features import TabularSequenceFeatures, as_ragged, sessions_of
from pipeline.compat.ranking_metric import RankingMetric, default_metrics
from pipeline.core.columns import FIRST_ITEM
from pipeline.data.batch import SessionBatch
from pipeline.data.loader import RaggedBatch
from pipeline.evaluation.ranking import rank_in_catalogue
from pipeline.evaluation.target_metrics import (
    THRESHOLD,
    TargetKind,
    TargetPredictions,
    target_metrics,
)
from pipeline.evaluation.targets import Positions, hidden_at_targets
from pipeline.model.masking import Stage
from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import BinaryClassificationTask


def positions_of(model: Model) -> Positions:
    """Interactions that an evaluation predicts, as the input block says."""
    inputs = model.inputs
    return inputs.positions if isinstance(inputs, TabularSequenceFeatures) else "last"


def targets_of(model: Model, batch: SessionBatch | RaggedBatch) -> tuple[Tensor, Tensor]:
    """(T, D) hidden states at the targets of an evaluation, and the targets (T,)."""
    positions = positions_of(model)
    if isinstance(batch, RaggedBatch):
        return hidden_at_targets(model, batch, positions)
    if positions == "all":
        return hidden_at_targets(model, as_ragged(model.inputs, batch), positions)
    output = model.at_targets(batch)
    return output.hidden[output.is_last], output.targets[output.is_last]


def whole_sessions(batch: RaggedBatch) -> SessionBatch:
    """The sessions of a batch, padded to the longest."""
    rows = torch.arange(len(batch.lengths), device=batch.offsets.device)
    return batch.window(rows, torch.zeros_like(batch.lengths), batch.lengths)


@dataclass
class Sums:
    """Values of a task over the batches so far."""

    ranks: list[Tensor] = field(default_factory=list)
    """(T,) ranks of each batch."""
    predictions: list[Tensor] = field(default_factory=list)
    """(N,) predictions of each batch."""
    targets: list[Tensor] = field(default_factory=list)
    """(N,) true values of each batch."""
    loss: float = 0.0
    """Sum of the losses of all targets."""
    count: int = 0
    """Number of targets."""

    def add_loss(self, loss: Tensor, count: int) -> None:
        """Add the mean loss of `count` targets."""
        self.loss += float(loss) * count
        self.count += count


@torch.no_grad()
def evaluate_batches(
    model: Model,
    batches: Iterable[Any],
    *,
    prefix: str = "eval",
    with_metrics: bool = True,
    metrics_every: int = 1,
) -> dict[str, float]:
    """Metrics by `PREFIX_/TASK/METRIC` and the loss as `PREFIX_/loss`.

    `batches` are (features, targets), features, SessionBatch or RaggedBatch. Metrics are those of
    every `metrics_every`-th batch, the loss that of all.
    """
    sums = {task.task_name: Sums() for _, task in model.tasks_with_heads}
    training = model.training
    model.eval()
    try:
        for number, batch in enumerate(batches):
            counted = with_metrics and number % metrics_every == 0
            _add(model, _on_device(model, batch), sums, with_metrics=counted)
    finally:
        model.train(training)
    values = {f"{prefix}_/loss": _loss(model, sums)}
    if with_metrics:
        for _, task in model.tasks_with_heads:
            for metric, value in _metrics(task, sums[task.task_name]):
                values[f"{prefix}_/{task.task_name}/{metric}"] = value
    return values


def _on_device(model: Model, batch: Any) -> SessionBatch | RaggedBatch:
    device = next(model.parameters()).device
    if isinstance(batch, RaggedBatch):
        return batch.to(device)
    return sessions_of(model.inputs, batch).to(device)


def _add(
    model: Model, batch: SessionBatch | RaggedBatch, sums: dict[str, Sums], *, with_metrics: bool
) -> None:
    if model.ranks_items:
        head, task = model.head, model.head.next_item_task()
        hidden, targets = targets_of(model, batch)
        loss = task.loss(hidden[None], targets[None], head.item_table)
        sums[task.task_name].add_loss(loss, int((targets >= FIRST_ITEM).sum()))
        if with_metrics:
            ranked = rank_in_catalogue(model.queries(hidden), model.items(), targets - FIRST_ITEM)
            sums[task.task_name].ranks.append(ranked.ranks.cpu())
    if model.target_tasks:
        _add_targets(model, batch, sums, with_metrics=with_metrics)


def _add_targets(
    model: Model, batch: SessionBatch | RaggedBatch, sums: dict[str, Sums], *, with_metrics: bool
) -> None:
    """Add the tasks beside the next item, which read whole sessions."""
    if isinstance(batch, RaggedBatch):
        batch = whole_sessions(batch)
    encoded = model._encode_all(batch)
    for head, task in model.target_tasks:
        states = encoded[id(head.body)]
        whole = head.body.crop(batch, Stage.PREDICT)
        has_target, labels = task.has_target(whole), task.labels(whole)
        loss = task.loss(states.hidden, states.query, whole)
        sums[task.task_name].add_loss(loss, int(has_target.sum()))
        if with_metrics:
            predictions = task.predict(states.hidden, states.query, whole)
            if not task.of_session:
                predictions = predictions[:, : labels.size(1)]
            sums[task.task_name].predictions.append(predictions[has_target].cpu())
            sums[task.task_name].targets.append(task.in_units(labels)[has_target].cpu())


def _loss(model: Model, sums: dict[str, Sums]) -> float:
    """Loss of the model: means of the tasks, weighed and reduced as in training."""
    means = {name: s.loss / s.count if s.count else 0.0 for name, s in sums.items()}
    losses = []
    for head in model.all_heads:
        weighed = [
            weight * means[task.task_name]
            for task, weight in zip(head.all_tasks, head.task_weights, strict=True)
        ]
        divisor = sum(head.task_weights) if head.loss_reduction == "mean" else 1.0
        losses.append(sum(weighed) / divisor)
    total = sum(w * loss for w, loss in zip(model.head_weights, losses, strict=True))
    return total / (sum(model.head_weights) if model.head_reduction == "mean" else 1.0)


def _metrics(task: Any, sums: Sums) -> Iterator[tuple[str, float]]:
    """Metrics of a task by name."""
    if isinstance(task, NextItemPredictionTask):
        ranks = torch.cat([torch.empty(0, dtype=torch.int64), *sums.ranks]).numpy()
        chosen: list[RankingMetric] = getattr(task, "metrics", None) or default_metrics()
        for metric in chosen:
            yield from metric.of_ranks(ranks).items()
    elif sums.predictions:
        kind: TargetKind = "binary" if isinstance(task, BinaryClassificationTask) else "regression"
        predictions, targets = torch.cat(sums.predictions), torch.cat(sums.targets).float()
        values = TargetPredictions(kind, predictions.float().numpy(), targets.numpy())
        metrics = target_metrics(values)
        yield from metrics.items()
        if kind == "binary":
            positive = values.predictions >= THRESHOLD
            yield "accuracy", float((positive == (values.targets == 1)).mean())
        else:
            yield "mean_squared_error", metrics["rmse"] ** 2
