"""Which embedding tables give sparse gradients: the rows of a batch, not a whole table of zeros."""

from torch import Tensor

from pipeline.model.model import Model
from pipeline.model.tasks.next_item import NextItemPredictionTask


def set_sparse_gradients(model: Model, *, sparse: bool) -> list[Tensor]:
    """Have lookups in tables give sparse gradients, or dense ones again.

    An item table whose every row is scored has a dense gradient in any case. Returns the weights
    whose gradients are sparse, which not every optimizer takes.
    """
    found: dict[int, Tensor] = {}
    for head, task in model.tasks_with_heads:
        inputs = head.body.inputs
        scored = None
        if isinstance(task, NextItemPredictionTask):
            task.sparse_gradients = sparse and task.sampled
            if task.sparse_gradients and task.output_table is not None:
                found[id(task.output_table)] = task.output_table
            scored = inputs.item_table if task.weight_tying and not task.sampled else None
        for table in inputs.tables.values():
            table.sparse = sparse and table is not scored
            if table.sparse:
                found[id(table.weight)] = table.weight
    return list(found.values())
