"""CORE (Hou et al., "CORE: simple and effective session-based recommendation within consistent
representation space", SIGIR 2022).

A session is a weighted mean of its interaction vectors; the layers compute only the weights. The
hidden state then lies in the space of the item vectors that score it, which generalizes to items
with few interactions. Scores should be cosines: `normalize` with a temperature of about 0.07.
Dropout of item vectors regularizes the mean, in the input (`feature_dropout`) and in the scores
(`item_dropout`).
"""

import torch
from torch import Tensor, nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.architectures.sasrec import SASRecLayer
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.layered import LayeredEncoder
from pipeline.model.masking import Masking


class CoreConfig(ArchitectureConfig):
    """Causal attention, learned positions, layers of SASRec.

    The paper computes the weights once per session. Here each position has weights over the
    positions up to it, so that one pass trains every position. `hidden_act` and `options` have no
    effect.
    """

    name = "core"

    def encoder(self, masking: Masking) -> nn.Module:
        """CoreEncoder; clm only."""
        return CoreEncoder(self)


class CoreEncoder(nn.Module):
    """Weighted mean of the input, with weights from the layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.d_output = width
        """Width of the hidden states."""
        self.layers = LayeredEncoder(config, (SASRecLayer(config) for _ in range(config.n_layer)))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.distance = nn.Parameter(torch.zeros(config.positions()))
        """(L,) bias of the attention scores, by distance in positions."""

    def forward(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); padding is on the right."""
        hidden = self.layers(embeddings, lengths, order)
        return self._weights(hidden) @ embeddings

    def attentions(
        self, embeddings: Tensor, lengths: Tensor, order: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(B, H, L, L) weights of each layer, then (B, 1, L, L) of the mean."""
        hidden = self.layers(embeddings, lengths, order)
        return (*self.layers.attentions(embeddings), self._weights(hidden).unsqueeze(1))

    def _weights(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, L) weights over each position and the previous ones."""
        positions = torch.arange(hidden.size(1), device=hidden.device)
        back = positions.unsqueeze(1) - positions  # (L, L)
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2) / hidden.size(2) ** 0.5
        scores = scores + self.distance[back.clamp(min=0)]
        return scores.masked_fill(back < 0, float("-inf")).softmax(2)
