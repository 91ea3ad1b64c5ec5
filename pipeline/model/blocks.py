"""Blocks in a row."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.model.batch import SessionBatch
from pipeline.model.features import TabularSequenceFeatures
from pipeline.model.masking import Stage
from pipeline.model.transformer import TransformerBlock


class MLPBlock(nn.Sequential):
    """Linear layers with ReLU between and after them: (..., input) -> (..., dimensions[-1]).

    Its input width is that of the block before it, known when it is put behind one.
    """

    def __init__(self, dimensions: list[int]) -> None:
        super().__init__()
        if not dimensions:
            raise ConfigError("MLPBlock needs at least one dimension, as in MLPBlock([64]).")
        self.dimensions = list(dimensions)

    def build(self, width: int) -> None:
        """Make the layers for an input of this width."""
        for dimension in self.dimensions:
            self.append(nn.Linear(width, dimension)).append(nn.ReLU())
            width = dimension


class Encoded(NamedTuple):
    """Hidden states with what they are to predict."""

    hidden: Tensor
    """(B, L, D)"""
    targets: Tensor
    """(B, L) item indices, PADDING where there is nothing to predict."""
    query: Tensor
    """(B,) position whose hidden state predicts the next item."""


class SequentialBlock(nn.Module):
    """Input block, then blocks that each take the output of the one before."""

    def __init__(self, inputs: TabularSequenceFeatures, *blocks: nn.Module) -> None:
        super().__init__()
        if not isinstance(inputs, TabularSequenceFeatures):
            raise ConfigError(
                f"SequentialBlock begins with {type(inputs).__name__}, expected the input block, "
                "TabularSequenceFeatures."
            )
        if inputs.masking is None:
            raise ConfigError(
                "The input block has no masking. Pass masking='clm' or 'mlm' to from_schema."
            )
        width = inputs.output_size
        for block in blocks:
            if isinstance(block, MLPBlock):
                block.build(width)
                width = block.dimensions[-1]
            elif isinstance(block, TransformerBlock):
                block.check(inputs.masking, width, inputs.max_sequence_length)
                width = block.d_model
            else:
                width = _output_size(block, width)
        self.inputs = inputs
        self.blocks = nn.ModuleList(blocks)
        self.output_size = width
        """D of the hidden states."""

    def forward(self, batch: SessionBatch, stage: Stage) -> Encoded:
        """SessionBatch -> Encoded."""
        masking = self.inputs.masking
        assert masking is not None  # noqa: S101
        items = batch.features[self.inputs.item]
        masked = masking.apply_to(self.inputs(batch), items, batch.lengths, stage)
        hidden = masked.embeddings
        for block in self.blocks:
            if isinstance(block, TransformerBlock):
                hidden = block(hidden, masked.lengths)
            else:
                hidden = block(hidden)
        return Encoded(hidden, masked.targets, masked.query)


@torch.no_grad()
def _output_size(block: nn.Module, width: int) -> int:
    """Width that any module of (B, L, width) gives. ConfigError if it does not take that."""
    training = block.training
    try:
        output = block.eval()(torch.zeros(1, 2, width))
    except (RuntimeError, TypeError, ValueError) as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{type(block).__name__} does not take (B, L, {width}), what comes before it: {line}"
        ) from None
    finally:
        block.train(training)
    if not isinstance(output, Tensor) or output.shape[:2] != (1, 2):
        raise ConfigError(f"{type(block).__name__} does not give one vector an interaction.")
    return int(output.size(-1))
