"""How much one part of a training step counts beside the others."""

import torch

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.batch import SessionBatch, newest
from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask


def target_weight(model: Model, batch: SessionBatch) -> float:
    """Sum of the weights of the targets in a batch, over which its loss is a mean.

    clm knows its targets before the model runs. The other maskings draw a fixed share of the
    interactions inside the model, so all interactions count. Without a next-item task it is the
    number of sessions.
    """
    head = model.head
    tasks = [task for task in head.all_tasks if isinstance(task, NextItemPredictionTask)]
    if not tasks:
        return float((batch.lengths > 0).sum())
    inputs = head.body.inputs
    if inputs.max_sequence_length is not None:
        batch = newest(batch, inputs.max_sequence_length + 1, inputs.vectors)
    items = batch.features[inputs.item]  # (B, L)
    counts = (items >= FIRST_ITEM) & head.body.masking.may_be_targets(batch.lengths, items.size(1))
    if tasks[0].weights is not None:
        batch = batch.to(next(model.parameters()).device)
    weights = tasks[0].target_weights(batch, inputs.item)
    if weights is None:
        weights = torch.ones(items.shape, device=items.device)
    return float((weights.to(items.device) * counts).sum())
