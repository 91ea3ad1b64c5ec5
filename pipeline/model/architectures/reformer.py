"""Reformer (Kitaev et al. 2020)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.batch import visible_positions
from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import build_transformer
from pipeline.model.masking import Masking


class ReformerConfig(ArchitectureConfig):
    """Two residual streams; a session is one chunk with exact attention and no hashing.

    Hashed buckets would make scores depend on the amount of padding. Hidden states concatenate
    both streams, so their width is 2 D.
    """

    name = "reformer"

    def encoder(self, masking: Masking) -> nn.Module:
        """The layers of a ReformerModel."""
        positions = self.positions()
        settings = {
            "vocab_size": 1,
            "hidden_size": self.d_model,
            "attention_head_size": self.d_model // self.n_head,
            "num_attention_heads": self.n_head,
            "attn_layers": ["local"] * self.n_layer,
            "local_attn_chunk_length": positions,
            "local_num_chunks_before": 1,
            "local_num_chunks_after": 0,
            "axial_pos_embds": False,
            "max_position_embeddings": positions,
            "is_decoder": masking.causal,
            "use_cache": False,
            "pad_token_id": 0,
            "eos_token_id": None,
        }
        defaults = {
            "feed_forward_size": 4 * self.d_model,
            "hidden_act": self.hidden_act,
            "initializer_range": self.initializer_range,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_dropout_prob": self.dropout,
            "local_attention_probs_dropout_prob": self.dropout,
        }
        model = build_transformer("ReformerModel", settings, defaults, self.options)
        return ReformerEncoder(model, causal=masking.causal)


class ReformerEncoder(nn.Module):
    """Hugging Face's layers, run in sequence.

    ReformerModel recomputes activations in the backward pass. That cannot be traced, and draws
    seeds from the system, so that training would not be reproducible. Sessions are short enough to
    keep the activations.
    """

    def __init__(self, model: Any, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.d_output = 2 * model.config.hidden_size
        """Width of the hidden states."""
        self.embeddings = model.embeddings
        self.embeddings.word_embeddings.requires_grad_(False)  # the input is vectors
        self.layers = model.encoder.layers
        self.norm = model.encoder.layer_norm
        self.dropout = model.config.hidden_dropout_prob

    def forward(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> Tensor:
        """(B, L, D), (B,) -> (B, L, 2 D)."""
        hidden, _ = self._run(embeddings, lengths)
        return hidden

    def attentions(
        self, embeddings: Tensor, lengths: Tensor, order: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(B, H, L, L) weights of each layer."""
        return tuple(self._run(embeddings, lengths)[1])

    def _run(self, embeddings: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        width = embeddings.size(1)
        positions = torch.arange(width, device=lengths.device).expand(embeddings.size(0), -1)
        # a causal model does not see padding on the right
        mask = None if self.causal else visible_positions(lengths.clamp(min=1), width)
        first = second = self.embeddings(inputs_embeds=embeddings, position_ids=positions)
        weights = []
        for layer in self.layers:
            attended = layer.attention(second, attention_mask=mask, output_attentions=True)
            weights.append(attended.attention_probs)
            first = first + attended.hidden_states
            second = second + layer.feed_forward(first)
        hidden = self.norm(torch.cat([first, second], -1))
        return functional.dropout(hidden, self.dropout, self.training), weights
