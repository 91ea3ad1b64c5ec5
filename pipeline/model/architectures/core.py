"""CORE (Hou et al., "CORE: simple and effective session-based recommendation within consistent
representation space", SIGIR 2022).

A session is a mean of the vectors of its interactions; layers only say how much each weighs. The
hidden state then lies among the item vectors that score it, which generalises where an item was
seen a few times. Score by the cosine: `normalize` with a temperature of about 0.07. What
regularises the mean is dropout of item vectors, where they come in (`feature_dropout`) and where
they score (`item_dropout`).
"""

import torch
from torch import Tensor, nn

from pipeline.model.architectures.sasrec import SASRecLayer
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.layered import LayeredEncoder
from pipeline.model.masking import Masking


class CoreConfig(EncoderConfig):
    """Looks back alone, learned positions, layers of SASRec; a mean of what came in comes out.

    The paper reads a whole session to weigh it once. Here each position weighs those up to it, so
    that every position learns in one pass. `hidden_act` and `options` are not read.
    """

    name = "core"

    def encoder(self, masking: Masking) -> nn.Module:
        """CoreEncoder; clm only."""
        self.refuse_others(masking)
        return CoreEncoder(self)


class CoreEncoder(nn.Module):
    """Layers that weigh, and the weighted mean."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.d_output = width
        """Width of the hidden states."""
        self.layers = LayeredEncoder(config, (SASRecLayer(config) for _ in range(config.n_layer)))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.distance = nn.Parameter(torch.zeros(config.positions()))
        """(L,) added to the scores of what lies so many positions back."""

    def forward(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); padding is on the right, behind all that counts."""
        hidden = self.layers(embeddings, lengths, order)
        mean: Tensor = self._weights(hidden) @ embeddings
        return mean

    def attentions(
        self, embeddings: Tensor, lengths: Tensor, order: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(B, H, L, L) weights of each layer, then (B, 1, L, L) of the mean."""
        hidden = self.layers(embeddings, lengths, order)
        return (*self.layers.attentions(embeddings), self._weights(hidden).unsqueeze(1))

    def _weights(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, L) shares of what lies behind."""
        places = torch.arange(hidden.size(1), device=hidden.device)
        back = places.unsqueeze(1) - places  # (L, L)
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2) / hidden.size(2) ** 0.5
        scores = scores + self.distance[back.clamp(min=0)]
        return scores.masked_fill(back < 0, float("-inf")).softmax(2)


CONFIG = CoreConfig
