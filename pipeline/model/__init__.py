"""Building blocks of session-based models: `from pipeline import model as tr`."""

from pipeline.data.batch import SessionBatch
from pipeline.data.schema import ColumnSchema, Schema, Tags
from pipeline.model.architectures.bert import (
    AlbertConfig,
    BertConfig,
    ElectraConfig,
    LongformerConfig,
    RobertaConfig,
)
from pipeline.model.architectures.core import CoreConfig
from pipeline.model.architectures.gpt2 import GPT2Config
from pipeline.model.architectures.gru import GRUConfig, LSTMConfig
from pipeline.model.architectures.hstu import HSTUConfig
from pipeline.model.architectures.huggingface import HuggingFaceConfig
from pipeline.model.architectures.ligr import LiGRConfig
from pipeline.model.architectures.reformer import ReformerConfig
from pipeline.model.architectures.sasrec import SASRecConfig
from pipeline.model.architectures.xlnet import XLNetConfig
from pipeline.model.blocks import ParallelBlock, SequentialBlock, TransformerBlock
from pipeline.model.ensemble import Ensemble
from pipeline.model.head import Head
from pipeline.model.inputs.aggregation import (
    ConcatFeatures,
    ElementwiseSum,
    ElementwiseSumItemMulti,
    StackFeatures,
)
from pipeline.model.inputs.continuous import SoftEmbedding
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.inputs.pretrained import PretrainedEmbeddings
from pipeline.model.inputs.tables import PretrainedEmbeddingsInitializer
from pipeline.model.inputs.transformations import (
    StochasticSharedEmbeddings,
    StochasticSwapNoise,
    TabularDropout,
    TabularLayerNorm,
)
from pipeline.model.inputs.vectors import read_vectors
from pipeline.model.losses import LabelSmoothCrossEntropyLoss
from pipeline.model.masking import (
    CausalMasking,
    MaskedMasking,
    PermutationMasking,
    ReplacementMasking,
    Stage,
)
from pipeline.model.mlp import MLPBlock
from pipeline.model.model import Model, TopK
from pipeline.model.tasks.negatives import NegativeSampler
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import BinaryClassificationTask, ColumnValues, RegressionTask

__all__ = [
    "AlbertConfig",
    "BertConfig",
    "BinaryClassificationTask",
    "CausalMasking",
    "ColumnSchema",
    "ColumnValues",
    "ConcatFeatures",
    "CoreConfig",
    "ElectraConfig",
    "ElementwiseSum",
    "ElementwiseSumItemMulti",
    "Ensemble",
    "GPT2Config",
    "GRUConfig",
    "HSTUConfig",
    "Head",
    "HuggingFaceConfig",
    "LSTMConfig",
    "LabelSmoothCrossEntropyLoss",
    "LiGRConfig",
    "LongformerConfig",
    "MLPBlock",
    "MaskedMasking",
    "Model",
    "NegativeSampler",
    "NextItemPredictionTask",
    "ParallelBlock",
    "PermutationMasking",
    "PretrainedEmbeddings",
    "PretrainedEmbeddingsInitializer",
    "ReformerConfig",
    "RegressionTask",
    "ReplacementMasking",
    "RobertaConfig",
    "SASRecConfig",
    "Schema",
    "SequentialBlock",
    "SessionBatch",
    "SoftEmbedding",
    "StackFeatures",
    "Stage",
    "StochasticSharedEmbeddings",
    "StochasticSwapNoise",
    "TabularDropout",
    "TabularLayerNorm",
    "TabularSequenceFeatures",
    "Tags",
    "TopK",
    "TransformerBlock",
    "XLNetConfig",
    "read_vectors",
]
