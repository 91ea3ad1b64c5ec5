"""SASRec (Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018)."""

from torch import Tensor, nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.layered import CausalAttention, LayeredEncoder
from pipeline.model.masking import Masking


class SASRecConfig(ArchitectureConfig):
    """Causal attention, learned positions, pre-normalization.

    `hidden_act` and `options` have no effect: its layers are ReLU.
    """

    name = "sasrec"

    def encoder(self, masking: Masking) -> nn.Module:
        """LayeredEncoder; clm only."""
        return LayeredEncoder(self, (SASRecLayer(self) for _ in range(self.n_layer)))


class SASRecLayer(nn.Module):
    """Causal attention, then a pointwise network, each with a residual connection."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = CausalAttention(width, config.n_head, config.dropout)
        self.network_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.network = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden)))
        network: Tensor = self.network(self.network_norm(hidden))
        return hidden + self.dropout(network)

    def weights(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, L)."""
        return self.attention.weights(self.attention_norm(hidden))
