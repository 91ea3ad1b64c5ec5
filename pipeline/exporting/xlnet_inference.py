"""XLNet's forward pass with as few operations as it takes, for serving.

Hugging Face's computes sines and their projections in each call, and runs 400 small operations a
layer pair: for one session of five on a CPU, more time than the products. Here positions are
projected once, at export; the numbers are the same, which the exporter proves.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.blocks import SequentialBlock, TransformerBlock
from pipeline.model.encoders.huggingface import HuggingFaceEncoder
from pipeline.model.model import Model

Attend = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
"""`attend`, or a script of it."""

_HIDDEN = -1e30
"""Score of a position that may not be seen: Hugging Face takes as much from it."""


def attend(projected: Tensor, placed: Tensor, hidden: Tensor | None, longest: int) -> Tensor:
    """Attention with relative positions; the exporter makes it a script, whose sizes are numbers.

    (B, L, 4 * D) queries of contents and of places, keys and values, (H, d, 2 * longest) positions
    and what is added to scores -> (B, L, D).
    """
    rows, length, heads, width = (
        projected.size(0),
        projected.size(1),
        placed.size(0),
        placed.size(1),
    )
    parts = projected.view(rows, length, 4, heads, width).permute(2, 0, 3, 1, 4)  # (4, B, H, L, d)
    # of a position i that looks at j, column longest - i + j
    near = placed[:, :, longest - length + 1 : longest + length]
    away = torch.matmul(parts[1], near).contiguous()  # (B, H, L, 2 * L - 1)
    reach = 2 * length - 1
    shape = [rows, heads, length, length]
    strides = [heads * length * reach, length * reach, reach - 1, 1]
    added = away.as_strided(shape, strides, length - 1)
    if hidden is not None:
        added = added + hidden
    seen = functional.scaled_dot_product_attention(
        parts[0], parts[2], parts[3], added, 0.0, False, scale=1.0
    )
    return seen.transpose(1, 2).reshape(rows, length, heads * width)


class LeanXlnet(nn.Module):
    """In place of the encoder around XLNetModel, for rows of up to `longest`, without dropout.

    With `newest_only` the last layer is computed for the newest position alone and stands at all.
    """

    def __init__(
        self, encoder: HuggingFaceEncoder, longest: int, attend: Attend, *, newest_only: bool
    ) -> None:
        super().__init__()
        model = encoder.transformer
        self.d_output = encoder.d_output
        self.longest = longest
        self.newest_only = newest_only
        with torch.no_grad():
            positions = torch.arange(longest, -longest, -1.0)
            places = torch.arange(0, model.d_model, 2.0)
            angles = positions.unsqueeze(1) / 10_000 ** (places / model.d_model)
            waves = torch.cat([angles.sin(), angles.cos()], 1)  # (2 * longest, D)
            layers = [_Layer(layer, waves, longest, attend) for layer in model.layer]
        self.first = nn.ModuleList(layers[:-1])
        self.last = layers[-1]
        # what a position sees is said by the length of its row; right of it is padding
        count = torch.arange(longest)
        beyond = torch.full((longest + 1, longest), _HIDDEN).triu().view(-1, 1, 1, longest)
        ahead = torch.full((longest, longest), _HIDDEN).triu(1)
        self.register_buffer("beyond", beyond if encoder.mask == "padding" else None)
        self.register_buffer("ahead", ahead if model.attn_type == "uni" else None)
        # of the newest position i of a row that looks at j: column longest - i + j
        newest = torch.arange(-1, longest).unsqueeze(1)
        columns = (longest - newest + count).clamp(max=2 * longest - 1)
        self.register_buffer("columns", columns.view(-1, 1, 1, longest))

    beyond: Tensor | None
    ahead: Tensor | None
    columns: Tensor
    """(longest + 1, 1, 1, longest) by the length of a row, as `beyond`."""

    def forward(self, embeddings: Tensor, lengths: Tensor, _order: Tensor | None) -> Tensor:
        """(B, L, D), (B,), None -> (B, L, D)."""
        width = embeddings.size(1)
        lengths = lengths.clamp(min=1)
        hidden = None
        if self.beyond is not None:
            hidden = self.beyond[lengths][:, :, :, :width]
        of_newest = hidden
        if self.ahead is not None:
            ahead = self.ahead[:width, :width]
            hidden = ahead if hidden is None else torch.minimum(hidden, ahead)
        state = embeddings
        for layer in self.first:
            state = layer(state, hidden)
        if not self.newest_only:
            found: Tensor = self.last(state, hidden)
            return found
        if of_newest is None:
            assert self.ahead is not None  # noqa: S101
            of_newest = self.ahead[lengths - 1][:, None, None, :width]
        columns = self.columns[lengths][:, :, :, :width]
        found = self.last.newest(state, lengths, of_newest, columns)
        return found.expand(-1, width, -1)


class _Layer(nn.Module):
    def __init__(self, layer: Any, waves: Tensor, longest: int, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        attention = layer.rel_attn
        self.longest = longest
        d_model = waves.size(1)
        # (D, heads, width) of queries, keys and values; scores are scaled with the queries
        scaled = attention.q * attention.scale
        weights = [scaled, scaled, attention.k, attention.v]
        self.project = nn.Parameter(
            torch.cat([weight.reshape(d_model, -1) for weight in weights], 1).T.contiguous()
        )
        biases = [attention.r_w_bias * attention.scale, attention.r_r_bias * attention.scale]
        none = torch.zeros(2 * d_model)
        self.bias = nn.Parameter(torch.cat([*(bias.reshape(-1) for bias in biases), none]))
        placed = torch.einsum("pd,dhw->hwp", waves.to(attention.r), attention.r)
        self.placed = nn.Parameter(placed.contiguous())  # (heads, width, 2 * longest)
        self.back = nn.Parameter(attention.o.reshape(d_model, -1).contiguous())
        self.norm = attention.layer_norm
        self.ff = layer.ff

    def forward(self, state: Tensor, hidden: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        projected = functional.linear(state, self.project, self.bias)
        seen = self.attend(projected, self.placed, hidden, self.longest)
        return self._rest(seen, state)

    def newest(self, state: Tensor, lengths: Tensor, hidden: Tensor, columns: Tensor) -> Tensor:
        """(B, L, D), (B,), what is added to scores, and columns of positions -> (B, 1, D)."""
        rows, width, d_model = state.size(0), state.size(1), state.size(2)
        heads, wide = self.placed.size(0), self.placed.size(1)
        place = (lengths - 1).view(-1, 1, 1).expand(-1, 1, d_model)
        own = state.gather(1, place)  # (B, 1, D)
        half = 2 * d_model
        queries = functional.linear(own, self.project[:half], self.bias[:half])
        queries = queries.view(rows, 2, heads, 1, wide)
        looked = functional.linear(state, self.project[half:])
        keys, values = looked.view(rows, width, 2, heads, wide).permute(2, 0, 3, 1, 4).unbind(0)
        away = torch.matmul(queries[:, 1], self.placed)  # (B, H, 1, 2 * longest)
        added = away.gather(3, columns.expand(-1, heads, -1, -1)) + hidden
        seen = functional.scaled_dot_product_attention(
            queries[:, 0], keys, values, added, 0.0, False, scale=1.0
        )
        return self._rest(seen.reshape(rows, 1, d_model), own)

    def _rest(self, seen: Tensor, state: Tensor) -> Tensor:
        state = self.norm(functional.linear(seen, self.back) + state)
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
    bodies = [module for module in found.modules() if isinstance(module, SequentialBlock)]
    blocks = [id(block) for body in bodies for block in body.blocks]
    # one that stands in two places is not the last in both
    last = {id(body.blocks[-1]) for body in bodies if len(body.blocks)}
    last = {block for block in last if blocks.count(block) == 1}
    for block in list(found.modules()):
        if isinstance(block, TransformerBlock) and _is_xlnet(block.encoder):
            assert isinstance(block.encoder, HuggingFaceEncoder)  # noqa: S101
            # one position more: a mask stands behind the newest interaction
            block.encoder = LeanXlnet(
                block.encoder, longest + 1, attend, newest_only=id(block) in last
            )
    return found.eval()


def _is_xlnet(module: nn.Module) -> bool:
    return (
        isinstance(module, HuggingFaceEncoder)
        and module.transformer.config.model_type == "xlnet"
        and module.mask in ("none", "padding")
        and (module.mask == "padding" or module.transformer.attn_type == "uni")
        and module.fixed_length is None
        and module.transformer.clamp_len <= 0
        and not module.transformer.bi_data
    )
