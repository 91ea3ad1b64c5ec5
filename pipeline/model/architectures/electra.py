"""The encoder of ELECTRA (Clark et al. 2020); its training is the masking rtd."""

import transformers
from torch import nn

from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.huggingface import bert_settings, encoder_around, made, make_config
from pipeline.model.masking import Masking


class ElectraConfig(EncoderConfig):
    """Looks both ways, learned positions; under clm its attention is masked to the past."""

    name = "electra"

    def encoder(self, masking: Masking) -> nn.Module:
        """ElectraModel."""
        self.refuse_others(masking)
        settings = {
            **bert_settings(self),
            "embedding_size": self.d_model,
        }
        config = make_config(transformers.ElectraConfig, settings, self.options)
        model = made("electra", lambda: transformers.ElectraModel(config))
        return encoder_around(model, masking, d_model=self.d_model, positions=self.total_seq_length)


CONFIG = ElectraConfig
