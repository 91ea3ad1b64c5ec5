"""Blocks of a sequence model: sequential and parallel.

Shape letters: B sessions, L positions, D width.
"""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pipeline.core.columns import ELAPSED, FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch, newest
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.leakage import block_output_size, check_leakage
from pipeline.model.masking import Encoded, MaskedSequence, Masking, NoMasking, Stage
from pipeline.model.mlp import MLPBlock
from pipeline.model.ops.dropout import with_fast_dropout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class TransformerBlock(nn.Module):
    """A sequence encoder.

    `transformer` is an EncoderConfig, or a config or model of Hugging Face; `masking` is that of
    the input block.
    """

    def __init__(
        self,
        transformer: "EncoderConfig | PretrainedConfig | PreTrainedModel",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        if masking is not None and not isinstance(masking, Masking):
            raise ConfigError(f"masking is {masking!r}, expected inputs.masking.")
        chosen = masking or NoMasking()
        self.masking_name = chosen.name
        self.encoder: nn.Module
        self.total_seq_length: int | None
        """Number of positions, None without a limit."""
        if isinstance(transformer, EncoderConfig):
            self.d_model = transformer.d_model
            self.total_seq_length = transformer.total_seq_length
            transformer.check_masking(chosen)
            self.encoder = transformer.encoder(chosen)
        else:
            # imports transformers, which is slow
            from pipeline.model.encoders.huggingface import wrap_config_or_model

            self.encoder, self.d_model, self.total_seq_length = wrap_config_or_model(
                transformer, chosen
            )
        with_fast_dropout(self.encoder)
        self.output_size = int(self.encoder.d_output)  # type: ignore[arg-type]
        """Width of the hidden states."""
        self.reads_elapsed = bool(getattr(self.encoder, "reads_elapsed", False))
        """Whether the encoder reads the feature `elapsed` in addition to the embeddings."""

    def check(self, masking: Masking, width: int, max_sequence_length: int | None) -> None:
        """ConfigError if masking, input width or length do not fit the encoder."""
        if masking.name != self.masking_name:
            raise ConfigError(
                f"TransformerBlock was built for masking {self.masking_name}, the input block has "
                f"{masking.name}. Pass masking=inputs.masking."
            )
        if width != self.d_model:
            raise ConfigError(
                f"The block before the transformer returns vectors of width {width}, d_model "
                f"is {self.d_model}. Put MLPBlock([{self.d_model}]) between, or set d_output."
            )
        positions = self.total_seq_length
        if positions is not None and max_sequence_length is not None:
            needed = max_sequence_length + masking.extra_positions
            if positions < needed:
                more = " plus one position for the target" if masking.extra_positions else ""
                raise ConfigError(
                    f"total_seq_length {positions} is too small: max_sequence_length is "
                    f"{max_sequence_length}{more}. Set it to {needed}."
                )

    def forward(
        self, embeddings: Tensor, sequence: MaskedSequence, *, targets_only: bool = False
    ) -> Tensor:
        """(B, L, D) -> (B, L, output_size); `sequence` defines the visible positions.

        With `targets_only` the hidden states of positions without a target are undefined.
        ConfigError for more positions than `total_seq_length`.
        """
        positions = self.total_seq_length
        if positions is not None and embeddings.size(1) > positions:
            raise ConfigError(
                f"A session takes {int(embeddings.size(1))} positions, total_seq_length is "
                f"{positions}. Give max_sequence_length to the input block, so that the newest "
                "are read."
            )
        if embeddings.size(0) == 0:  # several architectures cannot reshape an empty batch
            empty = embeddings.new_zeros(0, embeddings.size(1), self.output_size)
            return empty + embeddings.sum() * 0
        arguments: list[Tensor | None] = [embeddings, sequence.lengths, sequence.order]
        if self.reads_elapsed:
            return self.encoder(*arguments, sequence.elapsed)
        if targets_only and getattr(self.encoder, "token_pruning", None) is not None:
            has_target = sequence.targets >= FIRST_ITEM
            return self.encoder(*arguments, has_target, sequence.most_targets)
        return self.encoder(*arguments)

    def attentions(self, embeddings: Tensor, sequence: MaskedSequence) -> tuple[Tensor, ...]:
        """(B, H, L, L) attention weights of each layer."""
        arguments = [embeddings, sequence.lengths, sequence.order]
        if self.reads_elapsed:
            arguments.append(sequence.elapsed)
        return self.encoder.attentions(*arguments)  # type: ignore[operator]


class ParallelBlock(nn.Module):
    """Parallel towers that read the same input; their outputs become one vector.

    A tower is a block or a list of blocks. `aggregation` concatenates or adds the outputs.
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

    def connect(self, masking: Masking, width: int, max_sequence_length: int | None) -> int:
        """Build the towers for an input of `width`, and return the width of the output."""
        widths = [
            connect_blocks(tower, masking, width, max_sequence_length)  # type: ignore[arg-type]
            for tower in self.towers
        ]
        if self.aggregation == "concat":
            return sum(widths)
        if len(set(widths)) > 1:
            raise ConfigError(
                f"element-wise-sum adds towers of one width, found {sorted(set(widths))}. Put an "
                "MLPBlock at the end of a tower, or use concat."
            )
        return widths[0]


class SequentialBlock(nn.Module):
    """Input block, then blocks in sequence.

    A block is any module of (B, L, D) that keeps sessions apart and does not attend to later
    interactions; if it returns a tuple, as recurrent modules do, the first element is used.
    ConfigError if the leakage check fails.
    """

    def __init__(self, inputs: TabularSequenceFeatures, *blocks: nn.Module) -> None:
        super().__init__()
        _check_parts(inputs, blocks)
        self.inputs = inputs
        self.blocks = nn.ModuleList(blocks)
        self.output_size = connect_blocks(
            blocks, self.masking, inputs.output_size, inputs.max_sequence_length
        )
        """D of the hidden states."""
        has_encoder = any(isinstance(module, TransformerBlock) for module in self.modules())
        self.masking.build(self.output_size, has_encoder=has_encoder)
        self.reads_elapsed = any(getattr(m, "reads_elapsed", False) for m in self.modules())
        if self.reads_elapsed and ELAPSED not in inputs.continuous:
            raise ConfigError(
                f"A time bias needs the feature {ELAPSED!r} of the interactions. Add it to "
                "`preprocess.timestamp.features`, or leave `time_bias` out."
            )
        separate = self.masking.separate_generator
        self.generator: nn.ModuleList | None = copy.deepcopy(self.blocks) if separate else None
        """Blocks of rtd's untied generator."""
        check_leakage(self)

    @property
    def masking(self) -> Masking:
        """Masking of the input block, NoMasking if it has none."""
        return self.inputs.masking or NoMasking()

    def crop(self, batch: SessionBatch, stage: Stage) -> SessionBatch:
        """Keep the newest `max_sequence_length` interactions, plus the target if the stage has one.

        ConfigError for an object that is not a SessionBatch.
        """
        if not isinstance(batch, SessionBatch):
            raise ConfigError(
                f"A model reads a SessionBatch, found a {type(batch).__name__}. Make one by "
                f"SessionBatch.from_features(features, {self.inputs.item!r})."
            )
        longest = self.inputs.max_sequence_length
        if longest is None:
            return batch
        has_target = stage in (Stage.TRAIN, Stage.EVALUATE)
        return newest(batch, longest + has_target, self.inputs.vectors)

    def forward(self, batch: SessionBatch, stage: Stage) -> Encoded:
        """SessionBatch -> Encoded."""
        return self.through(self.masked(batch, stage))

    def masked(
        self, batch: SessionBatch, stage: Stage, item_table: Tensor | None = None
    ) -> MaskedSequence:
        """SessionBatch -> input of the blocks; `item_table` is `items` of
        TabularSequenceFeatures."""
        embeddings = self.inputs(batch, item_table)
        items = batch.features[self.inputs.item]
        sequence = self.masking.apply_to(embeddings, items, batch.lengths, stage)
        if self.reads_elapsed:  # clm drops at most the newest position
            elapsed = batch.features[ELAPSED][:, : sequence.embeddings.size(1)]
            sequence = sequence._replace(elapsed=elapsed)
        training = stage in (Stage.TRAIN, Stage.TRAIN_WHOLE)
        if not training or batch.most_interactions is None:
            return sequence
        most = self.masking.most_targets(items.size(0), batch.most_interactions)
        return sequence._replace(most_targets=most)

    def unmasked(self, batch: SessionBatch) -> MaskedSequence:
        """SessionBatch -> input of the blocks without mask and targets, for rtd's discriminator."""
        embeddings = self.inputs(batch)
        items = batch.features[self.inputs.item]
        return NoMasking().apply_to(embeddings, items, batch.lengths, Stage.TRAIN)

    def through(
        self, masked: MaskedSequence, *, generator: bool = False, targets_only: bool = False
    ) -> Encoded:
        """Hidden states of the last block, or of the last block of the generator.

        With `targets_only` the hidden states of positions without a target are undefined.
        """
        blocks = [*(self.generator if generator and self.generator is not None else self.blocks)]
        prunes = targets_only and bool(blocks) and isinstance(blocks[-1], TransformerBlock)
        last = blocks.pop() if prunes else None
        hidden = run_blocks(blocks, masked.embeddings, masked)
        if last is not None:
            hidden = last(hidden, masked, targets_only=True)
        return Encoded(hidden, **{name: getattr(masked, name) for name in Encoded._fields[1:]})

    def attentions(self, batch: SessionBatch) -> list[Tensor]:
        """(B, H, L, L) attention weights of every layer at prediction."""
        masked = self.masked(batch, Stage.PREDICT)
        hidden = masked.embeddings
        weights: list[Tensor] = []
        for block in self.blocks:
            if isinstance(block, TransformerBlock):
                weights += block.attentions(hidden, masked)
            hidden = run_blocks([block], hidden, masked)
        if not weights:
            raise ConfigError("The body has no TransformerBlock.")
        return weights


def _check_parts(inputs: object, blocks: Iterable[object]) -> None:
    """ConfigError unless an input block is followed by modules."""
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


def run_blocks(blocks: Iterable[nn.Module], hidden: Tensor, sequence: MaskedSequence) -> Tensor:
    """Run (B, L, D) through each block in order."""
    for block in blocks:
        if isinstance(block, TransformerBlock | ParallelBlock):
            hidden = block(hidden, sequence)
        else:
            output = block(hidden)
            hidden = output[0] if isinstance(output, tuple) else output
    return hidden


def connect_blocks(
    blocks: Iterable[nn.Module], masking: Masking, width: int, max_sequence_length: int | None
) -> int:
    """Build and check blocks in order for an input of `width`; return the width of the output."""
    for block in blocks:
        if isinstance(block, MLPBlock):
            block.build(width)
            width = block.dimensions[-1]
        elif isinstance(block, TransformerBlock):
            block.check(masking, width, max_sequence_length)
            width = block.output_size
        elif isinstance(block, ParallelBlock):
            width = block.connect(masking, width, max_sequence_length)
        else:
            width = block_output_size(block, width)
    return width
