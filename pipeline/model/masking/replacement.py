"""rtd: replaced token detection with a generator and a discriminator (ELECTRA, Clark 2020).

The generator is a masked language model. Its draws replace the masked interactions, and the
discriminator classifies for every interaction whether it was replaced. Both share the input block.
Tied, they also share the encoder, as in the paper of Transformers4Rec. Untied, the generator has
its own encoder, and the encoder that recommends learns both objectives, masked items and replaced
ones: ELECTRA's discriminator alone could not name the next item.
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


class Replaced(NamedTuple):
    """A batch with some interactions replaced."""

    batch: SessionBatch
    is_replaced: Tensor
    """(B, L) bool: whether the item differs from the original."""


class ReplacementMasking(Masking):
    """mlm, and the detection of interactions that a generator has replaced.

    `sample_from_batch` draws whole interactions of the batch, by the generator's probability of
    their items. Without it items are drawn from the catalogue, which needs a model that reads only
    the item: a drawn item would keep the price of the original and reveal itself.
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
        """Hidden states to one logit, above 0 for a replaced interaction."""

    def build(self, d_hidden: int, *, has_encoder: bool = True) -> None:
        """Make the discriminator's last layer for hidden states of width `d_hidden`."""
        if not has_encoder:
            raise ConfigError("rtd needs a TransformerBlock: it reads from both sides.")
        self.discriminator = nn.Linear(d_hidden, 1)

    def check(self, width: int, *, item_alone: bool) -> None:
        """ConfigError for another width, and for draws that other features would reveal."""
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
        """Mask as mlm does."""
        return self.masked.apply_to(embeddings, item_ids, lengths, stage)

    def loss(self, body: Any, task: Any, batch: SessionBatch, weights: Tensor | None) -> Tensor:
        """Weighted sum of the loss of masked items and that of the detection, ()."""
        table = body.inputs.item_table.weight
        masked = body.masked(batch, Stage.TRAIN)
        # detection reads all positions, in a pass of its own
        encoded = body.through(masked, targets_only=True)
        loss = task.loss(encoded.hidden, encoded.targets, table, weights)
        generated = encoded
        if body.generator is not None:
            generated = body.through(masked, generator=True)
            loss = loss + task.loss(generated.hidden, generated.targets, table, weights)
        with torch.no_grad():
            logits = task.logits(generated.hidden[generated.targets >= FIRST_ITEM], table)
        inputs = body.inputs
        replaced = self.replace(batch, inputs.item, encoded.targets, logits, inputs.vectors)
        hidden = body.through(body.unmasked(replaced.batch)).hidden
        detection = self.detection_loss(hidden, replaced.is_replaced, batch.lengths)
        return self.generator_loss_weight * loss + self.discriminator_loss_weight * detection

    @torch.no_grad()
    def replace(
        self,
        batch: SessionBatch,
        item: str,
        targets: Tensor,
        logits: Tensor,
        vectors: Collection[str] = (),
    ) -> Replaced:
        """Replace the interactions at `targets` (B, L) by draws of the generator.

        `logits` (T, V - 3) are the generator's at the targets, row by row; `item` names the item
        feature, `vectors` the features that are vectors. The batch itself is not changed.
        """
        ids = batch.features[item]
        masked = targets >= FIRST_ITEM  # (B, L)
        if not len(logits):
            return Replaced(batch, torch.zeros_like(masked))
        if self.sample_from_batch:
            features = _draw_interactions(batch, ids, masked, logits, vectors)
        else:
            drawn = torch.multinomial(logits.float().softmax(1), 1).squeeze(1)  # (T,)
            changed = ids.clone()
            changed[masked] = (drawn + FIRST_ITEM).to(ids.dtype)
            features = {**batch.features, item: changed}
        return Replaced(SessionBatch(features, batch.lengths), features[item] != ids)

    def detection_loss(self, hidden: Tensor, is_replaced: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, D), (B, L), (B,) -> (): binary cross-entropy over all interactions."""
        if self.discriminator is None:
            raise ConfigError("ReplacementMasking works as the masking of an input block.")
        inside = visible_positions(lengths, hidden.size(1))
        scores = self.discriminator(hidden).squeeze(-1)[inside]
        if not scores.numel():
            return hidden.sum() * 0
        return functional.binary_cross_entropy_with_logits(
            scores, is_replaced[inside].to(scores.dtype)
        )


def _draw_interactions(
    batch: SessionBatch, ids: Tensor, masked: Tensor, logits: Tensor, vectors: Collection[str]
) -> dict[str, Tensor]:
    """Features with the `masked` (B, L) interactions replaced by others of the batch."""
    is_item = ids >= FIRST_ITEM  # (B, L)
    pool = ids[is_item]  # (P,) one entry for each interaction of the batch
    # the count of an item in the batch does not change its probability
    _, which, times = pool.unique(return_inverse=True, return_counts=True)
    chances = (logits[:, pool - FIRST_ITEM].float() - times[which].log()).softmax(1)
    drawn = torch.multinomial(chances, 1).squeeze(1)  # (T,) positions in the pool
    features = dict(batch.features)
    for name, values in batch.features.items():
        of_session = values.dim() < 2 or (name in vectors and values.dim() == 2)
        if of_session or values.shape[:2] != ids.shape:
            continue
        features[name] = values.clone()
        features[name][masked] = values[is_item][drawn]
    return features
