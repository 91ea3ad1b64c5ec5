"""RoBERTa (Liu et al. 2019)."""

import transformers
from torch import nn

from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.huggingface import bert_settings, encoder_around, made, make_config
from pipeline.model.masking import Masking


class RobertaConfig(EncoderConfig):
    """Looks both ways, learned positions; under clm its attention is masked to the past."""

    name = "roberta"

    def encoder(self, masking: Masking) -> nn.Module:
        """RobertaModel."""
        self.refuse_others(masking)
        settings = {
            **bert_settings(self),
            "max_position_embeddings": self.positions() + 1,  # they begin behind the padding's
        }
        config = make_config(transformers.RobertaConfig, settings, self.options)
        model = made("roberta", lambda: transformers.RobertaModel(config, add_pooling_layer=False))
        return encoder_around(model, masking, d_model=self.d_model, positions=self.total_seq_length)


CONFIG = RobertaConfig
