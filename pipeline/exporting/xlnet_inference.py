"""XLNet's forward pass with few operations, for serving.

Hugging Face's XLNet computes sines and their projections in each call, and runs 400 small
operations in two layers, which for one session of five interactions on a CPU take longer than the
matrix products. Here positions are projected once, at export. The scores are equal, which the
exporter checks.

Letters: B sessions, L positions, D width, H heads, d width of a head.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.blocks import SequentialBlock, TransformerBlock
from pipeline.model.encoders.huggingface import HuggingFaceEncoder
from pipeline.model.head import Head
from pipeline.model.model import Model
from pipeline.model.tasks.targets import TargetTask

Attend = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
"""`attend`, or its TorchScript."""

_MASKED = -1e30
"""Added to the score of a masked position, as in Hugging Face's XLNet."""


def attend(projected: Tensor, positions: Tensor, mask: Tensor | None, longest: int) -> Tensor:
    """Attention with relative positions; the exporter scripts it, so that sizes stay dynamic.

    (B, L, 4 * D) queries of content and of position, keys and values, (H, d, 2 * longest)
    projected positions and the mask that is added to scores -> (B, L, D).
    """
    rows, length, heads, width = (
        projected.size(0),
        projected.size(1),
        positions.size(0),
        positions.size(1),
    )
    parts = projected.view(rows, length, 4, heads, width).permute(2, 0, 3, 1, 4)  # (4, B, H, L, d)
    # position i attends to j by column longest - i + j
    used = positions[:, :, longest - length + 1 : longest + length]
    by_distance = torch.matmul(parts[1], used).contiguous()  # (B, H, L, 2 * L - 1)
    distances = 2 * length - 1
    shape = [rows, heads, length, length]
    strides = [heads * length * distances, length * distances, distances - 1, 1]
    bias = by_distance.as_strided(shape, strides, length - 1)
    if mask is not None:
        bias = bias + mask
    context = functional.scaled_dot_product_attention(
        parts[0], parts[2], parts[3], bias, 0.0, False, scale=1.0
    )
    return context.transpose(1, 2).reshape(rows, length, heads * width)


