"""Longformer's attention as one matrix product over the positions of a session, for ONNX.

Hugging Face's Longformer cuts a row into overlapping chunks by strided views, which ONNX does not
have. A session has few positions, so the full score matrix, masked outside the window, takes no
more memory. The hidden states are equal, which the exporter checks.

Letters: B sessions, L positions, D width, H heads.
"""

from typing import Any

import torch
from torch import Tensor, nn


class LongformerAttention(nn.Module):
    """LongformerSelfAttention without global attention and dropout."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.num_heads: int = attention.num_heads
        self.half_window: int = attention.one_sided_attn_window_size
        """Positions on each side that a position attends to."""

    def forward(self, hidden: Tensor, attention_mask: Tensor, **_others: Any) -> tuple[Tensor]:
        """(B, L, D), (B, L) negative for padding -> (B, L, D)."""
        query, key, value = (
            layer(hidden).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # (B, H, L, D / H)
        scores = query @ key.transpose(2, 3) / query.size(3) ** 0.5
        positions = torch.arange(hidden.size(1), device=hidden.device)
        outside = (positions - positions.unsqueeze(1)).abs() > self.half_window  # (L, L)
        hides = outside | (attention_mask != 0)[:, None, None]
        # not minus infinity: a padding position may have nothing to attend to
        weights = scores.masked_fill(hides, torch.finfo(scores.dtype).min).softmax(3)
        return ((weights @ value).transpose(1, 2).flatten(2),)


def with_plain_attention(transformer: Any) -> None:
    """Replace the attention of a LongformerModel in place."""
    for layer in transformer.encoder.layer:
        layer.attention.self = LongformerAttention(layer.attention.self)
