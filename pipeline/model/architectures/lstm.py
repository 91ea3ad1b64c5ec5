"""LSTM."""

from typing import Self

from torch import nn

from pipeline.core.arguments import checked_arguments
from pipeline.model.encoder import EncoderConfig, check_shape
from pipeline.model.masking import Masking
from pipeline.model.recurrent import RecurrentEncoder


class LSTMConfig(EncoderConfig):
    """Looks back alone; any length, no heads."""

    name = "lstm"

    @classmethod
    @checked_arguments(instead={"n_head": "a recurrent network has no heads; leave it out."})
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
        """torch's LSTM; clm only."""
        self.refuse_others(masking)
        between = self.dropout if self.n_layer > 1 else 0.0
        layers = nn.LSTM(
            self.d_model, self.d_model, self.n_layer, batch_first=True, dropout=between
        )
        return RecurrentEncoder(layers, self.dropout, self.layer_norm_eps)


CONFIG = LSTMConfig
