"""GRU, as torch has it."""

from torch import nn

from pipeline.model.encoders.recurrent import RecurrentConfig


class GRUConfig(RecurrentConfig):
    """Looks back alone."""

    name = "gru"
    layers = nn.GRU


CONFIG = GRUConfig
