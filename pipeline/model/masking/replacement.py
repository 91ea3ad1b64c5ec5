"""rtd: replaced token detection with a generator and a discriminator (ELECTRA, Clark 2020).

The generator is a masked language model. Its draws replace the masked interactions, and the
discriminator classifies whether each interaction was replaced. Both share the input block. Tied,
they also share the encoder, as in the paper of Transformers4Rec. Untied, the generator has its own
encoder, and the recommending encoder learns both objectives, masked items and replaced items:
ELECTRA's discriminator alone does not predict items.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch, visible_positions
from pipeline.model.masking.masked import MaskedMasking
from pipeline.model.masking.sequence import MaskedSequence, Masking, Stage
from pipeline.model.ops.slots import Slots


class Replaced(NamedTuple):
    """A batch with some interactions replaced."""

    batch: SessionBatch
    is_replaced: Tensor
    """(B, L) bool: whether the item differs from the original."""


class ReplacementMasking(Masking):
    """mlm with detection of the interactions that a generator replaced.

    `sample_from_batch` draws whole interactions of the batch, by the generator's probability of
    their items. Without it items are drawn from the catalogue; the model must read only the item
    then, as a drawn item with the price of the original would be easy to detect.
    """

    name = "rtd"
    looks_both_ways = True
    extra_positions = 1
    few_targets = True
    can_shard = False

    def __init__(
        self,
        width: int,
        probability: float = 0.2,
        *,
        sample_from_batch: bool = True,
        tied_generator: bool = True,
        generator_loss_weight: float = 1.0,
        discriminator_loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.masked = MaskedMasking(width, probability)
        self.sample_from_batch = sample_from_batch
        self.tied_generator = tied_generator
        self.separate_generator = not tied_generator
        self.generator_loss_weight = generator_loss_weight
        self.discriminator_loss_weight = discriminator_loss_weight
        self.discriminator: nn.Linear | None = None
        """Layer from hidden states to one logit, above 0 for a replaced interaction."""

    def build(self, d_hidden: int, *, has_encoder: bool = True) -> None:
        """Build the discriminator's output layer for hidden states of width `d_hidden`."""
        if not has_encoder:
            raise ConfigError("rtd needs a TransformerBlock: it reads from both sides.")
        self.discriminator = nn.Linear(d_hidden, 1)

    def check(self, width: int, *, item_alone: bool) -> None:
        """ConfigError for another width, and for catalogue draws in a model with further
        features."""
        self.masked.check(width, item_alone=item_alone)
        if not item_alone and not self.sample_from_batch:
            raise ConfigError(
                "rtd draws items from the catalogue only for models that read nothing but the "
                "item; here other features would give the drawn ones away. Leave out "
                "sample_from_batch, so that whole interactions of the batch are drawn."
            )

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """Mask as in mlm."""
        return self.masked.apply_to(embeddings, item_ids, lengths, stage)

    def most_targets(self, num_sessions: int, most_interactions: int) -> int:
        """Maximum number of targets of mlm."""
        return self.masked.most_targets(num_sessions, most_interactions)

    def loss(self, body: Any, task: Any, batch: SessionBatch, weights: Tensor | None) -> Tensor:
        """Weighted sum of the losses of masked items and of detection, ()."""
        table = body.inputs.item_table.weight
        masked = body.masked(batch, Stage.TRAIN)
        # detection reads all positions, in a separate pass
        encoded = body.through(masked, targets_only=True)
        most = encoded.most_targets
        loss = task.loss(encoded.hidden, encoded.targets, table, weights, most)
        generated = encoded
        if body.generator is not None:
            generated = body.through(masked, generator=True)
            loss = loss + task.loss(generated.hidden, generated.targets, table, weights, most)
        slots = Slots.of(encoded.targets >= FIRST_ITEM, most)
        with torch.no_grad():
            logits = task.logits(slots.take(generated.hidden), table)
        inputs = body.inputs
        replaced = self.replace(batch, inputs.item, slots, logits, inputs.vectors)
        hidden = body.through(body.unmasked(replaced.batch)).hidden
        detection = self.detection_loss(hidden, replaced.is_replaced, replaced.batch)
        return self.generator_loss_weight * loss + self.discriminator_loss_weight * detection

    @torch.no_grad()
    def replace(
        self,
        batch: SessionBatch,
        item: str,
        masked: Slots,
        logits: Tensor,
        vectors: Collection[str] = (),
    ) -> Replaced:
        """Replace the `masked` interactions by draws of the generator.

        `logits` (T, V - 3) are the generator's at the masked positions; `item` names the item
        feature, `vectors` the vector features. The batch itself is not changed.
        """
        ids = batch.features[item]
        if not len(logits):
            return Replaced(batch, torch.zeros_like(ids, dtype=torch.bool))
        # one number per position, so that draws are equal in both forms of the slots
        draw = masked.take(torch.rand(ids.shape, device=ids.device))  # (T,)
        if self.sample_from_batch:
            features = _draw_interactions(batch, ids, masked, logits, draw, vectors)
        else:
            drawn = _drawn_columns(logits.float().softmax(1), draw) + FIRST_ITEM
            features = {**batch.features, item: masked.put(ids, drawn.to(ids.dtype))}
        return Replaced(batch._replace(features=features), features[item] != ids)

    def detection_loss(self, hidden: Tensor, is_replaced: Tensor, batch: SessionBatch) -> Tensor:
        """(B, L, D), (B, L) -> (): binary cross-entropy over all interactions of a batch."""
        if self.discriminator is None:
            raise ConfigError("ReplacementMasking works as the masking of an input block.")
        inside = visible_positions(batch.lengths, hidden.size(1))
        slots = Slots.of(inside, batch.most_interactions)
        scores = self.discriminator(slots.take(hidden)).squeeze(-1)
        labels = slots.take(is_replaced).to(scores.dtype)
        return slots.mean(
            functional.binary_cross_entropy_with_logits(scores, labels, reduction="none")
        )


