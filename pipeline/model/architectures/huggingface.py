"""Any other architecture of Hugging Face transformers, by its `model_type`."""

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from pipeline.core.errors import ConfigError, closest
from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import (
    construct,
    import_transformers,
    make_config,
    wrap_transformer,
)
from pipeline.model.masking import Masking

_INNER_WIDTHS = ("intermediate_size", "hidden_dim", "d_inner", "n_inner")
"""Argument names of the feed-forward width; Hugging Face has no common one."""
_DERIVED_INNER_WIDTH = ("mamba", "mamba2")
"""Architectures whose config derives the feed-forward width."""
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
"""Argument names of dropout probabilities, all set by `dropout`."""


@dataclass(frozen=True)
class HuggingFaceConfig(ArchitectureConfig):
    """Llama, ModernBERT, Mamba and others that take `inputs_embeds`.

    Rows are always padded to `total_seq_length`: a model may depend on its shape.
    """

    model_type: str = ""
    """Name in Hugging Face's table of configs, such as `llama`."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""

    name = "huggingface"

    @classmethod
    def build(cls, model_type: str = "", *sizes: Any, **fields: Any) -> Self:
        """Make a config from `model_type`, then the fields of EncoderConfig in their order.

        `options` are further arguments of the Hugging Face config.
        """
        return super().build(*sizes, model_type=model_type, **fields)

    def encoder(self, masking: Masking) -> nn.Module:
        """Base model of `model_type` with fresh weights."""
        transformers = import_transformers()
        model_types = list(transformers.CONFIG_MAPPING.keys())
        if self.model_type not in model_types:
            raise ConfigError(
                f"Hugging Face has no model_type {self.model_type!r}; "
                f"{closest(self.model_type, model_types)}"
            )
        config_class = transformers.CONFIG_MAPPING[self.model_type]
        example = construct(self.model_type, config_class)
        config = make_config(
            config_class, self._settings(example), self._defaults(example), self.options
        )
        model = construct(self.model_type, transformers.AutoModel.from_config, config)
        has_dropout = any(hasattr(config, name) for name in _DROPOUTS)
        return wrap_transformer(
            model,
            masking,
            d_model=self.d_model,
            fixed_length=self.positions(),
            dropout=0.0 if has_dropout else self.dropout,
        )

    def _settings(self, example: Any) -> dict[str, Any]:
        """Arguments that follow from the shape; each config maps the common names to its own."""
        settings = {
            "hidden_size": self.d_model,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head,
            "num_hidden_layers": self.n_layer,
            "max_position_embeddings": self.positions() + 1,
            "use_cache": False,
            "pad_token_id": 0,
            **{f"{name}_token_id": None for name in ("bos", "eos", "cls", "sep")},
        }
        present = {name: value for name, value in settings.items() if hasattr(example, name)}
        return {"vocab_size": 1, **present}

    def _defaults(self, example: Any) -> dict[str, Any]:
        """Arguments that `options` may change."""
        inner = [name for name in _INNER_WIDTHS if hasattr(example, name)][:1]
        if self.model_type in _DERIVED_INNER_WIDTH:
            inner = []
        defaults = {
            **dict.fromkeys(inner, 4 * self.d_model),
            "initializer_range": self.initializer_range,
            **dict.fromkeys(_DROPOUTS, self.dropout),
            "head_dim": self.d_model // self.n_head,
        }
        return {name: value for name, value in defaults.items() if hasattr(example, name)}
