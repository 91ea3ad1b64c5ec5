"""Building blocks of session-based models: `from pipeline import model as tr`."""

from pipeline.core.schema import ColumnSchema, Schema, Tags
from pipeline.model.architectures.albert import AlbertConfig
from pipeline.model.architectures.bert import BertConfig
from pipeline.model.architectures.electra import ElectraConfig
from pipeline.model.architectures.gpt2 import GPT2Config
from pipeline.model.architectures.gru import GRUConfig
from pipeline.model.architectures.hstu import HSTUConfig
from pipeline.model.architectures.huggingface import HuggingFaceConfig
from pipeline.model.architectures.longformer import LongformerConfig
from pipeline.model.architectures.lstm import LSTMConfig
from pipeline.model.architectures.reformer import ReformerConfig
from pipeline.model.architectures.roberta import RobertaConfig
from pipeline.model.architectures.sasrec import SASRecConfig
from pipeline.model.architectures.xlnet import XLNetConfig
from pipeline.model.batch import SessionBatch
from pipeline.model.blocks import MLPBlock, ParallelBlock, SequentialBlock, TransformerBlock
from pipeline.model.features import TabularSequenceFeatures
from pipeline.model.head import Head
from pipeline.model.losses import LabelSmoothCrossEntropyLoss
from pipeline.model.masking import (
    CausalMasking,
    MaskedMasking,
    PermutationMasking,
    ReplacementMasking,
    Stage,
)
from pipeline.model.model import Model
from pipeline.model.targets import BinaryClassificationTask, ColumnValues, RegressionTask
from pipeline.model.task import NextItemPredictionTask

__all__ = [
    "AlbertConfig",
    "BertConfig",
    "BinaryClassificationTask",
    "CausalMasking",
    "ColumnSchema",
    "ColumnValues",
    "ElectraConfig",
    "GPT2Config",
    "GRUConfig",
    "HSTUConfig",
    "Head",
    "HuggingFaceConfig",
    "LSTMConfig",
    "LabelSmoothCrossEntropyLoss",
    "LongformerConfig",
    "MLPBlock",
    "MaskedMasking",
    "Model",
    "NextItemPredictionTask",
    "ParallelBlock",
    "PermutationMasking",
    "ReformerConfig",
    "RegressionTask",
    "ReplacementMasking",
    "RobertaConfig",
    "SASRecConfig",
    "Schema",
    "SequentialBlock",
    "SessionBatch",
    "Stage",
    "TabularSequenceFeatures",
    "Tags",
    "TransformerBlock",
    "XLNetConfig",
]
