"""XLNet (Yang et al. 2019)."""

from torch import nn

from pipeline.core.errors import ConfigError
from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import (
    HuggingFaceEncoder,
    build_transformer,
    wrap_transformer,
)
from pipeline.model.masking import Masking


class XLNetConfig(ArchitectureConfig):
    """Relative positions; attention is bidirectional, causal under clm, by permutation order under
    plm."""

    name = "xlnet"

    def encoder(self, masking: Masking) -> nn.Module:
        """XLNetModel with causal attention if the masking is causal."""
        if self.d_model % 2:
            raise ConfigError(f"XLNet's positions need an even d_model, found {self.d_model}.")
        settings = {
            "vocab_size": 1,
            "d_model": self.d_model,
            "n_head": self.n_head,
            "n_layer": self.n_layer,
            "attn_type": "uni" if masking.causal else "bi",
            "mem_len": None,
            "use_mems_eval": False,
            "use_mems_train": False,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        defaults = {
            "d_inner": 4 * self.d_model,
            "ff_activation": self.hidden_act,
            "initializer_range": self.initializer_range,
            "layer_norm_eps": self.layer_norm_eps,
            "dropout": self.dropout,
        }
        model = build_transformer("XLNetModel", settings, defaults, self.options)
        mask_vector = model.mask_emb
        encoder = wrap_transformer(
            model, masking, d_model=self.d_model, positions=self.total_seq_length
        )
        if masking.name == "plm":  # the query stream of the targets starts from it
            mask_vector.requires_grad_(True)
            return HuggingFaceEncoder(model, "order", encoder.d_output, None)
        return encoder
