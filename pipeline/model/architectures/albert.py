"""ALBERT (Lan et al. 2020): layers share their weights."""

import transformers
from torch import nn

from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.huggingface import bert_settings, encoder_around, made, make_config
from pipeline.model.masking import Masking


class AlbertConfig(EncoderConfig):
    """Looks both ways, learned positions; under clm its attention is masked to the past."""

    name = "albert"

    def encoder(self, masking: Masking) -> nn.Module:
        """AlbertModel."""
        self.refuse_others(masking)
        settings = {
            **bert_settings(self),
            "embedding_size": self.d_model,
        }
        config = make_config(transformers.AlbertConfig, settings, self.options)
        model = made("albert", lambda: transformers.AlbertModel(config, add_pooling_layer=False))
        return encoder_around(model, masking, d_model=self.d_model, positions=self.total_seq_length)


CONFIG = AlbertConfig
