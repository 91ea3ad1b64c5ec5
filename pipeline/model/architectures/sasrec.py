"""SASRec (Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.encoder import EncoderConfig
from pipeline.model.layered import LayeredEncoder
from pipeline.model.masking import Masking


class SASRecConfig(EncoderConfig):
    """Looks back alone, learned positions, norms in front of each part.

    `hidden_act` and `options` are not read: its layers are ReLU.
    """

    name = "sasrec"

    def encoder(self, masking: Masking) -> nn.Module:
        """LayeredEncoder; clm only."""
        self.refuse_others(masking)
        return LayeredEncoder(self, (SASRecLayer(self) for _ in range(self.n_layer)))


class SASRecLayer(nn.Module):
    """Attention to the past, then a pointwise network, each added to its input."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_head = config.n_head
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.network = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        query, key, value = self._heads(hidden)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, L, D)
        hidden = hidden + self.dropout(self.output(mixed))
        network: Tensor = self.network(self.network_norm(hidden))
        return hidden + self.dropout(network)

    def weights(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, L)."""
        query, key, _ = self._heads(hidden)
        scores = query @ key.transpose(2, 3) / query.size(3) ** 0.5
        ahead = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        return scores.masked_fill(ahead, float("-inf")).softmax(3)

    def _heads(self, hidden: Tensor) -> tuple[Tensor, ...]:
        parts = self.query_key_value(self.attention_norm(hidden)).chunk(3, -1)
        # (B, H, L, D / H) each
        return tuple(p.unflatten(2, (self.n_head, -1)).transpose(1, 2) for p in parts)


CONFIG = SASRecConfig
