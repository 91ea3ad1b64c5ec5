"""Longformer (Beltagy et al. 2020)."""

import transformers
from torch import nn

from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.huggingface import bert_settings, encoder_around, made, make_config
from pipeline.model.masking import Masking


class LongformerConfig(EncoderConfig):
    """Looks both ways within a window, the whole session unless `attention_window` is given."""

    name = "longformer"

    def encoder(self, masking: Masking) -> nn.Module:
        """LongformerModel."""
        self.refuse_others(masking)
        positions = self.positions()
        window = int(self.options.get("attention_window", 2 * positions))
        room = -(-positions // window) * window  # it wants a multiple of the window
        settings = {
            **bert_settings(self),
            "max_position_embeddings": room + 1,  # they begin behind the padding's
            "attention_window": window,
            "onnx_export": True,  # its other program holds on to the memory layout of a trace
        }
        config = make_config(transformers.LongformerConfig, settings, self.options)
        model = made(
            "longformer", lambda: transformers.LongformerModel(config, add_pooling_layer=False)
        )
        return encoder_around(model, masking, d_model=self.d_model, room=room)


CONFIG = LongformerConfig
