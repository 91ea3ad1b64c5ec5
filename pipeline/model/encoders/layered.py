"""Causal layers over learned positions: the common parts of SASRec, HSTU, LiGR and CORE."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.encoders.config import EncoderConfig


class LayeredEncoder(nn.Module):
    """Learned positions, layers and a final normalization.

    A layer has `forward`, (B, L, D) -> (B, L, D), and `weights`, (B, L, D) -> (B, H, L, L).
    """

    def __init__(self, config: EncoderConfig, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.d_output = config.d_model
        """Width of the hidden states."""
        self.positions = nn.Embedding(config.positions(), config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); padding is on the right."""
        hidden = self._positioned(embeddings)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)

    def attentions(self, embeddings: Tensor, *_others: Any) -> tuple[Tensor, ...]:
        """(B, H, L, L) weights of each layer."""
        hidden, weights = self._positioned(embeddings), []
        for layer in self.layers:
            weights.append(layer.weights(hidden))  # type: ignore[operator]
            hidden = layer(hidden)
        return tuple(weights)

    def _positioned(self, embeddings: Tensor) -> Tensor:
        positions = self.positions.weight[: embeddings.size(1)]
        # scaled to the length of position vectors, as in the code of SASRec and HSTU
        return self.dropout(embeddings * self.d_output**0.5 + positions)


class CausalAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        mixed = functional.scaled_dot_product_attention(
            *self._heads(hidden), is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def weights(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, L)."""
        query, key, _ = self._heads(hidden)
        scores = query @ key.transpose(2, 3) / query.size(3) ** 0.5
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(3)

    def _heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (B, H, L, D / H)."""
        query, key, value = (
            part.unflatten(2, (self.n_head, -1)).transpose(1, 2)
            for part in self.query_key_value(hidden).chunk(3, -1)
        )
        return query, key, value
