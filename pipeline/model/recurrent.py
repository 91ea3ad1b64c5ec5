"""Recurrent encoders, as in GRU4Rec (Hidasi et al. 2016)."""

from typing import Any

from torch import Tensor, nn

from pipeline.core.errors import ConfigError


class RecurrentEncoder(nn.Module):
    """A GRU or LSTM over the positions of each session; it looks back alone."""

    def __init__(self, layers: nn.GRU | nn.LSTM, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = layers
        self.d_output = layers.hidden_size
        """Width of the hidden states."""

    def forward(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> Tensor:  # noqa: ARG002
        """(B, L, D) -> (B, L, D); padding is on the right, behind all that counts."""
        hidden: Tensor = self.layers(self.dropout(embeddings))[0]
        return self.dropout(hidden)

    def attentions(self, *_inputs: Any) -> tuple[Tensor, ...]:
        """A recurrent network has none."""
        raise ConfigError("A recurrent network has no attention weights.")
