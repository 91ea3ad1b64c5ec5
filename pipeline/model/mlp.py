"""Multi-layer perceptron."""

from collections.abc import Callable

from torch import Tensor, nn

from pipeline.core.errors import ConfigError


class MLPBlock(nn.Sequential):
    """Linear layers, each followed by an activation: (..., input) -> (..., dimensions[-1]).

    `build` makes the layers for the width of the previous block. `activation` is a module class or
    None; `normalization` may be "layer_norm". ConfigError for invalid widths or another
    normalization.
    """

    def __init__(
        self,
        dimensions: int | list[int],
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        use_bias: bool = True,
        dropout: float | None = None,
        normalization: str | None = None,
    ) -> None:
        super().__init__()
        self.dimensions = [dimensions] if isinstance(dimensions, int) else list(dimensions)
        _check(self.dimensions, normalization)
        self.activation = activation
        self.use_bias = use_bias
        self.dropout = dropout
        self.normalization = normalization

    def forward(self, values: Tensor) -> Tensor:
        """(..., input) -> (..., dimensions[-1])."""
        if not len(self):
            raise ConfigError(
                "An MLPBlock learns its input width from the block in front of it. Use it "
                "as a block itself, not inside another module."
            )
        return super().forward(values)

    def build(self, width: int) -> None:
        """Build the layers for an input of this width. ConfigError if they exist already."""
        if len(self):
            raise ConfigError("An MLPBlock is used in two places; create one for each.")
        for dimension in self.dimensions:
            self.append(nn.Linear(width, dimension, bias=self.use_bias))
            if self.activation is not None:
                self.append(self.activation())
            if self.normalization is not None:
                self.append(nn.LayerNorm(dimension))
            if self.dropout:
                self.append(nn.Dropout(self.dropout))
            width = dimension


def _check(dimensions: list[int], normalization: str | None) -> None:
    """ConfigError for invalid widths or an unknown normalization."""
    if not dimensions:
        raise ConfigError("MLPBlock needs at least one dimension, as in MLPBlock([64]).")
    if not all(isinstance(width, int) and width > 0 for width in dimensions):
        raise ConfigError(f"MLPBlock got {dimensions!r}, expected whole numbers above 0.")
    if normalization not in (None, "layer_norm"):
        raise ConfigError(
            f"normalization is {normalization!r}, expected 'layer_norm' or None. A batch norm "
            "would mix sessions with each other and with padding."
        )
