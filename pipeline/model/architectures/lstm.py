"""LSTM, as torch has it."""

from torch import nn

from pipeline.model.encoders.recurrent import RecurrentConfig


class LSTMConfig(RecurrentConfig):
    """Looks back alone."""

    name = "lstm"
    layers = nn.LSTM


CONFIG = LSTMConfig
