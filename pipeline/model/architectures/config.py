"""Base config of the architectures, which builds the encoder or a whole model."""

from typing import Literal

from torch import nn

from pipeline.core.errors import ConfigError
from pipeline.model.blocks import SequentialBlock, TransformerBlock
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.head import Head, Task
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.model import Model


class ArchitectureConfig(EncoderConfig):
    """Config of an architecture; a subclass in this package has `name` and `encoder`."""

    def to_torch_model(
        self,
        input_features: TabularSequenceFeatures,
        *tasks: Task,
        task_weights: list[float] | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
    ) -> Model:
        """Build a model: input block, linear layer to D if the widths differ, encoder, tasks.

        `task_weights` and `loss_reduction` are those of `Head`.
        """
        if not isinstance(input_features, TabularSequenceFeatures):
            raise ConfigError(
                f"to_torch_model got {type(input_features).__name__}, expected the input block, "
                "then tasks."
            )
        blocks: list[nn.Module] = []
        if input_features.output_size != self.d_model:
            blocks.append(nn.Linear(input_features.output_size, self.d_model))
        encoder = TransformerBlock(self, masking=input_features.masking)
        body = SequentialBlock(input_features, *blocks, encoder)
        return Model(
            Head(body, list(tasks), task_weights=task_weights, loss_reduction=loss_reduction)
        )
