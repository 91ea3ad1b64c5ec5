"""Ranking by processes that each hold some rows of the item table.

Reading an interaction and scoring a target need the rows of all processes, so all take the same
steps. A process with fewer batches than another runs spare ones, whose results are not used.
"""

import math

import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.batch import SessionBatch
from pipeline.data.loader import RaggedBatch
from pipeline.evaluation.ranking import rank_in_shards
from pipeline.evaluation.targets import (
    Positions,
    evaluation_windows,
    hidden_at_targets,
    seen_before,
)
from pipeline.model.model import Model
from pipeline.model.ops.shards import ShardedEmbedding

_BATCH_SIZE = 512


@torch.inference_mode()
def rank_with_others(
    model: Model,
    batch: RaggedBatch,
    spare: SessionBatch,
    positions: Positions,
    *,
    filter_seen: bool,
) -> Tensor:
    """Sessions of this process -> ranks of the targets of all processes, by process. Collective.

    Ranks are those of `pipeline.evaluation.targets.rank_targets`.
    """
    table, task = _table(model), model.head.task
    device = table.weight.device
    longest = model.inputs.max_sequence_length or 2**31
    windows = evaluation_windows(batch.lengths, longest, positions, causal=model.causal)
    hidden, targets = hidden_at_targets(model, batch, positions, _BATCH_SIZE)
    for _ in range(missing_passes(model, math.ceil(len(windows.rows) / _BATCH_SIZE))):
        model.at_targets(spare.to(device))
    rows = table.weight[max(0, FIRST_ITEM - table.shards.first) :]
    return rank_in_shards(
        task.queries(hidden),
        task.as_items(rows),
        targets.to(torch.int64) - FIRST_ITEM,
        table.shards,
        seen=seen_before(batch, model.inputs.item, positions, device) if filter_seen else None,
    ).cpu()


def missing_passes(model: Model, passes: int) -> int:
    """Number of passes that another process makes beyond those of this one. Collective."""
    return max(_table(model).shards.sizes(passes)) - passes


def _table(model: Model) -> ShardedEmbedding:
    table = model.inputs.item_table
    assert isinstance(table, ShardedEmbedding)  # noqa: S101
    return table
