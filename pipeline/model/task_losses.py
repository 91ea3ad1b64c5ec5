"""Training losses of the tasks on one body."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.data.batch import SessionBatch
from pipeline.model.blocks import SequentialBlock
from pipeline.model.head import Task
from pipeline.model.masking import Encoded, Stage
from pipeline.model.masking.sequence import loss_and_encoded
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import TargetTask


def task_losses(body: SequentialBlock, tasks: Sequence[Task], batch: SessionBatch) -> list[Tensor]:
    """Training loss of each task, () in their order.

    Tasks beside the next item read the whole session, in training as in prediction. clm encodes it
    once for all tasks: hidden states look back, so those of the next-item task are the same.
    The other maskings encode it twice, since their next-item pass hides interactions.
    """
    targets = [task for task in tasks if isinstance(task, TargetTask)]
    next_items = [task for task in tasks if isinstance(task, NextItemPredictionTask)]
    losses: dict[int, Tensor] = {}
    whole = body.crop(batch, Stage.PREDICT)
    encoded: Encoded | None = None
    for task in next_items:
        if targets and encoded is None and body.masking.encodes_once:
            weights = _weights(body, task, whole)
            if weights is not None:  # as wide as the hidden states, whose last has no target
                width = whole.features[body.inputs.item].size(1)
                weights = nn.functional.pad(weights, (0, width - weights.size(1)))
            loss, encoded = loss_and_encoded(body, task, whole, weights, Stage.TRAIN_WHOLE)
        else:
            cropped = body.crop(batch, Stage.TRAIN)
            loss = body.masking.loss(body, task, cropped, _weights(body, task, cropped))
        losses[id(task)] = loss
    if targets and encoded is None:
        encoded = body(whole, Stage.PREDICT)
    for target in targets:
        assert encoded is not None  # noqa: S101
        losses[id(target)] = target.loss(encoded.hidden, encoded.query, whole)
    return [losses[id(task)] for task in tasks]


def _weights(
    body: SequentialBlock, task: NextItemPredictionTask, batch: SessionBatch
) -> Tensor | None:
    """Weights of the targets at their positions, None if all weigh the same."""
    weights = task.target_weights(batch, body.inputs.item)
    return None if weights is None else body.masking.at_targets(weights)
