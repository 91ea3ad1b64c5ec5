"""BERT (Devlin et al. 2019)."""

from torch import nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import bert_encoder
from pipeline.model.masking import Masking


class BertConfig(ArchitectureConfig):
    """Attends to both sides, learned positions; under clm a mask hides the future."""

    name = "bert"

    def encoder(self, masking: Masking) -> nn.Module:
        """BertModel."""
        self.check_masking(masking)
        return bert_encoder(self, masking, "BertModel", add_pooling_layer=False)


CONFIG = BertConfig
