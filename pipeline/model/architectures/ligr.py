"""LiGR layers (Borisyuk et al., "From features to transformers", 2025), as in eSASRec.

eSASRec (Tikhonovich et al., RecSys 2025) is these layers with SASRec's objective and a sampled
softmax. Unlike SASRec's layers, their outputs are gated by their inputs, and the pointwise network
is a SwiGLU (Shazeer 2020).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.layered import CausalAttention, LayeredEncoder
from pipeline.model.masking import Masking

_EXPANSION = 4
"""Ratio of the pointwise network's width to D, as in eSASRec's Beauty recipe."""


class LiGRConfig(ArchitectureConfig):
    """Causal attention, learned positions, pre-normalization.

    `hidden_act` and `options` have no effect: its layers are SiLU.
    """

    name = "ligr"

    def encoder(self, masking: Masking) -> nn.Module:
        """LayeredEncoder; clm only."""
        return LayeredEncoder(self, (LiGRLayer(self) for _ in range(self.n_layer)))


class LiGRLayer(nn.Module):
    """Causal attention, then a pointwise network, each with a gate and a residual connection."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = CausalAttention(width, config.n_head, config.dropout)
        self.attention_gate = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.network = SwiGLU(width, _EXPANSION * width, config.dropout)
        self.network_gate = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        mixed = self.dropout(self.attention(self.attention_norm(hidden)))
        hidden = hidden + mixed * torch.sigmoid(self.attention_gate(hidden))
        network = self.dropout(self.network(self.network_norm(hidden)))
        gated: Tensor = network * torch.sigmoid(self.network_gate(hidden))
        return hidden + gated

    def weights(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, L)."""
        return self.attention.weights(self.attention_norm(hidden))


class SwiGLU(nn.Module):
    """Gated layer: SiLU of one half of a projection times the other half."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 2 * inner)
        self.narrow = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, value = self.wide(hidden).chunk(2, -1)
        return self.narrow(self.dropout(functional.silu(gate) * value))
