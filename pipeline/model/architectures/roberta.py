"""RoBERTa (Liu et al. 2019)."""

from torch import nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import bert_encoder
from pipeline.model.masking import Masking


class RobertaConfig(ArchitectureConfig):
    """Attends to both sides, learned positions; under clm a mask hides the future."""

    name = "roberta"

    def encoder(self, masking: Masking) -> nn.Module:
        """RobertaModel."""
        self.check_masking(masking)
        # positions start behind that of the padding
        positions = {"max_position_embeddings": self.positions() + 1}
        return bert_encoder(self, masking, "RobertaModel", positions, add_pooling_layer=False)


CONFIG = RobertaConfig
