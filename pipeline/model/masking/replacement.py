"""rtd: replaced token detection with a real generator and discriminator (ELECTRA, Clark 2020).

The generator is a masked language model. What it draws for hidden interactions is put in their
place, and the discriminator tells for every interaction whether it was replaced. Both share the
input block. Tied, they share the encoder too, as in Transformers4Rec's paper; untied, the
generator has one of its own and the encoder that recommends learns both, hidden items and
replaced ones: ELECTRA's discriminator alone could not name the next item.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch, visible_positions
from pipeline.model.masking.masked import MaskedMasking
from pipeline.model.masking.sequence import MaskedSequence, Stage


class Replaced(NamedTuple):
    """A batch in which some interactions were replaced."""

    batch: SessionBatch
    is_replaced: Tensor
    """(B, L) bool: whether the item is another than it was."""


class ReplacementMasking(nn.Module):
    """mlm, and the detection of what a generator put in place of the hidden interactions.

    `sample_from_batch` draws whole interactions of the batch, by what the generator gives their
    items; without it items are drawn from the catalogue, which needs a model that reads nothing
    but the item: a drawn one would keep the other's price and give itself away.
    """

    name = "rtd"
    causal = False
    looks_both_ways = True
    extra_positions = 1

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
        self.generator_loss_weight = generator_loss_weight
        self.discriminator_loss_weight = discriminator_loss_weight
        self.discriminator: nn.Linear | None = None
        """Hidden states to one number, above 0 for what was replaced."""

    def build(self, d_hidden: int) -> None:
        """Make the discriminator's last layer for hidden states of this width."""
        self.discriminator = nn.Linear(d_hidden, 1)

    def apply_to(
        self, embeddings: Tensor, item_ids: Tensor, lengths: Tensor, stage: Stage
    ) -> MaskedSequence:
        """As mlm."""
        return self.masked.apply_to(embeddings, item_ids, lengths, stage)

    def at_targets(self, values: Tensor) -> Tensor:
        """(B, L) as they are: a target stands in its own place."""
        return values

    @torch.no_grad()
    def replace(
        self,
        batch: SessionBatch,
        item: str,
        targets: Tensor,
        logits: Tensor,
        vectors: Collection[str] = (),
    ) -> Replaced:
        """Put draws of the generator where `targets` (B, L) has one.

        `logits` (T, V - 3) are the generator's at those positions, row by row; `vectors` names
        features that are vectors.
        """
        ids = batch.features[item]
        hidden = targets >= FIRST_ITEM
        features = dict(batch.features)
        if self.sample_from_batch:
            known = ids >= FIRST_ITEM
            pool = ids[known]  # (P,) one entry for each interaction of the batch
            # an item that the batch has several times is no likelier for that
            _, which, times = pool.unique(return_inverse=True, return_counts=True)
            chances = (logits[:, pool - FIRST_ITEM].float() - times[which].log()).softmax(1)
            drawn = torch.multinomial(chances, 1).squeeze(1) if len(chances) else pool[:0]
            for name, values in batch.features.items():
                of_session = values.dim() < 2 or (name in vectors and values.dim() == 2)
                if of_session or values.shape[:2] != ids.shape:
                    continue
                changed = values.clone()
                changed[hidden] = values[known][drawn]
                features[name] = changed
        else:
            changed = ids.clone()
            chances = logits.float().softmax(1)
            drawn = torch.multinomial(chances, 1).squeeze(1) if len(chances) else ids[hidden]
            changed[hidden] = (drawn + FIRST_ITEM * (len(chances) > 0)).to(ids.dtype)
            features[item] = changed
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
