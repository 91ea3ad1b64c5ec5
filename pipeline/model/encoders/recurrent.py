"""Recurrent encoder, as in GRU4Rec (Hidasi et al. 2016)."""

from typing import Any

from torch import Tensor, nn

from pipeline.core.errors import ConfigError


class RecurrentEncoder(nn.Module):
    """A GRU or LSTM over the positions of each session, and a norm.

    Without the norm, hidden states between -1 and 1 times small item vectors give scores that
    hardly differ, and the loss stays flat for many epochs.
    """

    def __init__(self, layers: nn.GRU | nn.LSTM, dropout: float, layer_norm_eps: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = layers
        self.d_output = layers.hidden_size
        """Width of the hidden states."""
        self.norm = nn.LayerNorm(self.d_output, eps=layer_norm_eps)

    def forward(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); padding is on the right, behind all interactions."""
        return self.norm(self.layers(self.dropout(embeddings))[0])

    def attentions(self, *_inputs: Any) -> tuple[Tensor, ...]:
        """ConfigError: a recurrent network has no attention."""
        raise ConfigError("A recurrent network has no attention weights.")
