"""BERT (Devlin et al. 2019)."""

import transformers
from torch import nn

from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.huggingface import bert_settings, encoder_around, made, make_config
from pipeline.model.masking import Masking


class BertConfig(EncoderConfig):
    """Looks both ways, learned positions; under clm its attention is masked to the past."""

    name = "bert"

    def encoder(self, masking: Masking) -> nn.Module:
        """BertModel."""
        self.refuse_others(masking)
        settings = bert_settings(self)
        config = make_config(transformers.BertConfig, settings, self.options)
        model = made("bert", lambda: transformers.BertModel(config, add_pooling_layer=False))
        return encoder_around(model, masking, d_model=self.d_model, positions=self.total_seq_length)


CONFIG = BertConfig
