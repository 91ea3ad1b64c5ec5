"""XLNet (Yang et al. 2019)."""

import transformers
from torch import nn

from pipeline.core.errors import ConfigError
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.huggingface import (
    HuggingFaceEncoder,
    encoder_around,
    made,
    make_config,
)
from pipeline.model.masking import Masking


class XLNetConfig(EncoderConfig):
    """Relative positions; looks both ways, back alone under clm, by a permutation under plm."""

    name = "xlnet"

    def encoder(self, masking: Masking) -> nn.Module:
        """XLNetModel whose attention is causal exactly if the masking asks for it."""
        self.refuse_others(masking)
        if self.d_model % 2:
            raise ConfigError(f"XLNet's positions need an even d_model, found {self.d_model}.")
        settings = {
            "vocab_size": 1,
            "d_model": self.d_model,
            "d_inner": 4 * self.d_model,
            "n_head": self.n_head,
            "n_layer": self.n_layer,
            "ff_activation": self.hidden_act,
            "attn_type": "uni" if masking.causal else "bi",
            "initializer_range": self.initializer_range,
            "layer_norm_eps": self.layer_norm_eps,
            "dropout": self.dropout,
            "mem_len": None,
            "use_mems_eval": False,
            "use_mems_train": False,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        config = make_config(transformers.XLNetConfig, settings, self.options)
        model = made("xlnet", lambda: transformers.XLNetModel(config))
        mask_vector = model.mask_emb
        encoder = encoder_around(
            model, masking, d_model=self.d_model, positions=self.total_seq_length
        )
        if masking.name == "plm":  # the stream of the targets starts from that vector
            mask_vector.requires_grad_(True)
            return HuggingFaceEncoder(model, "order", encoder.d_output, None)
        return encoder


CONFIG = XLNetConfig
