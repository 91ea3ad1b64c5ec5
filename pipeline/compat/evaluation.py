"""Evaluation of a model on batches, with the metric names of Transformers4Rec.

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
from pipeline.model.head import reduce_losses
from pipeline.model.masking import Stage
from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import BinaryClassificationTask

_BINARY_NAMES = {"precision": "binary_precision", "recall": "binary_recall"}
"""Names of metrics in the original."""


def positions_of(model: Model) -> Positions:
    """Positions that an evaluation predicts, as set in the input block."""
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
    """Whole sessions of a batch, padded to the longest."""
    rows = torch.arange(len(batch.lengths), device=batch.offsets.device)
    return batch.window(rows, torch.zeros_like(batch.lengths), batch.lengths)


@dataclass
class Sums:
    """Ranks, predictions and losses of a task over the batches so far."""

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

    `batches` are (features, targets), features, SessionBatch or RaggedBatch. Metrics are over every
    `metrics_every`-th batch, the loss over all batches.
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
            ranked = rank_in_catalogue(
                model.queries(hidden), model.items(), targets - FIRST_ITEM, score=model.score
            )
            sums[task.task_name].ranks.append(ranked.ranks.cpu())
    if model.target_tasks:
        _add_targets(model, batch, sums, with_metrics=with_metrics)


def _add_targets(
    model: Model, batch: SessionBatch | RaggedBatch, sums: dict[str, Sums], *, with_metrics: bool
) -> None:
    """Add the target tasks, which read whole sessions."""
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
    """Loss of the model from the mean of each task."""
    means = {name: s.loss / s.count if s.count else 0.0 for name, s in sums.items()}
    return float(_reduced(model, {name: torch.tensor(mean) for name, mean in means.items()}))


def _reduced(model: Model, losses: dict[str, Tensor]) -> Tensor:
    """Losses () by task -> () with the weights and reduction of training."""
    heads = [
        reduce_losses(
            [losses[name] for name in head.task_names], head.task_weights, head.loss_reduction
        )
        for head in model.all_heads
    ]
    return reduce_losses(heads, model.head_weights, model.head_reduction)


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
        for name, value in target_metrics(values).items():
            yield _BINARY_NAMES.get(name, name) if kind == "binary" else name, value
        if kind == "binary":
            positive = values.predictions >= THRESHOLD
            yield "binary_accuracy", float((positive == (values.targets == 1)).mean())
        else:
            errors = values.predictions.astype(float) - values.targets
            yield "mean_squared_error", float((errors**2).mean())


def tested(model: Model, batch: SessionBatch) -> dict[str, Any]:
    """Loss, labels and predictions at the targets of an evaluation.

    One task has labels (T,) and predictions (T, V) or (N,); several tasks have dictionaries by
    name.
    """
    labels: dict[str, Tensor] = {}
    predictions: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    if model.ranks_items:
        head, task = model.head, model.head.next_item_task()
        hidden, labels[task.task_name] = targets_of(model, batch)
        predictions[task.task_name] = model.scores(hidden)
        targets = labels[task.task_name]
        losses[task.task_name] = task.loss(hidden[None], targets[None], head.item_table)
    encoded = model._encode_all(batch) if model.target_tasks else {}
    for head, target in model.target_tasks:
        states, whole = encoded[id(head.body)], head.body.crop(batch, Stage.PREDICT)
        has_target, name = target.has_target(whole), target.task_name
        values = target.predict(states.hidden, states.query, whole)
        values = values if target.of_session else values[:, : has_target.size(1)]
        predictions[name], labels[name] = values[has_target], target.labels(whole)[has_target]
        losses[name] = target.loss(states.hidden, states.query, whole)
    loss = _reduced(model, losses)
    if len(labels) > 1:
        return {"loss": loss, "labels": labels, "predictions": predictions}
    (label,), (prediction,) = labels.values(), predictions.values()
    return {"loss": loss, "labels": label, "predictions": prediction}
