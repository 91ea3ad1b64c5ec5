"""Recurrent encoders, as in GRU4Rec (Hidasi et al. 2016)."""

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.model.encoders.config import EncoderConfig, check_shape
from pipeline.model.masking import Masking


class RecurrentEncoder(nn.Module):
    """A GRU or LSTM over the positions of each session, and a norm; it looks back alone.

    Without the norm, hidden states between -1 and 1 times small item vectors give scores that
    hardly differ, and learning takes many epochs to get going.
    """

    def __init__(self, layers: nn.GRU | nn.LSTM, dropout: float, layer_norm_eps: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = layers
        self.d_output = layers.hidden_size
        """Width of the hidden states."""
        self.norm = nn.LayerNorm(self.d_output, eps=layer_norm_eps)

    def forward(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> Tensor:  # noqa: ARG002
        """(B, L, D) -> (B, L, D); padding is on the right, behind all that counts."""
        hidden: Tensor = self.norm(self.layers(self.dropout(embeddings))[0])
        return hidden

    def attentions(self, *_inputs: Any) -> tuple[Tensor, ...]:
        """A recurrent network has none."""
        raise ConfigError("A recurrent network has no attention weights.")


class RecurrentConfig(EncoderConfig):
    """Shape of a recurrent encoder: any length, no heads."""

    layers: ClassVar[type[nn.GRU] | type[nn.LSTM]]

    @classmethod
    def build(  # type: ignore[override]
        cls,
        d_model: int,
        n_layer: int = 1,
        total_seq_length: int | None = None,
        *,
        dropout: float = 0.3,
    ) -> Self:
        """D and layers; `total_seq_length` limits nothing here."""
        check_shape(d_model=d_model, n_layer=n_layer)
        return cls(
            d_model=d_model, n_layer=n_layer, total_seq_length=total_seq_length, dropout=dropout
        )

    def encoder(self, masking: Masking) -> nn.Module:
        """RecurrentEncoder; clm only."""
        self.refuse_others(masking)
        between = self.dropout if self.n_layer > 1 else 0.0
        layers = self.layers(
            self.d_model, self.d_model, self.n_layer, batch_first=True, dropout=between
        )
        return RecurrentEncoder(layers, self.dropout, self.layer_norm_eps)
