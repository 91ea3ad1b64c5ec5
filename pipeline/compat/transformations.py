"""Transformations and vectors with the arguments of Transformers4Rec."""

from typing import Any

from pipeline import model as blocks
from pipeline.compat.arguments import expect
from pipeline.compat.construction import Rebuildable, Zeros


class StochasticSwapNoise(Rebuildable, blocks.StochasticSwapNoise):
    """In training, replace random values by values of other interactions of the batch.

    `schema` is ignored, as the input block passes its features.
    """

    def __init__(
        self,
        schema: Any = None,  # noqa: ARG002
        pad_token: int = 0,
        replacement_prob: float = 0.1,
    ) -> None:
        expect("pad_token", pad_token, 0, because="padding is index 0")
        super().__init__(replacement_prob)


class StochasticSharedEmbeddings(Rebuildable, blocks.StochasticSharedEmbeddings):
    """In training, replace random indices by others of the feature."""


class TabularLayerNorm(Rebuildable, blocks.TabularLayerNorm):
    """Layer normalization of each feature's vector."""


class TabularDropout(Rebuildable, blocks.TabularDropout):
    """Dropout on each feature's vector."""


class PretrainedEmbeddings(Rebuildable, blocks.PretrainedEmbeddings):
    """Pretrained vectors of a feature, in addition to its table; saved with the weights of the
    model."""

    def __init__(self, weight_matrix: Any, *arguments: Any, **keywords: Any) -> None:
        super().__init__(weight_matrix, *arguments, **keywords)
        shape = Zeros(tuple(self.table.weight.shape))
        self.__dict__["construction"] = ((shape, *arguments), keywords)
