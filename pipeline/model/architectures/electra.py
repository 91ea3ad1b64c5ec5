"""The encoder of ELECTRA (Clark et al. 2020); its objective is the masking rtd."""

from torch import nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import bert_encoder
from pipeline.model.masking import Masking


class ElectraConfig(ArchitectureConfig):
    """Attends to both sides, learned positions; under clm a mask hides the future."""

    name = "electra"

    def encoder(self, masking: Masking) -> nn.Module:
        """ElectraModel."""
        self.check_masking(masking)
        return bert_encoder(self, masking, "ElectraModel", {"embedding_size": self.d_model})


CONFIG = ElectraConfig
