"""Sequence encoders from Hugging Face transformers, fed with `inputs_embeds`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import transformers
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.model.batch import visible_positions
from pipeline.model.masking import Masking

if TYPE_CHECKING:
    from pipeline.model.features import TabularSequenceFeatures
    from pipeline.model.model import Model
    from pipeline.model.task import NextItemPredictionTask

transformers.logging.set_verbosity_error()  # it advises on tokens, which sessions do not have


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a sequence encoder; use `build` of a subclass."""

    d_model: int
    n_head: int
    n_layer: int
    total_seq_length: int | None
    hidden_act: str
    initializer_range: float
    layer_norm_eps: float
    dropout: float

    @classmethod
    def build(
        cls,
        d_model: int,
        n_head: int,
        n_layer: int,
        total_seq_length: int | None = None,
        *,
        hidden_act: str = "gelu",
        initializer_range: float = 0.01,
        layer_norm_eps: float = 0.03,
        dropout: float = 0.3,
    ) -> Self:
        """D, heads and layers; `total_seq_length` is L. ConfigError for what does not fit."""
        if d_model % n_head:
            raise ConfigError(f"n_head {n_head} does not divide d_model {d_model}.")
        return cls(
            d_model=d_model,
            n_head=n_head,
            n_layer=n_layer,
            total_seq_length=total_seq_length,
            hidden_act=hidden_act,
            initializer_range=initializer_range,
            layer_norm_eps=layer_norm_eps,
            dropout=dropout,
        )

    def to_huggingface_torch_model(self, masking: Masking) -> nn.Module:
        """The encoder, built for this masking. ConfigError if the two don't go together."""
        raise NotImplementedError

    def to_torch_model(
        self, input_features: "TabularSequenceFeatures", task: "NextItemPredictionTask"
    ) -> "Model":
        """Input block, a linear layer to D where the widths differ, encoder, head."""
        from pipeline.model.blocks import SequentialBlock
        from pipeline.model.model import Head, Model

        blocks: list[nn.Module] = []
        if input_features.output_size != self.d_model:
            blocks.append(nn.Linear(input_features.output_size, self.d_model))
        body = SequentialBlock(
            input_features, *blocks, TransformerBlock(self, masking=input_features.masking)
        )
        return Model(Head(body, task))


class GPT2Config(TransformerConfig):
    """GPT-2 (Radford et al. 2019): looks back alone, learned positions."""

    def to_huggingface_torch_model(self, masking: Masking) -> nn.Module:
        """GPT2Model; clm only."""
        if not masking.causal:
            raise ConfigError("GPT-2 looks back alone and needs clm. XLNet works with clm and mlm.")
        if self.total_seq_length is None:
            raise ConfigError("GPT-2 has learned positions: give total_seq_length.")
        config = transformers.GPT2Config(
            vocab_size=1,
            n_embd=self.d_model,
            n_inner=4 * self.d_model,
            n_head=self.n_head,
            n_layer=self.n_layer,
            n_positions=self.total_seq_length,
            activation_function=self.hidden_act,
            initializer_range=self.initializer_range,
            layer_norm_epsilon=self.layer_norm_eps,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        return _without_token_table(transformers.GPT2Model(config), "wte")


class XLNetConfig(TransformerConfig):
    """XLNet (Yang et al. 2019): relative positions; looks both ways, or back alone under clm."""

    def to_huggingface_torch_model(self, masking: Masking) -> nn.Module:
        """XLNetModel whose attention is causal exactly if the masking asks for it."""
        config = transformers.XLNetConfig(
            vocab_size=1,
            d_model=self.d_model,
            d_inner=4 * self.d_model,
            n_head=self.n_head,
            n_layer=self.n_layer,
            ff_activation=self.hidden_act,
            attn_type="uni" if masking.causal else "bi",
            initializer_range=self.initializer_range,
            layer_norm_eps=self.layer_norm_eps,
            dropout=self.dropout,
            mem_len=None,
            use_mems_eval=False,
            use_mems_train=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = _without_token_table(transformers.XLNetModel(config), "word_embedding")
        for name, parameter in model.named_parameters():
            # of pretraining with target queries and of segments, which sessions do not have
            if name.endswith(("mask_emb", "r_s_bias", "seg_embed")):
                parameter.requires_grad_(False)
        return model


class TransformerBlock(nn.Module):
    """A Hugging Face encoder over interaction embeddings."""

    def __init__(self, config: TransformerConfig, masking: Masking | None) -> None:
        super().__init__()
        if masking is None:
            raise ConfigError("TransformerBlock needs the masking of its input block.")
        self.d_model = config.d_model
        self.total_seq_length = config.total_seq_length
        self.causal = masking.causal
        self.transformer = config.to_huggingface_torch_model(masking)

    def check(self, masking: Masking, width: int, max_sequence_length: int | None) -> None:
        """ConfigError if what comes in does not fit."""
        if masking.causal != self.causal:
            raise ConfigError(
                "The masking of the input block is not the one that TransformerBlock was built for."
            )
        if width != self.d_model:
            raise ConfigError(
                f"The block before the transformer gives {width} numbers an interaction, d_model "
                f"is {self.d_model}. Put MLPBlock([{self.d_model}]) between, or set d_output."
            )
        room = self.total_seq_length
        needed = None if max_sequence_length is None else max_sequence_length
        if room is not None and needed is not None and room < needed:
            raise ConfigError(f"total_seq_length {room} is less than max_sequence_length {needed}.")

    def forward(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, D), (B,) -> (B, L, D); positions at or beyond a length are not looked at."""
        if self.causal:
            # padding is on the right, where no position looks
            output = self.transformer(inputs_embeds=embeddings)
        else:
            visible = visible_positions(lengths, embeddings.size(1))
            output = self.transformer(
                inputs_embeds=embeddings, attention_mask=visible.to(embeddings.dtype)
            )
        return output.last_hidden_state


def _without_token_table(model: Any, name: str) -> nn.Module:
    """Items come as vectors: the encoder's own token table would be a parameter without use."""
    setattr(model, name, None)
    return model


BUILDERS: dict[str, Callable[..., TransformerConfig]] = {
    "gpt2": GPT2Config.build,
    "xlnet": XLNetConfig.build,
}
