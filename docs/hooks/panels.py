"""What each masking makes of one session, read off a small model."""

from typing import Any, NamedTuple

import torch
from drawing import MASK
from torch import Tensor

from pipeline import model as tr
from pipeline.core.columns import FIRST_ITEM
from pipeline.model.masking import MaskedSequence, Stage
from pipeline.model.ops.slots import Slots

SESSION = "abcdef"
STAGES = {Stage.TRAIN: "training", Stage.EVALUATE: "evaluation", Stage.PREDICT: "serving"}
MASKINGS: dict[str, dict[str, Any]] = {
    "clm": {},
    "mlm": {"mlm_probability": 0.3},
    "plm": {"plm_probability": 0.5, "max_span_length": 2},
    "rtd": {"mlm_probability": 0.3, "sample_from_batch": False},
}
"""Maskings with arguments that choose two or three targets of six interactions."""
_SEED = 1


class Panel(NamedTuple):
    """What one masking makes of one session at one stage."""

    reads: list[str]
    """Token of each position of the encoder."""
    predicts: list[str]
    """Target of each position, "" without one, "?" for the next item."""
    sees: list[list[bool]]
    """Whether the output of a position (row) depends on an interaction (column)."""
    order: list[int]
    """Order of the targets under plm, -1 for other positions."""
    detects: list[str]
    """Labels of rtd's second pass, where `reads` and `sees` are those of this pass."""
    masked: "Panel | None" = None
    """First pass of rtd in training."""


def small_model(masking: str) -> tr.Model:
    """XLNet of two layers, which every masking works with, and random weights."""
    torch.manual_seed(_SEED)
    item = tr.ColumnSchema.create_categorical("item_id", len(SESSION), tags=["item_id"])
    inputs = tr.TabularSequenceFeatures.from_schema(
        tr.Schema((item,)),
        max_sequence_length=len(SESSION),
        embedding_dim_default=16,
        masking=masking,
        **MASKINGS[masking],
    )
    encoder = tr.XLNetConfig.build(16, 2, 2, len(SESSION) + 1)
    body = tr.SequentialBlock(inputs, tr.TransformerBlock(encoder, masking=inputs.masking))
    return tr.Model(tr.Head(body, tr.NextItemPredictionTask())).eval()


def panel(model: tr.Model, stage: Stage) -> Panel:
    """Read one session, and differentiate each output by each interaction."""
    body = model.head.body
    items = torch.arange(len(SESSION)).unsqueeze(0) + FIRST_ITEM
    batch = tr.SessionBatch({"item_id": items}, torch.tensor([len(SESSION)]))
    torch.manual_seed(_SEED)
    embeddings = body.inputs(batch).detach().requires_grad_()
    sequence = body.masking.apply_to(embeddings, items, batch.lengths, stage)
    encoded = body.through(sequence)
    targets = [_letter(index) for index in sequence.targets[0].tolist()]
    if stage == Stage.PREDICT:
        targets[int(sequence.query[0])] = "?"
    elif stage == Stage.EVALUATE:  # the last target alone, as prediction without it would
        query = int(sequence.query[0])
        targets = [target if i == query else "" for i, target in enumerate(targets)]
    order = [-1] * len(targets) if sequence.order is None else sequence.order[0].tolist()
    sees = _dependence(encoded.hidden, embeddings)
    first = Panel(_tokens(sequence, embeddings), targets, sees, order, [])
    if body.masking.name != "rtd" or stage != Stage.TRAIN:
        return first
    task, slots = model.head.next_item_task(), Slots.of(sequence.targets >= FIRST_ITEM, None)
    logits = task.logits(slots.take(encoded.hidden), body.inputs.item_table.weight)
    replaced = body.masking.replace(batch, "item_id", slots, logits)
    sequence = body.unmasked(replaced.batch)
    embeddings = sequence.embeddings.detach().requires_grad_()
    sees = _dependence(body.through(sequence._replace(embeddings=embeddings)).hidden, embeddings)
    reads = [_letter(index) for index in replaced.batch.features["item_id"][0].tolist()]
    labels = ["replaced" if flag else "original" for flag in replaced.is_replaced[0].tolist()]
    return Panel(reads, [""] * len(reads), sees, [-1] * len(reads), labels, first)


def _dependence(hidden: Tensor, embeddings: Tensor) -> list[list[bool]]:
    """(1, L, D) outputs and (1, n, D) inputs -> L rows of n."""
    rows = []
    for output in hidden[0]:
        weights = torch.randn_like(output)
        (gradient,) = torch.autograd.grad(
            (output * weights).sum(), embeddings, retain_graph=True, allow_unused=True
        )
        rows.append(
            [False] * embeddings.size(1) if gradient is None else gradient[0].any(-1).tolist()
        )
    return rows


def _tokens(sequence: MaskedSequence, embeddings: Tensor) -> list[str]:
    """Letter of each position whose embedding is that of its interaction, else MASK."""
    size = embeddings.size(1)
    return [
        SESSION[i] if i < size and torch.equal(vector, embeddings[0, i]) else MASK
        for i, vector in enumerate(sequence.embeddings[0])
    ]


def _letter(index: int) -> str:
    return SESSION[index - FIRST_ITEM] if index >= FIRST_ITEM else ""
