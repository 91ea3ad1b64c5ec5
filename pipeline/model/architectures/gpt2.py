"""GPT-2 (Radford et al. 2019)."""

from torch import nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import build_transformer, wrap_transformer
from pipeline.model.masking import Masking


class GPT2Config(ArchitectureConfig):
    """Causal attention, learned positions."""

    name = "gpt2"

    def encoder(self, masking: Masking) -> nn.Module:
        """GPT2Model; clm only."""
        settings = {
            "vocab_size": 1,
            "n_embd": self.d_model,
            "n_head": self.n_head,
            "n_layer": self.n_layer,
            "n_positions": self.positions(),
            "use_cache": False,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        defaults = {
            "n_inner": 4 * self.d_model,
            "activation_function": self.hidden_act,
            "initializer_range": self.initializer_range,
            "layer_norm_epsilon": self.layer_norm_eps,
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
        }
        model = build_transformer("GPT2Model", settings, defaults, self.options)
        return wrap_transformer(
            model, masking, d_model=self.d_model, positions=self.total_seq_length
        )
