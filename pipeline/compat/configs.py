"""Configs of architectures with the arguments of Transformers4Rec."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from torch import nn

from pipeline import model as blocks
from pipeline.compat.arguments import expect
from pipeline.compat.blocks import MORE_POSITIONS, SequentialBlock, TransformerBlock
from pipeline.compat.model import Head, Model
from pipeline.model.architectures.config import ArchitectureConfig

_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "pad_token": ((0,), "padding is index 0"),
    "log_attention_weights": ((False,), "`model.attention_weights(batch)` returns them"),
    "mem_len": ((None, 0, 1), "nothing is carried from a batch to the next"),
    "axial_pos_shape_first_dim": ((None,), "a session is one chunk"),
}
"""Arguments without effect: their accepted values, and the reason to refuse others."""


class T4RecConfig(ArchitectureConfig):
    """Config of an architecture; `build` has the arguments of Transformers4Rec."""

    attn_type: ClassVar[str | None] = None
    """Requested attention of XLNet, uni or bi; it must agree with the masking."""

    @classmethod
    def build(
        cls,
        d_model: int,
        n_head: int = 1,
        n_layer: int = 1,
        total_seq_length: int | None = None,
        options: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> Self:
        """Make a config; `total_seq_length` is `max_sequence_length`, for every masking.

        `others` are fields of the config and arguments of Hugging Face's config.
        """
        for name in _FIXED.keys() & others.keys():
            allowed, reason = _FIXED[name]
            expect(name, others.pop(name), *allowed, because=reason)
        fields = {name: others.pop(name) for name in _names(cls) & others.keys()}
        positions = None if total_seq_length is None else total_seq_length + MORE_POSITIONS
        attn_type = others.pop("attn_type", None)
        config = cls(
            d_model, n_head, n_layer, positions, options={**(options or {}), **others}, **fields
        )
        config.__dict__["attn_type"] = attn_type  # not a field: only checked against the masking
        return config

    def to_torch_model(
        self,
        input_features: blocks.TabularSequenceFeatures,
        *tasks: Any,
        task_blocks: nn.Module | dict[str, nn.Module] | None = None,
        task_weights: list[float] | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        **model_arguments: Any,
    ) -> Model:
        """Build a model: input block, linear layer to D if the widths differ, encoder, tasks."""
        parts: list[nn.Module] = []
        if input_features.output_size != self.d_model:
            parts.append(nn.Linear(input_features.output_size, self.d_model))
        encoder = TransformerBlock(self, masking=input_features.masking)
        body = SequentialBlock(input_features, *parts, encoder)
        head = Head(body, list(tasks), task_blocks, task_weights, loss_reduction)
        return Model(head, **model_arguments)


def _names(config: type[ArchitectureConfig]) -> set[str]:
    return set(config.__dataclass_fields__) - {"options"}


class AlbertConfig(T4RecConfig, blocks.AlbertConfig):
    """ALBERT (Lan et al. 2020)."""


class BertConfig(T4RecConfig, blocks.BertConfig):
    """BERT (Devlin et al. 2019)."""


class ElectraConfig(T4RecConfig, blocks.ElectraConfig):
    """The encoder of ELECTRA (Clark et al. 2020)."""


class GPT2Config(T4RecConfig, blocks.GPT2Config):
    """GPT-2 (Radford et al. 2019)."""


class LongformerConfig(T4RecConfig, blocks.LongformerConfig):
    """Longformer (Beltagy et al. 2020)."""


class ReformerConfig(T4RecConfig, blocks.ReformerConfig):
    """Reformer (Kitaev et al. 2020)."""


class RobertaConfig(T4RecConfig, blocks.RobertaConfig):
    """RoBERTa (Liu et al. 2019)."""


class XLNetConfig(T4RecConfig, blocks.XLNetConfig):
    """XLNet (Yang et al. 2019)."""


class GRUConfig(blocks.GRUConfig, T4RecConfig):  # type: ignore[misc]
    """GRU."""


class LSTMConfig(blocks.LSTMConfig, T4RecConfig):  # type: ignore[misc]
    """LSTM."""


class SASRecConfig(T4RecConfig, blocks.SASRecConfig):
    """SASRec (Kang and McAuley 2018)."""


class HSTUConfig(T4RecConfig, blocks.HSTUConfig):
    """HSTU (Zhai et al. 2024)."""


class LiGRConfig(T4RecConfig, blocks.LiGRConfig):
    """LiGR (Borisyuk et al. 2025)."""


class CoreConfig(T4RecConfig, blocks.CoreConfig):
    """CORE (Hou et al. 2022)."""


class HuggingFaceConfig(T4RecConfig, blocks.HuggingFaceConfig):
    """Any other Hugging Face architecture, by its `model_type`."""

    @classmethod
    def build(cls, model_type: str = "", *sizes: Any, **others: Any) -> Self:  # type: ignore[override]
        """Make a config from `model_type`, then the arguments of every architecture."""
        return super().build(*sizes, model_type=model_type, **others)


transformer_registry = {
    config.name: config
    for config in (
        AlbertConfig,
        BertConfig,
        ElectraConfig,
        GPT2Config,
        LongformerConfig,
        ReformerConfig,
        RobertaConfig,
        XLNetConfig,
    )
}
"""Config of each architecture by its name."""
