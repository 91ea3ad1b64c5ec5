"""ALBERT (Lan et al. 2020): layers share their weights."""

from torch import nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import bert_encoder
from pipeline.model.masking import Masking


class AlbertConfig(ArchitectureConfig):
    """Attends to both sides, learned positions; under clm a mask hides the future."""

    name = "albert"

    def encoder(self, masking: Masking) -> nn.Module:
        """AlbertModel."""
        self.check_masking(masking)
        width = {"embedding_size": self.d_model}
        return bert_encoder(self, masking, "AlbertModel", width, add_pooling_layer=False)


CONFIG = AlbertConfig
