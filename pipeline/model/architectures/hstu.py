"""HSTU (Zhai et al., "Actions speak louder than words", ICML 2024).

Hierarchical sequential transduction units: attention weights are SiLU of the scores, not a
softmax, so that they keep the strength of an interest and not only its share; the attended values
are gated. Relative positions add to the scores; the paper's time differences do not, since
sessions carry time as a feature.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.layered import LayeredEncoder
from pipeline.model.masking import Masking


class HSTUConfig(ArchitectureConfig):
    """Attends to the past only, learned and relative positions.

    `hidden_act` and `options` have no effect: its layers are SiLU.
    """

    name = "hstu"

    def encoder(self, masking: Masking) -> nn.Module:
        """LayeredEncoder; clm only."""
        return LayeredEncoder(self, (HSTULayer(self) for _ in range(self.n_layer)))


class HSTULayer(nn.Module):
    """Projection, pointwise attention to the past and gate, added to the input."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_head = config.n_head
        self.num_positions = config.positions()
        self.input_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, 4 * width)
        self.distance = nn.Parameter(torch.zeros(self.num_positions))
        """(L,) added to the attention scores, by the distance in positions."""
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        gate, value, weights = self._parts(hidden)
        mixed = (weights @ value).transpose(1, 2).flatten(2)  # (B, L, D)
        output: Tensor = self.output(self.dropout(self.attention_norm(mixed) * gate))
        return hidden + output

    def weights(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, L); rows need not add up to 1."""
        return self._parts(hidden)[2]

    def _parts(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate (B, L, D), values (B, H, L, D / H), weights (B, H, L, L)."""
        projected = functional.silu(self.projection(self.input_norm(hidden)))
        gate, *parts = projected.chunk(4, -1)
        value, query, key = (p.unflatten(2, (self.n_head, -1)).transpose(1, 2) for p in parts)
        width = hidden.size(1)
        positions = torch.arange(width, device=hidden.device)
        back = positions.unsqueeze(1) - positions  # (L, L)
        scores = query @ key.transpose(2, 3) + self.distance[back.clamp(min=0)]
        # a constant, not the length of the row: no score may depend on the amount of padding
        weights = functional.silu(scores) / self.num_positions
        return gate, value, weights.masked_fill(back < 0, 0.0)
