"""Predictions of target tasks, with their targets.

A target of a session is predicted from its newest L interactions, and a target of an interaction
from the newest L up to it, as by a server at that time. A target per item is predicted for the true
next item, from the newest L interactions before it.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.batch import SessionBatch, visible_positions
from pipeline.data.loader import RaggedBatch
from pipeline.evaluation.target_metrics import TargetKind, TargetPredictions
from pipeline.evaluation.targets import (
    Positions,
    Windows,
    evaluation_windows,
    hidden_at_targets,
    target_positions,
)
from pipeline.model.model import Model
from pipeline.model.tasks.targets import (
    BinaryClassificationTask,
    RegressionTask,
    TargetTask,
)

_Rows = tuple[Tensor, Tensor, Tensor]
"""(n,) predictions, targets, and their windows or sessions in a batch."""


@torch.inference_mode()
def predict_targets(
    model: Model, batches: Iterable[RaggedBatch], positions: Positions, batch_size: int = 512
) -> dict[str, TargetPredictions]:
    """Predictions of each task by its name, in the order of sessions and positions.

    `positions` selects the targets of all interactions, or of the last of each session. Missing
    values are left out. The caller sets the mode and the device of the model.
    """
    tasks = {task.task_name: task for _, task in model.target_tasks}
    every = {task.task_name: task for task in model.all_targets}
    by_task: dict[str, list[_Rows]] = {name: [] for name in every}
    num_sessions = 0
    for batch in batches:
        values = _of_batch(model, tasks, batch, positions, batch_size) if tasks else {}
        if model.item_tasks:
            values |= _of_next_items(model, batch, positions, batch_size)
        for name, (predictions, targets, sessions) in values.items():
            by_task[name].append((predictions, targets, sessions + num_sessions))
        num_sessions += len(batch.lengths)
    return {name: _joined(every[name], parts) for name, parts in by_task.items()}


def mean_targets(model: Model, batches: Iterable[RaggedBatch]) -> dict[str, float]:
    """Mean target of each task over whole sessions by its name, in the units of the log."""
    sums = {task.task_name: torch.zeros(2, dtype=torch.float64) for task in model.all_targets}
    for batch in batches:
        starts = torch.zeros_like(batch.lengths)
        rows = torch.arange(len(starts), device=starts.device)
        whole = batch.window(rows, starts, batch.lengths)
        for task in model.all_targets:
            labels = task.in_units(task.labels(whole))[task.has_target(whole)].double()
            sums[task.task_name] += torch.stack([labels.sum(), torch.tensor(float(len(labels)))])
    return {name: float(total / count.clamp(min=1)) for name, (total, count) in sums.items()}


def fill_values(model: Model) -> dict[str, float]:
    """Number that replaces a missing one by task, in the units of the log; regression only."""
    tasks = [task for task in model.all_targets if isinstance(task, RegressionTask)]
    # data directories have 0 for a missing number, the mean of a standardized column
    return {task.task_name: float(task.in_units(torch.zeros(1))) for task in tasks}


def _joined(task: TargetTask, values: list[_Rows]) -> TargetPredictions:
    values = [(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.int64)), *values]
    predictions, targets, sessions = (torch.cat(column) for column in zip(*values, strict=True))
    kind: TargetKind = "binary" if isinstance(task, BinaryClassificationTask) else "regression"
    return TargetPredictions(
        kind, predictions.numpy(), targets.numpy().astype(np.float32), sessions.numpy()
    )


def _of_batch(
    model: Model,
    tasks: dict[str, TargetTask],
    batch: RaggedBatch,
    positions: Positions,
    batch_size: int,
) -> dict[str, _Rows]:
    """Predictions, targets and sessions of a batch by task, on the CPU."""
    device = model.device
    parts: dict[str, list[_Rows]] = {name: [] for name in tasks}
    windows = _windows(model, tasks, batch, positions)
    for chosen in (windows.stops - windows.starts).argsort(stable=True).split(batch_size):
        part = Windows(*(column[chosen] for column in windows))
        window = batch.window(part.rows, part.starts, part.stops).to(device)
        predictions = model.predict_targets(window)
        ends = part.stops == batch.lengths[part.rows]
        for name, task in tasks.items():
            taken = _targets_of(task, window, part.every.to(device), ends.to(device))
            places = chosen.to(device).unsqueeze(1).expand(taken.shape)
            labels = task.in_units(task.labels(window)).reshape(taken.shape)
            values = predictions[name].reshape(taken.shape)
            parts[name].append((values[taken], labels[taken], places[taken]))
    return {name: _in_order(rows, windows.rows.cpu()) for name, rows in parts.items()}


def _of_next_items(
    model: Model, batch: RaggedBatch, positions: Positions, batch_size: int
) -> dict[str, _Rows]:
    """Predictions, targets and sessions of a batch by task with targets per item, on the CPU."""
    hidden, items = hidden_at_targets(model, batch, positions, batch_size)
    sessions = batch.sequences[model.inputs.item].cpu().numpy(), batch.offsets.cpu().numpy()
    index = torch.from_numpy(target_positions(*sessions, positions)).to(batch.offsets.device)
    session = torch.bucketize(index, batch.offsets, right=True).cpu() - 1
    is_item = items >= FIRST_ITEM
    predictions = model.targets_of_items(model.queries(hidden[is_item]), items[is_item, None])
    values = {}
    for task in model.item_tasks:
        columns = {name: batch.sequences[name][index][None] for name in task.columns}
        interactions = SessionBatch(columns, torch.tensor([len(index)])).to(model.device)
        labels = task.in_units(task.labels(interactions))[0][is_item]
        has_label = ~labels.isnan()
        values[task.task_name] = (
            predictions[task.task_name][:, 0][has_label].float().cpu(),
            labels[has_label].float().cpu(),
            session[is_item.cpu()][has_label.cpu()],
        )
    return values


def _in_order(rows: list[_Rows], sessions: Tensor) -> _Rows:
    """Rows with windows, and the (W,) session of each window -> rows with sessions, by window."""
    if not rows:
        return torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.int64)
    predictions, targets, places = (torch.cat(column) for column in zip(*rows, strict=True))
    order = places.argsort(stable=True)
    chosen = sessions[places[order].cpu()]
    return predictions[order].float().cpu(), targets[order].float().cpu(), chosen


def _windows(
    model: Model, tasks: dict[str, TargetTask], batch: RaggedBatch, positions: Positions
) -> Windows:
    """Windows that end with each interaction, or with the last of a session."""
    if all(task.of_session for task in tasks.values()):
        positions = "last"
    longest = model.inputs.max_sequence_length or 2**31
    # the target of a window follows its last interaction
    windows = evaluation_windows(batch.lengths + 1, longest, positions, causal=model.causal)
    return windows._replace(stops=windows.stops - 1)


def _targets_of(task: TargetTask, window: SessionBatch, every: Tensor, ends: Tensor) -> Tensor:
    """(b, 1) or (b, L) bool: targets of a task in windows.

    `every` (b,) selects all positions instead of the last; `ends` (b,) is true if the session ends
    with the window.
    """
    has_target = task.has_target(window)
    if task.of_session:
        return (has_target & ends).unsqueeze(1)
    last = torch.arange(has_target.size(1), device=ends.device) == (window.lengths - 1).unsqueeze(1)
    inside = visible_positions(window.lengths, has_target.size(1))
    return has_target & inside & (last | every.unsqueeze(1))
