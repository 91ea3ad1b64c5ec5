"""What a sequence encoder is: a config that says its shape, and the module built from it.

An encoder is called as `encoder(embeddings, lengths, order)`: (B, L, D), (B,) and None or (B, L)
-> (B, L, d_output). Positions at or beyond a length are padding, which no other position may
depend on. `order` is of permutation language modelling alone: see `PermutationMasking`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import nn

from pipeline.core.errors import ConfigError
from pipeline.model.masking import Masking
from pipeline.recipe.choices import ARCHITECTURES

if TYPE_CHECKING:
    from pipeline.model.head import Task
    from pipeline.model.inputs.features import TabularSequenceFeatures
    from pipeline.model.model import Model


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of a sequence encoder; make one with `build` of a subclass."""

    d_model: int
    """D: width of what goes in."""
    n_head: int = 1
    """Attention heads a layer."""
    n_layer: int = 1
    """Layers."""
    total_seq_length: int | None = None
    """Positions there is room for: L, and one more where the masking appends one."""
    hidden_act: str = "gelu"
    initializer_range: float = 0.01
    """Deviation of initial weights."""
    layer_norm_eps: float = 0.03
    dropout: float = 0.3
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of Hugging Face's config of this architecture."""

    name: ClassVar[str]
    """As in a recipe."""

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
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """D, heads and layers; `total_seq_length` is L. ConfigError for what does not fit."""
        check_shape(d_model=d_model, n_head=n_head, n_layer=n_layer)
        return cls(
            d_model=d_model,
            n_head=n_head,
            n_layer=n_layer,
            total_seq_length=total_seq_length,
            hidden_act=hidden_act,
            initializer_range=initializer_range,
            layer_norm_eps=layer_norm_eps,
            dropout=dropout,
            options=dict(options or {}),
        )

    def encoder(self, masking: Masking) -> nn.Module:
        """Fresh weights, built for this masking. ConfigError if the two don't go together."""
        raise NotImplementedError

    def to_torch_model(
        self,
        input_features: "TabularSequenceFeatures",
        *tasks: "Task",
        task_weights: list[float] | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
    ) -> "Model":
        """Input block, a linear layer to D where the widths differ, encoder, head of all tasks."""
        from pipeline.model.blocks import SequentialBlock, TransformerBlock
        from pipeline.model.head import Head
        from pipeline.model.inputs.features import TabularSequenceFeatures
        from pipeline.model.model import Model

        if not isinstance(input_features, TabularSequenceFeatures):
            raise ConfigError(
                f"to_torch_model got {type(input_features).__name__}, expected the input block, "
                "then tasks."
            )
        blocks: list[nn.Module] = []
        if input_features.output_size != self.d_model:
            blocks.append(nn.Linear(input_features.output_size, self.d_model))
        body = SequentialBlock(
            input_features, *blocks, TransformerBlock(self, masking=input_features.masking)
        )
        head = Head(body, list(tasks), task_weights=task_weights, loss_reduction=loss_reduction)
        return Model(head)

    def positions(self) -> int:
        """`total_seq_length`, which this architecture cannot do without."""
        if self.total_seq_length is None:
            raise ConfigError(f"{self.name} has a number of positions: give total_seq_length.")
        return self.total_seq_length

    def refuse_others(self, masking: Masking) -> None:
        """ConfigError unless the table of names allows the masking with this architecture."""
        if masking.name in ("none", *ARCHITECTURES[self.name]):
            return
        raise ConfigError(why_not(self.name, masking.name))


def check_shape(*, d_model: int, n_layer: int, n_head: int = 1) -> None:
    """ConfigError for numbers that no encoder has."""
    for name, value in (("d_model", d_model), ("n_head", n_head), ("n_layer", n_layer)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}, expected a whole number above 0.")
    if d_model % n_head:
        raise ConfigError(f"n_head {n_head} does not divide d_model {d_model}.")


def why_not(architecture: str, masking: str) -> str:
    """One line on a pair that does not work, with what does."""
    works = ", ".join(ARCHITECTURES[architecture])
    others = ", ".join(name for name, known in ARCHITECTURES.items() if masking in known)
    return f"{architecture} works with {works}, not with {masking}. {masking} works with {others}."
