"""HSTU (Zhai et al., "Actions speak louder than words", ICML 2024).

Hierarchical sequential transduction units: attention weights are SiLU of the scores, not a
softmax, so that they keep the strength of an interest and not only its share; the attended values
are gated. Relative positions add to the scores, and with `time_bias` the time between the two
interactions.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.layered import LayeredEncoder
from pipeline.model.masking import Masking

_BUCKETS = 32
"""Buckets of times: bucket b is about 2 ** b seconds, the last one a century."""


class HSTUConfig(ArchitectureConfig):
    """Causal attention, learned and relative positions.

    `hidden_act` has no effect: its layers are SiLU. `options` may hold `time_bias: True`: the
    feature `elapsed` of the interactions then adds a bias to the scores.
    """

    name = "hstu"

    def encoder(self, masking: Masking) -> nn.Module:
        """HSTUEncoder; clm only."""
        return HSTUEncoder(self, (HSTULayer(self) for _ in range(self.n_layer)))


class HSTUEncoder(LayeredEncoder):
    """Layers that can also read the times of the interactions."""

    units: Tensor
    """(2,) mean and standard deviation of the logarithms behind `elapsed`."""

    def __init__(self, config: EncoderConfig, layers: Iterable[nn.Module]) -> None:
        super().__init__(config, layers)
        self.reads_elapsed = bool(config.options.get("time_bias", False))
        if self.reads_elapsed:
            self.register_buffer("units", torch.tensor([0.0, 1.0]))

    def set_units(self, mean: float, deviation: float) -> None:
        """Set the statistics that standardized `elapsed`."""
        if self.reads_elapsed:
            self.units.copy_(torch.tensor([mean, deviation]))

    def forward(
        self,
        embeddings: Tensor,
        lengths: Tensor,
        order: Tensor | None,
        elapsed: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) and (B, L) standardized `elapsed` -> (B, L, D)."""
        hidden, buckets = self._positioned(embeddings), self._buckets(elapsed)
        for layer in self.layers:
            hidden = layer(hidden, buckets)
        return self.norm(hidden)

    def attentions(self, embeddings: Tensor, *others: Any) -> tuple[Tensor, ...]:
        """(B, H, L, L) weights of each layer."""
        hidden, weights = self._positioned(embeddings), []
        buckets = self._buckets(others[2] if len(others) > 2 else None)
        for layer in self.layers:
            weights.append(layer.weights(hidden, buckets))  # type: ignore[operator]
            hidden = layer(hidden, buckets)
        return tuple(weights)

    def _buckets(self, elapsed: Tensor | None) -> Tensor | None:
        """(B, L) -> (B, L, L) log2(1 + seconds between two interactions)."""
        if elapsed is None:
            return None
        # float64 keeps seconds after a gap of years
        logarithms = elapsed.double() * self.units[1] + self.units[0]
        times = (logarithms.exp() - 1).clamp(min=0).cumsum(1)
        between = (times.unsqueeze(2) - times.unsqueeze(1)).clamp(min=0).float()
        return (between + 1).log2().clamp(max=_BUCKETS - 1.0)


class HSTULayer(nn.Module):
    """Projection, causal pointwise attention and gate, with a residual connection."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_head = config.n_head
        self.num_positions = config.positions()
        self.input_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, 4 * width)
        self.distance = nn.Parameter(torch.zeros(self.num_positions))
        """(L,) bias of the attention scores, by distance in positions."""
        has_time = config.options.get("time_bias", False)
        self.time = nn.Parameter(torch.zeros(_BUCKETS + 1)) if has_time else None
        """(_BUCKETS + 1,) bias of the attention scores, by bucket of the time difference."""
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, buckets: Tensor | None = None) -> Tensor:
        """(B, L, D) and (B, L, L) fractional buckets -> (B, L, D)."""
        gate, value, weights = self._parts(hidden, buckets)
        mixed = (weights @ value).transpose(1, 2).flatten(2)  # (B, L, D)
        output: Tensor = self.output(self.dropout(self.attention_norm(mixed) * gate))
        return hidden + output

    def weights(self, hidden: Tensor, buckets: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, H, L, L); rows need not sum to 1."""
        return self._parts(hidden, buckets)[2]

    def _time_bias(self, buckets: Tensor) -> Tensor:
        """(B, L, L) -> (B, 1, L, L), interpolated between the buckets below and above.

        The paper takes the bucket below; a small rounding difference between server and training
        could then select another bucket, and change the score.
        """
        assert self.time is not None  # noqa: S101
        below = buckets.floor()
        index = below.long()
        low, high = self.time[index], self.time[index + 1]
        return (low + (high - low) * (buckets - below)).unsqueeze(1)

    def _parts(
        self, hidden: Tensor, buckets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gate (B, L, D), values (B, H, L, D / H), weights (B, H, L, L)."""
        projected = functional.silu(self.projection(self.input_norm(hidden)))
        gate, *parts = projected.chunk(4, -1)
        value, query, key = (p.unflatten(2, (self.n_head, -1)).transpose(1, 2) for p in parts)
        width = hidden.size(1)
        positions = torch.arange(width, device=hidden.device)
        back = positions.unsqueeze(1) - positions  # (L, L)
        scores = query @ key.transpose(2, 3) + self.distance[back.clamp(min=0)]
        if buckets is not None and self.time is not None:
            scores = scores + self._time_bias(buckets)
        # a constant, as no score may depend on the amount of padding
        weights = functional.silu(scores) / self.num_positions
        return gate, value, weights.masked_fill(back < 0, 0.0)
