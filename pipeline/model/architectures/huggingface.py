"""Any other architecture of Hugging Face transformers, by its `model_type`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import transformers
from torch import nn

from pipeline.core.arguments import closest
from pipeline.core.errors import ConfigError
from pipeline.model.encoders.config import EncoderConfig, check_shape
from pipeline.model.encoders.huggingface import encoder_around, made, make_config
from pipeline.model.masking import Masking

_NAMES = {
    "d_model": ("hidden_size", "d_model", "dim", "n_embd"),
    "n_head": ("num_attention_heads", "n_head", "n_heads"),
    "key_value_heads": ("num_key_value_heads",),
    "n_layer": ("num_hidden_layers", "n_layer", "n_layers"),
    "inner": ("intermediate_size", "hidden_dim", "d_inner", "n_inner"),
    "positions": ("max_position_embeddings", "n_positions"),
    "initializer_range": ("initializer_range",),
}
"""What architectures call the same thing."""
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "dropout",
    "embedding_dropout",
    "mlp_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)
_STATELESS = {"mamba": "intermediate_size", "mamba2": "intermediate_size"}
"""Architectures that derive their inner width themselves."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig(EncoderConfig):
    """Llama, ModernBERT, Mamba and others that take `inputs_embeds`.

    Rows are always padded to `total_seq_length`: an unknown program may depend on its shape.
    """

    model_type: str = ""
    """Name in Hugging Face's table of configs, such as `llama`."""

    name = "huggingface"

    @classmethod
    def build(  # type: ignore[override]
        cls,
        model_type: str,
        d_model: int,
        n_head: int,
        n_layer: int,
        total_seq_length: int,
        *,
        initializer_range: float = 0.02,
        dropout: float = 0.3,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """`options` are further arguments of that architecture's own config."""
        check_shape(d_model=d_model, n_head=n_head, n_layer=n_layer)
        return cls(
            model_type=model_type,
            d_model=d_model,
            n_head=n_head,
            n_layer=n_layer,
            total_seq_length=total_seq_length,
            initializer_range=initializer_range,
            dropout=dropout,
            options=dict(options or {}),
        )

    def encoder(self, masking: Masking) -> nn.Module:
        """The base model of that architecture, with fresh weights."""
        known = list(transformers.CONFIG_MAPPING.keys())
        if self.model_type not in known:
            raise ConfigError(
                f"Hugging Face has no model_type {self.model_type!r}; "
                f"{closest(self.model_type, known)}"
            )
        config_class = transformers.CONFIG_MAPPING[self.model_type]
        config = make_config(config_class, self._settings(config_class), self.options)
        model = made(self.model_type, lambda: transformers.AutoModel.from_config(config))
        has_dropout = any(hasattr(config, name) for name in _DROPOUTS)
        return encoder_around(
            model,
            masking,
            d_model=self.d_model,
            room=self.positions(),
            dropout=0.0 if has_dropout else self.dropout,
        )

    def _settings(self, config_class: Any) -> dict[str, Any]:
        default = made(self.model_type, config_class)
        wanted = {
            "d_model": self.d_model,
            "n_head": self.n_head,
            "key_value_heads": self.n_head,
            "n_layer": self.n_layer,
            "inner": 4 * self.d_model,
            "positions": self.positions() + 1,
            "initializer_range": self.initializer_range,
        }
        settings: dict[str, Any] = {"vocab_size": 1}
        for meaning, value in wanted.items():
            for name in _NAMES[meaning]:
                if hasattr(default, name) and _STATELESS.get(self.model_type) != name:
                    settings[name] = value
                    break
        settings |= {name: self.dropout for name in _DROPOUTS if hasattr(default, name)}
        if hasattr(default, "head_dim"):
            settings["head_dim"] = self.d_model // self.n_head
        if hasattr(default, "use_cache"):
            settings["use_cache"] = False
        for name in ("pad", "bos", "eos", "cls", "sep"):
            if hasattr(default, f"{name}_token_id"):
                settings[f"{name}_token_id"] = 0 if name == "pad" else None
        return settings


CONFIG = HuggingFaceConfig
