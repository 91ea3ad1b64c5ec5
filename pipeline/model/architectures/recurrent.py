"""GRU, as in GRU4Rec (Hidasi et al. 2016), and LSTM (Hochreiter and Schmidhuber 1997)."""

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.masking import Masking


class RecurrentConfig(ArchitectureConfig):
    """Recurrent network: causal, any number of positions, no attention heads."""

    layers: ClassVar[type[nn.GRU] | type[nn.LSTM]]

    def check_heads(self) -> None:
        """Accept any value: a recurrent network has no heads."""

    @classmethod
    def build(
        cls,
        d_model: int,
        n_layer: int = 1,
        total_seq_length: int | None = None,
        *,
        dropout: float = 0.3,
    ) -> Self:
        """Make a config; `total_seq_length` has no effect."""
        return cls(
            d_model=d_model, n_layer=n_layer, total_seq_length=total_seq_length, dropout=dropout
        )

    def encoder(self, masking: Masking) -> nn.Module:
        """RecurrentEncoder; clm only."""
        between = self.dropout if self.n_layer > 1 else 0.0
        layers = self.layers(
            self.d_model, self.d_model, self.n_layer, batch_first=True, dropout=between
        )
        return RecurrentEncoder(layers, self.dropout, self.layer_norm_eps)


class GRUConfig(RecurrentConfig):
    """torch's GRU."""

    name = "gru"
    layers = nn.GRU


class LSTMConfig(RecurrentConfig):
    """torch's LSTM."""

    name = "lstm"
    layers = nn.LSTM


class RecurrentEncoder(nn.Module):
    """A GRU or LSTM over the positions of each session, then layer normalization.

    Without it, hidden states between -1 and 1 times small item vectors give nearly equal scores,
    and the loss stays flat for many epochs.
    """

    def __init__(self, layers: nn.GRU | nn.LSTM, dropout: float, layer_norm_eps: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = layers
        self.d_output = layers.hidden_size
        """Width of the hidden states."""
        self.norm = nn.LayerNorm(self.d_output, eps=layer_norm_eps)

    def forward(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); padding is on the right."""
        return self.norm(self.layers(self.dropout(embeddings))[0])

    def attentions(self, *_inputs: Any) -> tuple[Tensor, ...]:
        """ConfigError: a recurrent network has no attention."""
        raise ConfigError("A recurrent network has no attention weights.")
