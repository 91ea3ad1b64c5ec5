"""BERT and encoders whose Hugging Face config has the same argument names."""

from typing import Any, ClassVar

from torch import nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.encoders.huggingface import build_transformer, wrap_transformer
from pipeline.model.masking import Masking


class BertFamilyConfig(ArchitectureConfig):
    """Bidirectional attention, learned positions; causal attention mask under clm."""

    model: ClassVar[str]
    """Name of the class in transformers."""
    arguments: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}
    """Constructor arguments other than the config."""

    def encoder(self, masking: Masking) -> nn.Module:
        """HuggingFaceEncoder around the `model`."""
        transformer = build_transformer(
            self.model, self.settings(), self.defaults(), self.options, **self.arguments
        )
        return wrap_transformer(
            transformer,
            masking,
            d_model=self.d_model,
            positions=self.total_seq_length,
            fixed_length=self.fixed_length(),
        )

    def settings(self) -> dict[str, Any]:
        """Arguments of the config that follow from the shape."""
        return {
            "vocab_size": 1,
            "hidden_size": self.d_model,
            "num_attention_heads": self.n_head,
            "num_hidden_layers": self.n_layer,
            "max_position_embeddings": self.positions(),
            "pad_token_id": 0,
        }

    def defaults(self) -> dict[str, Any]:
        """Arguments of the config that `options` may change."""
        return {
            "intermediate_size": 4 * self.d_model,
            "hidden_act": self.hidden_act,
            "initializer_range": self.initializer_range,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
        }

    def fixed_length(self) -> int | None:
        """Number of positions that every row is padded to, None for no padding."""
        return None


class BertConfig(BertFamilyConfig):
    """BERT (Devlin et al. 2019)."""

    name = "bert"
    model = "BertModel"


class AlbertConfig(BertFamilyConfig):
    """ALBERT (Lan et al. 2020): layers share their weights."""

    name = "albert"
    model = "AlbertModel"

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"embedding_size": self.d_model}


class ElectraConfig(BertFamilyConfig):
    """The encoder of ELECTRA (Clark et al. 2020); its objective is the masking rtd."""

    name = "electra"
    model = "ElectraModel"
    arguments: ClassVar[dict[str, Any]] = {}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"embedding_size": self.d_model}


class RobertaConfig(BertFamilyConfig):
    """RoBERTa (Liu et al. 2019)."""

    name = "roberta"
    model = "RobertaModel"

    def settings(self) -> dict[str, Any]:
        # position ids start after the padding id
        return super().settings() | {"max_position_embeddings": self.positions() + 1}


class LongformerConfig(BertFamilyConfig):
    """Longformer (Beltagy et al. 2020): attention within a window, by default the whole session.

    `options` may set another `attention_window`.
    """

    name = "longformer"
    model = "LongformerModel"

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "max_position_embeddings": self.fixed_length() + 1,  # they start after the padding id
            "onnx_export": True,  # the other code path depends on the memory layout of a trace
        }

    def defaults(self) -> dict[str, Any]:
        return super().defaults() | {"attention_window": 2 * self.positions()}

    def fixed_length(self) -> int:
        """Smallest multiple of the window that holds all positions."""
        window = int(self.options.get("attention_window", 2 * self.positions()))
        return -(-self.positions() // window) * window
