"""The encoder of ELECTRA (Clark et al. 2020); its training is the masking rtd."""

import transformers
from torch import nn

from pipeline.model.encoder import EncoderConfig
from pipeline.model.huggingface import encoder_around, made, make_config
from pipeline.model.masking import Masking


class ElectraConfig(EncoderConfig):
    """Looks both ways, learned positions; under clm its attention is masked to the past."""

    name = "electra"

    def encoder(self, masking: Masking) -> nn.Module:
        """ElectraModel."""
        self.refuse_others(masking)
        settings = {
            "vocab_size": 1,
            "embedding_size": self.d_model,
            "hidden_size": self.d_model,
            "intermediate_size": 4 * self.d_model,
            "num_attention_heads": self.n_head,
            "num_hidden_layers": self.n_layer,
            "max_position_embeddings": self.positions(),
            "hidden_act": self.hidden_act,
            "initializer_range": self.initializer_range,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
            "pad_token_id": 0,
        }
        config = make_config(transformers.ElectraConfig, settings, self.options)
        model = made("electra", lambda: transformers.ElectraModel(config))
        return encoder_around(model, masking, d_model=self.d_model, positions=self.total_seq_length)


CONFIG = ElectraConfig
