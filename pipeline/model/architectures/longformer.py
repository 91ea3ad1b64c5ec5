"""Longformer (Beltagy et al. 2020)."""

from torch import nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import bert_encoder
from pipeline.model.masking import Masking


class LongformerConfig(ArchitectureConfig):
    """Attends to both sides within a window, the whole session by default.

    `options` may hold another `attention_window`.
    """

    name = "longformer"

    def encoder(self, masking: Masking) -> nn.Module:
        """LongformerModel."""
        self.check_masking(masking)
        positions = self.positions()
        window = int(self.options.get("attention_window", 2 * positions))
        fixed_length = -(-positions // window) * window  # a multiple of the window
        settings = {
            "max_position_embeddings": fixed_length + 1,  # they start behind that of the padding
            "onnx_export": True,  # the other code path depends on the memory layout of a trace
        }
        return bert_encoder(
            self,
            masking,
            "LongformerModel",
            settings,
            {"attention_window": window},
            fixed_length=fixed_length,
            add_pooling_layer=False,
        )


CONFIG = LongformerConfig