def _draw_interactions(
    batch: SessionBatch,
    ids: Tensor,
    masked: Slots,
    logits: Tensor,
    draw: Tensor,
    vectors: Collection[str],
) -> dict[str, Tensor]:
    """Features with the `masked` interactions replaced by others of the batch.

    `draw` (T,) are random numbers in [0, 1).
    """
    is_item = ids >= FIRST_ITEM  # (B, L)
    pool = Slots.of(is_item, batch.most_interactions)  # P slots, one per interaction
    items = (pool.take(ids).to(torch.int64) - FIRST_ITEM).clamp(min=0)
    # the count of an item in the batch does not change its probability
    ones = pool.only_filled(torch.ones_like(items), 0)
    times = ones.new_zeros(logits.size(1)).index_add(0, items, ones)
    scores = logits[:, items].float() - times[items].log()
    drawn = _drawn_columns(pool.only_filled(scores, float("-inf")).softmax(1), draw)
    features = dict(batch.features)
    for name, values in batch.features.items():
        of_session = values.dim() < 2 or (name in vectors and values.dim() == 2)
        if of_session or values.shape[:2] != ids.shape:
            continue
        features[name] = masked.put(values, pool.take(values)[drawn])
    return features


def _drawn_columns(chances: Tensor, draw: Tensor) -> Tensor:
    """(T, C) probabilities, (T,) random numbers in [0, 1) -> (T,) columns.

    Sampling inverts the distribution function: torch.multinomial synchronizes the device and needs
    as many random numbers as probabilities.
    """
    total = chances.cumsum(1)
    # above 0, so that a column of probability 0 is never drawn
    height = (1 - draw).unsqueeze(1) * total[:, -1:]
    columns = torch.searchsorted(total, height).squeeze(1)
    return columns.clamp(max=chances.size(1) - 1)  # the last column if all probabilities are 0
