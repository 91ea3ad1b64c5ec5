"""Building blocks of session-based models: `from pipeline import model as tr`."""

from pipeline.data.batch import SessionBatch as SessionBatch
from pipeline.data.schema import ColumnSchema as ColumnSchema
from pipeline.data.schema import Schema as Schema
from pipeline.data.schema import Tags as Tags
from pipeline.model.architectures.bert_family import AlbertConfig as AlbertConfig
from pipeline.model.architectures.bert_family import BertConfig as BertConfig
from pipeline.model.architectures.bert_family import ElectraConfig as ElectraConfig
from pipeline.model.architectures.bert_family import LongformerConfig as LongformerConfig
from pipeline.model.architectures.bert_family import RobertaConfig as RobertaConfig
from pipeline.model.architectures.core import CoreConfig as CoreConfig
from pipeline.model.architectures.gpt2 import GPT2Config as GPT2Config
from pipeline.model.architectures.hstu import HSTUConfig as HSTUConfig
from pipeline.model.architectures.huggingface import HuggingFaceConfig as HuggingFaceConfig
from pipeline.model.architectures.ligr import LiGRConfig as LiGRConfig
from pipeline.model.architectures.recurrent import GRUConfig as GRUConfig
from pipeline.model.architectures.recurrent import LSTMConfig as LSTMConfig
from pipeline.model.architectures.reformer import ReformerConfig as ReformerConfig
from pipeline.model.architectures.sasrec import SASRecConfig as SASRecConfig
from pipeline.model.architectures.xlnet import XLNetConfig as XLNetConfig
from pipeline.model.blocks import ParallelBlock as ParallelBlock
from pipeline.model.blocks import SequentialBlock as SequentialBlock
from pipeline.model.blocks import TransformerBlock as TransformerBlock
from pipeline.model.ensemble import Ensemble as Ensemble
from pipeline.model.head import Head as Head
from pipeline.model.inputs.aggregation import ConcatFeatures as ConcatFeatures
from pipeline.model.inputs.aggregation import ElementwiseSum as ElementwiseSum
from pipeline.model.inputs.aggregation import ElementwiseSumItemMulti as ElementwiseSumItemMulti
from pipeline.model.inputs.aggregation import StackFeatures as StackFeatures
from pipeline.model.inputs.columns import InputOptions as InputOptions
from pipeline.model.inputs.continuous import SoftEmbedding as SoftEmbedding
from pipeline.model.inputs.features import TabularSequenceFeatures as TabularSequenceFeatures
from pipeline.model.inputs.pretrained import PretrainedEmbeddings as PretrainedEmbeddings
from pipeline.model.inputs.tables import (
    PretrainedEmbeddingsInitializer as PretrainedEmbeddingsInitializer,
)
from pipeline.model.inputs.transformations import (
    StochasticSharedEmbeddings as StochasticSharedEmbeddings,
)
from pipeline.model.inputs.transformations import StochasticSwapNoise as StochasticSwapNoise
from pipeline.model.inputs.transformations import TabularDropout as TabularDropout
from pipeline.model.inputs.transformations import TabularLayerNorm as TabularLayerNorm
from pipeline.model.inputs.vectors import read_vectors as read_vectors
from pipeline.model.losses import LabelSmoothCrossEntropyLoss as LabelSmoothCrossEntropyLoss
from pipeline.model.masking import CausalMasking as CausalMasking
from pipeline.model.masking import MaskedMasking as MaskedMasking
from pipeline.model.masking import PermutationMasking as PermutationMasking
from pipeline.model.masking import ReplacementMasking as ReplacementMasking
from pipeline.model.masking import Stage as Stage
from pipeline.model.mlp import MLPBlock as MLPBlock
from pipeline.model.model import Model as Model
from pipeline.model.model import TopK as TopK
from pipeline.model.tasks.negatives import NegativeSampler as NegativeSampler
from pipeline.model.tasks.next_item import NextItemPredictionTask as NextItemPredictionTask
from pipeline.model.tasks.targets import BinaryClassificationTask as BinaryClassificationTask
from pipeline.model.tasks.targets import ColumnValues as ColumnValues
from pipeline.model.tasks.targets import RegressionTask as RegressionTask
