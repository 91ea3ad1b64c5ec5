"""Training losses of the tasks on one body."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.batch import SessionBatch
from pipeline.model.blocks import SequentialBlock
from pipeline.model.head import Task
from pipeline.model.masking import Encoded, Stage
from pipeline.model.masking.sequence import loss_and_encoded
from pipeline.model.ops.slots import Slots
from pipeline.model.tasks.item_output import ItemOutput
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import TargetTask


def task_losses(body: SequentialBlock, tasks: Sequence[Task], batch: SessionBatch) -> list[Tensor]:
    """Training loss of each task, () in their order.

    Tasks other than the next item read the whole session, in training as in prediction. clm encodes
    it once for all tasks, as causal hidden states are the same for the next-item task. The other
    maskings encode it twice, since their next-item pass masks interactions. Targets per item read
    the hidden states of the next-item task.
    """
    targets = [task for task in tasks if isinstance(task, TargetTask) and not task.per_item]
    per_item = [task for task in tasks if isinstance(task, TargetTask) and task.per_item]
    next_items = [task for task in tasks if isinstance(task, NextItemPredictionTask)]
    losses: dict[int, Tensor] = {}
    whole = body.crop(batch, Stage.PREDICT)
    encoded: Encoded | None = None
    for task in next_items:
        shares_pass = bool(targets) and encoded is None and body.masking.encodes_once
        if shares_pass or per_item:
            stage = Stage.TRAIN_WHOLE if shares_pass else Stage.TRAIN
            sessions = body.crop(batch, stage)
            weights = _weights(body, task, sessions, stage)
            losses[id(task)], read = loss_and_encoded(body, task, sessions, weights, stage)
            losses |= {id(t): _item_loss(body, task, t, read, sessions) for t in per_item}
            per_item = []
            encoded = read if shares_pass else encoded
        else:
            cropped = body.crop(batch, Stage.TRAIN)
            losses[id(task)] = body.masking.loss(body, task, cropped, _weights(body, task, cropped))
    if targets and encoded is None:
        encoded = body(whole, Stage.PREDICT)
    for target in targets:
        assert encoded is not None  # noqa: S101
        losses[id(target)] = target.loss(encoded.hidden, encoded.query, whole)
    return [losses[id(task)] for task in tasks]


def _item_loss(
    body: SequentialBlock,
    next_item: NextItemPredictionTask,
    task: TargetTask,
    encoded: Encoded,
    batch: SessionBatch,
) -> Tensor:
    """Loss () of a target per item: mean over next items in the vocabulary that have a label."""
    labels = body.masking.at_targets(task.labels(batch))
    width = encoded.targets.size(1)
    labels = nn.functional.pad(labels, (0, width - labels.size(1)), value=torch.nan)
    has_target = (encoded.targets >= FIRST_ITEM) & ~labels.isnan()
    slots = Slots.of(has_target, encoded.most_targets)
    items = slots.take(encoded.targets).to(torch.int64).clamp(min=FIRST_ITEM)
    values = slots.take(labels)
    if not batch.is_static:  # the check synchronizes the device
        task.check(values)
    vectors = next_item.items(body.inputs.item_table.weight, items - FIRST_ITEM)
    assert isinstance(task.output, ItemOutput)  # noqa: S101
    outputs = task.output.at(task.through_block(slots.take(encoded.hidden)), vectors, items)
    # an empty slot holds an arbitrary target, which may be NaN
    return slots.mean(task.objective(outputs, values.to(outputs.dtype).nan_to_num()))


def _weights(
    body: SequentialBlock,
    task: NextItemPredictionTask,
    batch: SessionBatch,
    stage: Stage = Stage.TRAIN,
) -> Tensor | None:
    """Weights of the targets at their positions, None for equal weights."""
    weights = task.target_weights(batch, body.inputs.item)
    if weights is None:
        return None
    width = weights.size(1)
    weights = body.masking.at_targets(weights)
    if stage == Stage.TRAIN_WHOLE:  # the last hidden state has no target
        weights = nn.functional.pad(weights, (0, width - weights.size(1)))
    return weights
