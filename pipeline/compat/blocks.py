"""Blocks with the arguments of Transformers4Rec."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from pipeline import model as blocks
from pipeline.compat.arguments import expect, naming_the_page
from pipeline.compat.construction import Rebuildable
from pipeline.compat.model import Head, Model
from pipeline.model.architectures import find_architecture
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.masking import Masking

MORE_POSITIONS = 1
"""Position beyond `total_seq_length` that mlm, plm and rtd append."""


class SequentialBlock(Rebuildable, blocks.SequentialBlock):
    """Input block, then blocks in sequence.

    A TransformerBlock without a masking gets that of the input block, with fresh weights. The
    argument `output_size` is ignored, as the width is measured.
    """

    def __init__(
        self,
        inputs: Any,
        *others: nn.Module,
        output_size: Any = None,  # noqa: ARG002
    ) -> None:
        masking = getattr(inputs, "masking", None)
        with naming_the_page():
            super().__init__(inputs, *(_with_masking(block, masking) for block in others))

    def to_model(
        self, prediction_task_or_head: Any, inputs: Any = None, **model_arguments: Any
    ) -> Model:
        """Build a model with a task, several tasks or a head on this body."""
        head = prediction_task_or_head
        if not isinstance(head, blocks.Head):
            head = Head(self, head, inputs=inputs)
        return Model(head, **model_arguments)


def _with_masking(block: nn.Module, masking: Masking | None) -> nn.Module:
    """The block; a TransformerBlock without a masking is rebuilt with `masking`."""
    if isinstance(block, TransformerBlock) and masking is not None and block.masking_name == "none":
        return TransformerBlock(block.__dict__["transformer"], masking)
    return block


class TransformerBlock(Rebuildable, blocks.TransformerBlock):
    """A sequence encoder; attention follows the masking."""

    def __init__(
        self,
        transformer: Any,
        masking: Masking | None = None,
        prepare_module: Any = None,
        output_fn: Any = None,
    ) -> None:
        reason = "attention follows the masking, and the last hidden states are returned"
        expect("prepare_module", prepare_module, None, because=reason)
        expect("output_fn", output_fn, None, because=reason)
        if isinstance(transformer, EncoderConfig) and masking is not None:
            sides = "uni" if masking.causal else "bi"
            reason = f"attention follows the masking, which is {sides}, so that no target is seen"
            asked = getattr(transformer, "attn_type", None)
            expect("attn_type", asked, None, sides, because=reason)
        with naming_the_page():
            super().__init__(transformer, masking)
        self.__dict__["transformer"] = transformer  # not a submodule

    @classmethod
    def from_registry(
        cls,
        transformer: str,
        d_model: int,
        n_head: int,
        n_layer: int,
        total_seq_length: int,
        masking: Masking | None = None,
    ) -> Self:
        """Make the encoder of an architecture by its name, such as xlnet."""
        config = find_architecture(transformer)
        positions = total_seq_length + MORE_POSITIONS
        return cls(config.build(d_model, n_head, n_layer, positions), masking)


class MLPBlock(Rebuildable, blocks.MLPBlock):
    """Linear layers, each followed by an activation: (..., input) -> (..., dimensions[-1])."""

    def __init__(
        self,
        dimensions: int | list[int],
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        use_bias: bool = True,
        dropout: float | None = None,
        normalization: str | None = None,
        filter_features: Any = None,
    ) -> None:
        expect(
            "filter_features", filter_features, None, because="the tags of the schema choose them"
        )
        with naming_the_page():
            super().__init__(dimensions, activation, use_bias, dropout, normalization)


class ParallelBlock(Rebuildable, blocks.ParallelBlock):
    """Parallel towers."""


class Block(Rebuildable, nn.Module):
    """A torch module as a block; `output_size` is ignored, as the width is measured.

    If the module returns a tuple, as recurrent modules do, the first element is the output.
    """

    def __init__(self, module: nn.Module, output_size: Any = None) -> None:  # noqa: ARG002
        super().__init__()
        self.module = module

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, output)."""
        output: Any = self.module(hidden)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result
