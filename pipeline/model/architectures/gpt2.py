"""GPT-2 (Radford et al. 2019)."""

import transformers
from torch import nn

from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.huggingface import encoder_around, made, make_config
from pipeline.model.masking import Masking


class GPT2Config(EncoderConfig):
    """Looks back alone, learned positions."""

    name = "gpt2"

    def encoder(self, masking: Masking) -> nn.Module:
        """GPT2Model; clm only."""
        self.refuse_others(masking)
        settings = {
            "vocab_size": 1,
            "n_embd": self.d_model,
            "n_inner": 4 * self.d_model,
            "n_head": self.n_head,
            "n_layer": self.n_layer,
            "n_positions": self.positions(),
            "activation_function": self.hidden_act,
            "initializer_range": self.initializer_range,
            "layer_norm_epsilon": self.layer_norm_eps,
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "use_cache": False,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        config = make_config(transformers.GPT2Config, settings, self.options)
        return encoder_around(
            made("gpt2", lambda: transformers.GPT2Model(config)),
            masking,
            d_model=self.d_model,
            positions=self.total_seq_length,
        )


CONFIG = GPT2Config