class XLNetInference(nn.Module):
    """Encoder that replaces the one around XLNetModel, for up to `longest` positions, no dropout.

    With `newest_only` the last layer computes only the newest position, and its hidden state is
    returned for every position.
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
            dimensions = torch.arange(0, model.d_model, 2.0)
            angles = positions.unsqueeze(1) / 10_000 ** (dimensions / model.d_model)
            waves = torch.cat([angles.sin(), angles.cos()], 1)  # (2 * longest, D)
            layers = [_Layer(layer, waves, longest, attend) for layer in model.layer]
        self.first_layers = nn.ModuleList(layers[:-1])
        self.last_layer = layers[-1]
        # masks by the length of a row; padding is on the right
        count = torch.arange(longest)
        padding = torch.full((longest + 1, longest), _MASKED).triu().view(-1, 1, 1, longest)
        causal = torch.full((longest, longest), _MASKED).triu(1)
        self.register_buffer("padding_mask", padding if encoder.mask == "padding" else None)
        self.register_buffer("causal_mask", causal if model.attn_type == "uni" else None)
        # the newest position i of a row attends to j by column longest - i + j
        newest = torch.arange(-1, longest).unsqueeze(1)
        columns = (longest - newest + count).clamp(max=2 * longest - 1)
        self.register_buffer("columns", columns.view(-1, 1, 1, longest))

    padding_mask: Tensor | None
    """(longest + 1, 1, 1, longest), by the length of a row."""
    causal_mask: Tensor | None
    """(longest, longest)"""
    columns: Tensor
    """(longest + 1, 1, 1, longest), by the length of a row."""

    def forward(self, embeddings: Tensor, lengths: Tensor, _order: Tensor | None) -> Tensor:
        """(B, L, D), (B,), None -> (B, L, D)."""
        width = embeddings.size(1)
        lengths = lengths.clamp(min=1)
        mask = None
        if self.padding_mask is not None:
            mask = self.padding_mask[lengths][:, :, :, :width]
        newest_mask = mask
        if self.causal_mask is not None:
            causal = self.causal_mask[:width, :width]
            mask = causal if mask is None else torch.minimum(mask, causal)
        hidden = embeddings
        for layer in self.first_layers:
            hidden = layer(hidden, mask)
        if not self.newest_only:
            whole: Tensor = self.last_layer(hidden, mask)
            return whole
        if newest_mask is None:
            assert self.causal_mask is not None  # noqa: S101
            newest_mask = self.causal_mask[lengths - 1][:, None, None, :width]
        columns = self.columns[lengths][:, :, :, :width]
        newest = self.last_layer.newest(hidden, lengths, newest_mask, columns)
        return newest.expand(-1, width, -1)


class _Layer(nn.Module):
    def __init__(self, layer: Any, waves: Tensor, longest: int, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        attention = layer.rel_attn
        self.longest = longest
        d_model = waves.size(1)
        # (D, H, d) of queries, keys and values; the queries hold the scale of the scores
        scaled = attention.q * attention.scale
        weights = [scaled, scaled, attention.k, attention.v]
        self.project = nn.Parameter(
            torch.cat([weight.reshape(d_model, -1) for weight in weights], 1).T.contiguous()
        )
        biases = [attention.r_w_bias * attention.scale, attention.r_r_bias * attention.scale]
        none = torch.zeros(2 * d_model)
        self.bias = nn.Parameter(torch.cat([*(bias.reshape(-1) for bias in biases), none]))
        positions = torch.einsum("pd,dhw->hwp", waves.to(attention.r), attention.r)
        self.positions = nn.Parameter(positions.contiguous())  # (H, d, 2 * longest)
        self.output = nn.Parameter(attention.o.reshape(d_model, -1).contiguous())
        self.norm = attention.layer_norm
        self.ff = layer.ff

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        projected = functional.linear(hidden, self.project, self.bias)
        context = self.attend(projected, self.positions, mask, self.longest)
        return self._feed_forward(context, hidden)

    def newest(self, hidden: Tensor, lengths: Tensor, mask: Tensor, columns: Tensor) -> Tensor:
        """(B, L, D), (B,) and, by row, the mask and the columns of positions -> (B, 1, D)."""
        rows, width, d_model = hidden.size(0), hidden.size(1), hidden.size(2)
        heads, head_width = self.positions.size(0), self.positions.size(1)
        index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, d_model)
        newest = hidden.gather(1, index)  # (B, 1, D)
        half = 2 * d_model
        queries = functional.linear(newest, self.project[:half], self.bias[:half])
        queries = queries.view(rows, 2, heads, 1, head_width)
        pairs = functional.linear(hidden, self.project[half:])
        pairs = pairs.view(rows, width, 2, heads, head_width)
        keys, values = pairs.permute(2, 0, 3, 1, 4).unbind(0)
        by_distance = torch.matmul(queries[:, 1], self.positions)  # (B, H, 1, 2 * longest)
        bias = by_distance.gather(3, columns.expand(-1, heads, -1, -1)) + mask
        context = functional.scaled_dot_product_attention(
            queries[:, 0], keys, values, bias, 0.0, False, scale=1.0
        )
        return self._feed_forward(context.reshape(rows, 1, d_model), newest)

    def _feed_forward(self, context: Tensor, hidden: Tensor) -> Tensor:
        hidden = self.norm(functional.linear(context, self.output) + hidden)
        inner = self.ff.layer_2(self.ff.activation_function(self.ff.layer_1(hidden)))
        output: Tensor = self.ff.layer_norm(inner + hidden)
        return output


def optimize_xlnet(model: Model, attend: Attend = attend) -> Model:
    """Return the model with `XLNetInference` in place of XLNet encoders, with the same weights.

    A model without such an encoder is returned unchanged.
    """
    if not any(_is_xlnet(module) for module in model.modules()):
        return model
    copied = copy.deepcopy(model)
    longest = model.inputs.max_sequence_length
    assert longest is not None  # noqa: S101  an exported model has one
    bodies = [module for module in copied.modules() if isinstance(module, SequentialBlock)]
    blocks = [id(block) for body in bodies for block in body.blocks]
    # a block that is used twice is not the last in both positions
    last = {id(body.blocks[-1]) for body in bodies if len(body.blocks)}
    if not all(_reads_newest_alone(head, task) for head, task in copied.target_tasks):
        last = set()
    last = {block for block in last if blocks.count(block) == 1}
    for block in list(copied.modules()):
        if isinstance(block, TransformerBlock) and _is_xlnet(block.encoder):
            assert isinstance(block.encoder, HuggingFaceEncoder)  # noqa: S101
            # one position more, for the mask after the newest interaction
            block.encoder = XLNetInference(
                block.encoder, longest + 1, attend, newest_only=id(block) in last
            )
    return copied.eval()


def _reads_newest_alone(head: Head, task: TargetTask) -> bool:
    """Whether a task reads only the hidden state that predicts the next item."""
    of_interactions = task.summary_type is None and head.body.masking.causal
    return task.summary_type == "last" or of_interactions


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
