"""How much one part of a training step counts beside the others."""

import torch

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.batch import SessionBatch, newest
from pipeline.model.masking import CausalMasking
from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask


def target_weight(model: Model, batch: SessionBatch) -> float:
    """What the loss of this batch is a mean over: its targets, by their weights.

    clm knows them before the model runs. The other maskings draw them there, a fixed share of the
    interactions, which are counted instead. Without a next item to predict it is the sessions.
    """
    head = model.head
    tasks = [task for task in head.all_tasks if isinstance(task, NextItemPredictionTask)]
    if not tasks:
        return float((batch.lengths > 0).sum())
    inputs, masking = head.body.inputs, head.body.masking
    if inputs.max_sequence_length is not None:
        batch = newest(batch, inputs.max_sequence_length + 1, inputs.vectors)
    items = batch.features[inputs.item]  # (B, L)
    weights = torch.ones(items.shape, device=items.device)
    if tasks[0].weights is not None:
        given = tasks[0].weights(batch.to(next(model.parameters()).device)).to(items.device)
        weights = given.unsqueeze(1).expand_as(items) if given.dim() == 1 else given
    weights = weights * (items >= FIRST_ITEM)
    if isinstance(masking, CausalMasking):
        columns = torch.arange(items.size(1), device=items.device)
        wanted = columns > 0
        if masking.train_on_last_item_seq_only:
            wanted = wanted & (columns == (batch.lengths - 1).unsqueeze(1))
        weights = weights * wanted
    return float(weights.sum())
