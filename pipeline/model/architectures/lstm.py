"""LSTM (Hochreiter and Schmidhuber 1997)."""

from torch import nn

from pipeline.model.architectures.gru import RecurrentConfig


class LSTMConfig(RecurrentConfig):
    """torch's LSTM."""

    name = "lstm"
    layers = nn.LSTM


CONFIG = LSTMConfig
