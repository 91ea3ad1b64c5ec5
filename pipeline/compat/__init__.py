"""Names of NVIDIA's Transformers4Rec: its programs run with changed imports.

    from pipeline import compat as tr

The package has every name of `pipeline.model` as well. A name of the original that is missing here
raises an AttributeError with its replacement; docs/reference/transformers4rec-names.md lists all
names.
"""

import importlib
from typing import Any

from pipeline.compat import data as data
from pipeline.compat import ranking_metric as ranking_metric
from pipeline.compat.blocks import Block as Block
from pipeline.compat.blocks import MLPBlock as MLPBlock
from pipeline.compat.blocks import ParallelBlock as ParallelBlock
from pipeline.compat.blocks import SequentialBlock as SequentialBlock
from pipeline.compat.blocks import TransformerBlock as TransformerBlock
from pipeline.compat.configs import AlbertConfig as AlbertConfig
from pipeline.compat.configs import BertConfig as BertConfig
from pipeline.compat.configs import CoreConfig as CoreConfig
from pipeline.compat.configs import ElectraConfig as ElectraConfig
from pipeline.compat.configs import GPT2Config as GPT2Config
from pipeline.compat.configs import GRUConfig as GRUConfig
from pipeline.compat.configs import HSTUConfig as HSTUConfig
from pipeline.compat.configs import HuggingFaceConfig as HuggingFaceConfig
from pipeline.compat.configs import LiGRConfig as LiGRConfig
from pipeline.compat.configs import LongformerConfig as LongformerConfig
from pipeline.compat.configs import LSTMConfig as LSTMConfig
from pipeline.compat.configs import ReformerConfig as ReformerConfig
from pipeline.compat.configs import RobertaConfig as RobertaConfig
from pipeline.compat.configs import SASRecConfig as SASRecConfig
from pipeline.compat.configs import T4RecConfig as T4RecConfig
from pipeline.compat.configs import XLNetConfig as XLNetConfig
from pipeline.compat.configs import transformer_registry as transformer_registry
from pipeline.compat.data import random_data_from_schema as random_data_from_schema
from pipeline.compat.dataloader import MerlinDataLoader as MerlinDataLoader
from pipeline.compat.dataloader import T4RecDataLoader as T4RecDataLoader
from pipeline.compat.features import ContinuousFeatures as ContinuousFeatures
from pipeline.compat.features import EmbeddingFeatures as EmbeddingFeatures
from pipeline.compat.features import SoftEmbeddingFeatures as SoftEmbeddingFeatures
from pipeline.compat.features import TabularFeatures as TabularFeatures
from pipeline.compat.features import TabularSequenceFeatures as TabularSequenceFeatures
from pipeline.compat.model import Head as Head
from pipeline.compat.model import Model as Model
from pipeline.compat.names import message
from pipeline.compat.ranking_metric import AvgPrecisionAt as AvgPrecisionAt
from pipeline.compat.ranking_metric import DCGAt as DCGAt
from pipeline.compat.ranking_metric import MeanReciprocalRankAt as MeanReciprocalRankAt
from pipeline.compat.ranking_metric import MRRAt as MRRAt
from pipeline.compat.ranking_metric import NDCGAt as NDCGAt
from pipeline.compat.ranking_metric import PrecisionAt as PrecisionAt
from pipeline.compat.ranking_metric import RankingMetric as RankingMetric
from pipeline.compat.ranking_metric import RecallAt as RecallAt
from pipeline.compat.ranking_metric import ranking_metrics_registry as ranking_metrics_registry
from pipeline.compat.tasks import BinaryClassificationTask as BinaryClassificationTask
from pipeline.compat.tasks import LabelSmoothCrossEntropyLoss as LabelSmoothCrossEntropyLoss
from pipeline.compat.tasks import NextItemPredictionTask as NextItemPredictionTask
from pipeline.compat.tasks import PredictionTask as PredictionTask
from pipeline.compat.tasks import RegressionTask as RegressionTask
from pipeline.compat.transformations import PretrainedEmbeddings as PretrainedEmbeddings
from pipeline.compat.transformations import StochasticSharedEmbeddings as StochasticSharedEmbeddings
from pipeline.compat.transformations import StochasticSwapNoise as StochasticSwapNoise
from pipeline.compat.transformations import TabularDropout as TabularDropout
from pipeline.compat.transformations import TabularLayerNorm as TabularLayerNorm
from pipeline.compat.windows import fit_and_evaluate as fit_and_evaluate
from pipeline.compat.windows import save_time_based_splits as save_time_based_splits
from pipeline.compat.windows import wipe_memory as wipe_memory

_LATE = {
    "T4RecTrainingArguments": "pipeline.compat.trainer_arguments",
    "Trainer": "pipeline.compat.trainer",
    "trainer": "pipeline.compat.trainer",
}
"""Modules of names that need Hugging Face's Trainer, whose import takes seconds."""


def __getattr__(name: str) -> Any:
    """Return a name that is imported late or is in `pipeline.model`; AttributeError for others."""
    if name in _LATE:
        module = importlib.import_module(_LATE[name])
        return module if name == "trainer" else getattr(module, name)
    model = importlib.import_module("pipeline.model")
    if not name.startswith("_") and hasattr(model, name):
        return getattr(model, name)
    raise AttributeError(message(name))
