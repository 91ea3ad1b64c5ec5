"""Shape of a sequence encoder, and the module that is built from it.

An encoder is called as `encoder(embeddings, lengths, order)`: (B, L, D), (B,) and None or (B, L) ->
(B, L, d_output). Positions at or beyond a length are padding, on which no hidden state of an
interaction may depend. `order` is not None under plm only, see `PermutationMasking`. An encoder
whose `reads_elapsed` is true also takes the feature `elapsed`, (B, L).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import nn

from pipeline.core.errors import ConfigError
from pipeline.model.masking import Masking
from pipeline.recipe.choices import ARCHITECTURES


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a sequence encoder. ConfigError for invalid numbers."""

    d_model: int
    """D: width of the embeddings."""
    n_head: int = 1
    """H: attention heads of a layer; a divisor of D."""
    n_layer: int = 1
    """Number of layers."""
    total_seq_length: int | None = None
    """Number of positions: L, plus one if the masking appends a position."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward networks."""
    initializer_range: float = 0.01
    """Standard deviation of initial weights."""
    layer_norm_eps: float = 0.03
    """Epsilon of layer normalization."""
    dropout: float = 0.3
    """Dropout probability of all layers."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the Hugging Face config; `time_bias` of HSTU."""

    name: ClassVar[str]
    """Name in a recipe and in `pipeline.recipe.choices.ARCHITECTURES`."""

    def __post_init__(self) -> None:
        sizes = {"d_model": self.d_model, "n_head": self.n_head, "n_layer": self.n_layer}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}, expected a whole number above 0.")
        self.check_heads()

    def check_heads(self) -> None:
        """ConfigError unless the heads divide the width."""
        if self.d_model % self.n_head:
            raise ConfigError(f"n_head {self.n_head} does not divide d_model {self.d_model}.")

    def check_masking(self, masking: Masking) -> None:
        """ConfigError unless ARCHITECTURES lists the masking for this architecture."""
        works = ARCHITECTURES[self.name]
        if masking.name not in ("none", *works):
            others = [name for name, maskings in ARCHITECTURES.items() if masking.name in maskings]
            raise ConfigError(
                f"{self.name} works with {', '.join(works)}, not with {masking.name}. "
                f"{masking.name} works with {', '.join(others)}."
            )

    @classmethod
    def build(cls, *sizes: Any, **fields: Any) -> Self:
        """Make a config as in Transformers4Rec: the arguments are the fields, in their order."""
        return cls(*sizes, **fields)

    def encoder(self, masking: Masking) -> nn.Module:
        """Build the encoder with fresh weights. ConfigError if the masking does not fit."""
        raise NotImplementedError

    def positions(self) -> int:
        """`total_seq_length`. ConfigError if it is None."""
        if self.total_seq_length is None:
            raise ConfigError(f"{self.name} has a number of positions: give total_seq_length.")
        return self.total_seq_length
