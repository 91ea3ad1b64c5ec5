"""XLNet's forward pass with as few operations as it takes, for serving.

Hugging Face's computes sines and their projections in each call, and runs 400 small operations a
layer pair: for one session of five on a CPU, more time than the products. Here positions are
projected once, at export; the numbers are the same, which the exporter proves.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.model.huggingface import HuggingFaceEncoder
from pipeline.model.model import Model

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, int], Tensor]
"""`attend`, or a script of it."""

_HIDDEN = 1e30
"""What Hugging Face takes from the score of a position that may not be seen."""


class Output(NamedTuple):
    """As of a Hugging Face model."""

    last_hidden_state: Tensor


def attend(
    projected: Tensor,
    content: Tensor,
    place: Tensor,
    placed: Tensor,
    hidden: Tensor | None,
    longest: int,
) -> Tensor:
    """Attention with relative positions; the exporter makes it a script, whose sizes are numbers.

    (B, L, 3 * D) queries, keys and values, (H, 1, d) biases, (H, d, 2 * longest) positions and what
    is taken from scores -> (B, L, D).
    """
    rows, length, heads, width = (
        projected.size(0),
        projected.size(1),
        placed.size(0),
        placed.size(1),
    )
    parts = projected.view(rows, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    queries, keys, values = parts[0], parts[1], parts[2]  # (B, H, L, d)
    scores = torch.matmul(queries + content, keys.transpose(2, 3))
    # of a position i that looks at j, column longest - i + j
    near = placed[:, :, longest - length + 1 : longest + length]
    away = torch.matmul(queries + place, near).contiguous()  # (B, H, L, 2 * L - 1)
    reach = 2 * length - 1
    shape = [rows, heads, length, length]
    strides = [heads * length * reach, length * reach, reach - 1, 1]
    scores = scores + away.as_strided(shape, strides, length - 1)
    if hidden is not None:
        scores = scores + hidden
    seen = torch.matmul(scores.softmax(3), values)
    return seen.transpose(1, 2).reshape(rows, length, heads * width)


class LeanXlnet(nn.Module):
    """In place of XLNetModel, for rows of up to `longest` positions, without dropout."""

    def __init__(self, model: Any, longest: int, attend: Attend) -> None:
        super().__init__()
        self.config = model.config
        self.causal = model.attn_type == "uni"
        with torch.no_grad():
            positions = torch.arange(longest, -longest, -1.0)
            places = torch.arange(0, model.d_model, 2.0)
            angles = positions.unsqueeze(1) / 10_000 ** (places / model.d_model)
            waves = torch.cat([angles.sin(), angles.cos()], 1)  # (2 * longest, D)
            self.layers = nn.ModuleList(
                _Layer(layer, waves, longest, attend) for layer in model.layer
            )

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Output:
        """(B, L, D), (B, L) of 1 and 0 -> (B, L, D)."""
        length = inputs_embeds.size(1)
        hidden = None
        if attention_mask is not None:
            own = torch.eye(length, dtype=inputs_embeds.dtype, device=inputs_embeds.device)
            seen = torch.maximum(attention_mask.unsqueeze(1), own)  # (B, L, L)
            hidden = ((seen - 1) * _HIDDEN).unsqueeze(1)
        if self.causal:
            ahead = inputs_embeds.new_full((length, length), -_HIDDEN).triu(1)
            hidden = ahead if hidden is None else torch.minimum(hidden, ahead)
        state = inputs_embeds
        for layer in self.layers:
            state = layer(state, hidden)
        return Output(state)


class _Layer(nn.Module):
    def __init__(self, layer: Any, waves: Tensor, longest: int, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        attention = layer.rel_attn
        self.longest = longest
        d_model = waves.size(1)
        # (D, heads, width) of queries, keys and values; scores are scaled with the queries
        weights = [attention.q * attention.scale, attention.k, attention.v]
        self.project = nn.Parameter(
            torch.cat([weight.reshape(d_model, -1) for weight in weights], 1)
        )
        self.content = nn.Parameter(attention.r_w_bias.unsqueeze(1) * attention.scale)
        self.place = nn.Parameter(attention.r_r_bias.unsqueeze(1) * attention.scale)
        placed = torch.einsum("pd,dhw->hwp", waves.to(attention.r), attention.r)
        self.placed = nn.Parameter(placed.contiguous())  # (heads, width, 2 * longest)
        self.back = nn.Parameter(attention.o.reshape(d_model, -1).T.contiguous())
        self.norm = attention.layer_norm
        self.ff = layer.ff

    def forward(self, state: Tensor, hidden: Tensor | None) -> Tensor:
        seen = self.attend(
            state @ self.project, self.content, self.place, self.placed, hidden, self.longest
        )
        state = self.norm(seen @ self.back + state)
        within = self.ff.layer_2(self.ff.activation_function(self.ff.layer_1(state)))
        normed: Tensor = self.ff.layer_norm(within + state)
        return normed


def lean(model: Model, attend: Attend = attend) -> Model:
    """The same model with leaner parts where there are some; the weights are those of `model`."""
    if not any(_is_xlnet(module) for module in model.modules()):
        return model
    found = copy.deepcopy(model)
    longest = model.inputs.max_sequence_length
    assert longest is not None  # noqa: S101  the exporter knows a length
    for module in found.modules():
        if _is_xlnet(module):
            # one position more: a mask stands behind the newest interaction
            module.transformer = LeanXlnet(module.transformer, longest + 1, attend)
    return found.eval()


def _is_xlnet(module: nn.Module) -> bool:
    return (
        isinstance(module, HuggingFaceEncoder)
        and module.transformer.config.model_type == "xlnet"
        and module.mask in ("none", "padding")
        and module.transformer.clamp_len <= 0
        and not module.transformer.bi_data
    )
