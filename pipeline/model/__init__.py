"""Building blocks of session-based models: `from pipeline import model as tr`."""

from pipeline.core.schema import ColumnSchema, Schema, Tags
from pipeline.model.batch import SessionBatch
from pipeline.model.blocks import MLPBlock, SequentialBlock
from pipeline.model.features import TabularSequenceFeatures
from pipeline.model.masking import CausalMasking, MaskedMasking, Stage
from pipeline.model.model import Head, Model
from pipeline.model.task import NextItemPredictionTask
from pipeline.model.transformer import GPT2Config, TransformerBlock, XLNetConfig

__all__ = [
    "CausalMasking",
    "ColumnSchema",
    "GPT2Config",
    "Head",
    "MLPBlock",
    "MaskedMasking",
    "Model",
    "NextItemPredictionTask",
    "Schema",
    "SequentialBlock",
    "SessionBatch",
    "Stage",
    "TabularSequenceFeatures",
    "Tags",
    "TransformerBlock",
    "XLNetConfig",
]
