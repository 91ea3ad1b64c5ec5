"""Blocks in a row and side by side."""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.encoders.huggingface import HuggingFaceEncoder, encoder_of
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.leakage import check_body
from pipeline.model.leakage_reference import plain_output_size
from pipeline.model.masking import MaskedSequence, Masking, NoMasking, ReplacementMasking, Stage
from pipeline.model.mlp import MLPBlock
from pipeline.model.ops.dropout import with_fast_dropout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class TransformerBlock(nn.Module):
    """A sequence encoder: a config of ours, or a config or model of Hugging Face's."""

    def __init__(
        self,
        transformer: "EncoderConfig | PretrainedConfig | PreTrainedModel",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        if masking is not None and (isinstance(masking, type) or not isinstance(masking, Masking)):
            raise ConfigError(f"masking is {masking!r}, expected inputs.masking.")
        self.masking_name = "none" if masking is None else masking.name
        chosen = masking or NoMasking()
        self.total_seq_length: int | None
        if isinstance(transformer, EncoderConfig):
            self.d_model = transformer.d_model
            self.total_seq_length = transformer.total_seq_length
            self.encoder = transformer.encoder(chosen)
        else:
            # here, since it takes two seconds, which the project's own encoders do without
            from transformers import PretrainedConfig, PreTrainedModel

            if not isinstance(transformer, PretrainedConfig | PreTrainedModel):
                raise ConfigError(
                    f"TransformerBlock got {type(transformer).__name__}, expected a config such as "
                    "GPT2Config.build(...), or one of Hugging Face's."
                )
            self.encoder, self.d_model, self.total_seq_length = encoder_of(transformer, chosen)
        with_fast_dropout(self.encoder)
        self.output_size = int(self.encoder.d_output)  # type: ignore[arg-type]
        """Width of the hidden states."""

    def check(self, masking: Masking, width: int, max_sequence_length: int | None) -> None:
        """ConfigError if what comes in does not fit."""
        if masking.name != self.masking_name:
            raise ConfigError(
                f"TransformerBlock was built for masking {self.masking_name}, the input block has "
                f"{masking.name}. Pass masking=inputs.masking."
            )
        if width != self.d_model:
            raise ConfigError(
                f"The block before the transformer gives {width} numbers an interaction, d_model "
                f"is {self.d_model}. Put MLPBlock([{self.d_model}]) between, or set d_output."
            )
        room = self.total_seq_length
        if room is not None and max_sequence_length is not None:
            needed = max_sequence_length + masking.extra_positions
            if room < needed:
                more = " and one for what is predicted" if masking.extra_positions else ""
                raise ConfigError(
                    f"total_seq_length {room} is too small: max_sequence_length is "
                    f"{max_sequence_length}{more}. Set it to {needed}."
                )

    def forward(
        self, embeddings: Tensor, sequence: MaskedSequence, *, targets_only: bool = False
    ) -> Tensor:
        """(B, L, D) -> (B, L, output_size); `sequence` says what may be seen.

        With `targets_only`, what stands at positions without a target may be anything.
        """
        room = self.total_seq_length
        if room is not None and embeddings.size(1) > room:
            raise ConfigError(
                f"A session takes {int(embeddings.size(1))} positions, total_seq_length is {room}. "
                "Give max_sequence_length to the input block, so that the newest are read."
            )
        if embeddings.size(0) == 0:  # which several architectures cannot reshape
            empty = embeddings.new_zeros(0, embeddings.size(1), self.output_size)
            return empty + embeddings.sum() * 0
        given: list[Tensor | None] = [embeddings, sequence.lengths, sequence.order]
        if targets_only and isinstance(self.encoder, HuggingFaceEncoder):
            given.append(sequence.targets >= FIRST_ITEM)
        hidden: Tensor = self.encoder(*given)
        return hidden

    def attentions(self, embeddings: Tensor, sequence: MaskedSequence) -> tuple[Tensor, ...]:
        """(B, H, L, L) of each layer."""
        found: tuple[Tensor, ...] = self.encoder.attentions(  # type: ignore[operator]
            embeddings, sequence.lengths, sequence.order
        )
        return found


class ParallelBlock(nn.Module):
    """Towers side by side: each gets the same input, their outputs become one vector.

    A tower is a block or a list of blocks.
    """

    def __init__(
        self,
        *towers: nn.Module | list[nn.Module],
        aggregation: Literal["concat", "element-wise-sum"] = "concat",
    ) -> None:
        super().__init__()
        if not towers:
            raise ConfigError("ParallelBlock needs at least one tower.")
        if aggregation not in ("concat", "element-wise-sum"):
            raise ConfigError(
                f"aggregation is {aggregation!r}, expected concat or element-wise-sum."
            )
        self.towers = nn.ModuleList(
            nn.ModuleList(tower if isinstance(tower, list) else [tower]) for tower in towers
        )
        self.aggregation = aggregation

    def forward(self, hidden: Tensor, sequence: MaskedSequence) -> Tensor:
        """(B, L, D) -> (B, L, sum of the towers' widths), or their common width."""
        outputs = [run_blocks(tower, hidden, sequence) for tower in self.towers]  # type: ignore[arg-type]
        if self.aggregation == "concat":
            return torch.cat(outputs, -1)
        return torch.stack(outputs).sum(0)

    def connect(self, masking: Masking, width: int, longest: int | None) -> int:
        """Build what is inside for an input of this width, and give the width of the output."""
        widths = [connect_blocks(t, masking, width, longest) for t in self.towers]  # type: ignore[arg-type]
        if self.aggregation == "concat":
            return sum(widths)
        if len(set(widths)) > 1:
            raise ConfigError(
                f"element-wise-sum adds towers of one width, found {sorted(set(widths))}. Put an "
                "MLPBlock at the end of a tower, or use concat."
            )
        return widths[0]


class Encoded(NamedTuple):
    """Hidden states with what they are to predict."""

    hidden: Tensor
    """(B, L, D)"""
    targets: Tensor
    """(B, L) item indices, PADDING where there is nothing to predict."""
    query: Tensor
    """(B,) position whose hidden state predicts the next item."""
    lengths: Tensor
    """(B,) positions that are no padding."""
    order: Tensor | None = None
    """(B, L), of plm: see MaskedSequence."""


class SequentialBlock(nn.Module):
    """Input block, then blocks that each take the output of the one before.

    Any nn.Module of (B, L, D) may stand among them that keeps sessions apart and does not look
    ahead; of a tuple, as recurrent modules give, the first part is taken.
    """

    def __init__(self, inputs: TabularSequenceFeatures, *blocks: nn.Module) -> None:
        super().__init__()
        if not isinstance(inputs, TabularSequenceFeatures):
            raise ConfigError(
                f"SequentialBlock begins with {type(inputs).__name__}, expected the input block, "
                "TabularSequenceFeatures."
            )
        for block in blocks:
            if not isinstance(block, nn.Module):
                raise ConfigError(
                    f"SequentialBlock got {block!r} as a block, expected a module, such as "
                    "TransformerBlock(config, masking=inputs.masking)."
                )
        self.inputs = inputs
        self.blocks = nn.ModuleList(blocks)
        masking = self.masking
        self.output_size = connect_blocks(
            blocks, masking, inputs.output_size, inputs.max_sequence_length
        )
        """D of the hidden states."""
        self.generator: nn.ModuleList | None = None
        if isinstance(masking, ReplacementMasking):
            if not any(isinstance(module, TransformerBlock) for module in self.modules()):
                raise ConfigError("rtd needs a TransformerBlock: it reads from both sides.")
            masking.build(self.output_size)
            if not masking.tied_generator:
                self.generator = copy.deepcopy(self.blocks)
        check_body(self)

    @property
    def masking(self) -> Masking:
        """That of the input block; a block without one has nothing to predict from within."""
        return self.inputs.masking or NoMasking()

    def forward(self, batch: SessionBatch, stage: Stage) -> Encoded:
        """SessionBatch -> Encoded."""
        masked = self.masked(batch, stage)
        return self.through(masked)

    def masked(
        self, batch: SessionBatch, stage: Stage, item_table: Tensor | None = None
    ) -> MaskedSequence:
        """SessionBatch -> what the first block gets. `item_table`: see TabularSequenceFeatures."""
        embeddings = self.inputs(batch, item_table)
        items = batch.features[self.inputs.item]
        return self.masking.apply_to(embeddings, items, batch.lengths, stage)

    def unmasked(self, batch: SessionBatch) -> MaskedSequence:
        """The same with nothing hidden and nothing to predict, for rtd's discriminator."""
        embeddings = self.inputs(batch)
        items = batch.features[self.inputs.item]
        return NoMasking().apply_to(embeddings, items, batch.lengths, Stage.TRAIN)

    def through(
        self, masked: MaskedSequence, *, generator: bool = False, targets_only: bool = False
    ) -> Encoded:
        """Hidden states of the last block, or of the generator's.

        With `targets_only`, what stands at positions without a target may be anything.
        """
        blocks = self.generator if generator and self.generator is not None else self.blocks
        rest = [*blocks]
        last = rest.pop() if targets_only and rest else None
        if last is not None and not isinstance(last, TransformerBlock):
            rest.append(last)
            last = None
        hidden = run_blocks(rest, masked.embeddings, masked)
        if last is not None:
            hidden = last(hidden, masked, targets_only=True)
        return Encoded(hidden, masked.targets, masked.query, masked.lengths, masked.order)

    def attentions(self, batch: SessionBatch) -> list[Tensor]:
        """(B, H, L, L) of every layer in the row of blocks, of prediction."""
        masked = self.masked(batch, Stage.PREDICT)
        hidden = masked.embeddings
        found: list[Tensor] = []
        for block in self.blocks:
            if isinstance(block, TransformerBlock):
                found += block.attentions(hidden, masked)
            hidden = run_blocks([block], hidden, masked)
        if not found:
            raise ConfigError("The body has no TransformerBlock in its row of blocks.")
        return found


def run_blocks(blocks: Iterable[nn.Module], hidden: Tensor, sequence: MaskedSequence) -> Tensor:
    """(B, L, D) through each block."""
    for block in blocks:
        if isinstance(block, TransformerBlock | ParallelBlock):
            hidden = block(hidden, sequence)
        else:
            output = block(hidden)
            hidden = output[0] if isinstance(output, tuple) else output
    return hidden


def connect_blocks(
    blocks: Iterable[nn.Module], masking: Masking, width: int, longest: int | None
) -> int:
    """Build and check a row of blocks for an input of `width`; give the width of the output."""
    for block in blocks:
        if isinstance(block, MLPBlock):
            block.build(width)
            width = block.dimensions[-1]
        elif isinstance(block, TransformerBlock):
            block.check(masking, width, longest)
            width = block.output_size
        elif isinstance(block, ParallelBlock):
            width = block.connect(masking, width, longest)
        else:
            width = plain_output_size(block, width)
    return width
