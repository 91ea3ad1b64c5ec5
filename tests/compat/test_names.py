"""Every public name of Transformers4Rec is here or says what became of it."""

import re

import pytest

from pipeline import compat as tr
from pipeline import model
from pipeline.compat.names import NAMES
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "reference" / "transformers4rec-names.md").read_text(encoding="utf-8")
INVENTORY = """
Schema ranking_metric requires_schema T4RecConfig GPT2Config XLNetConfig TransfoXLConfig
LongformerConfig AlbertConfig ReformerConfig ElectraConfig T4RecTrainingArguments
SequentialBlock right_shift_block build_blocks BlockBase TabularBlock Block MLPBlock
TabularTransformation SequentialTabularTransformations TabularAggregation StochasticSwapNoise
TabularLayerNorm TabularDropout TransformerBlock ContinuousFeatures EmbeddingFeatures
SoftEmbeddingFeatures PretrainedEmbeddingsInitializer PretrainedEmbeddingFeatures
TabularSequenceFeatures SequenceEmbeddingFeatures FeatureConfig TableConfig TabularFeatures Head
Model PredictionTask AsTabular ConcatFeatures FilterFeatures ElementwiseSum
ElementwiseSumItemMulti MergeTabular StackFeatures BinaryClassificationTask RegressionTask
NextItemPredictionTask TabularModule SoftEmbedding Trainer LabelSmoothCrossEntropyLoss data

BertConfig RobertaConfig transformer_registry T4RecTrainingArgumentsTF SchemaMixin

RankingMetric PrecisionAt RecallAt AvgPrecisionAt DCGAt NDCGAt MeanReciprocalRankAt
ranking_metrics_registry

MaskSequence MaskingInfo CausalLanguageModeling MaskedLanguageModeling
PermutationLanguageModeling ReplacementLanguageModeling masking_registry

MerlinDataLoader PyarrowDataLoader T4RecDataLoader DLDataLoader ParquetDataset ShuffleDataset
to_core_schema fit_and_evaluate wipe_memory list_files visualize_response pad_inputs pad_batch
random_data_from_schema

LogUniformSampler BinaryClassificationPrepareBlock RegressionPrepareBlock
NextItemPredictionPrepareBlock DenseBlock TransformerPrepare GPT2Prepare BuildableBlock TabularData
TensorOrTabularData PostContextFusion

save_time_based_splits session_aggregator remove_consecutive_interactions
add_item_first_seen_col_to_df generate_session_interactions generate_item_interactions
synthetic_ecommerce_data_schema Dataset

ColumnSchema schema categorical_cardinalities get_embedding_sizes_from_schema Registry RegistryMixin
""".split()  # noqa: SIM905
"""Names of transformers4rec 23.12 by module: torch, config, ranking metrics, masking, torch.utils,
other modules of torch, utils and data, merlin_standard_lib."""


def test_table_has_exactly_the_public_names_of_the_original() -> None:
    assert list(NAMES) == INVENTORY


@pytest.mark.parametrize("name", INVENTORY)
def test_name_exists_or_the_error_is_its_row_of_the_page(name: str) -> None:
    row = f"| `{name}` | {NAMES[name]} |"
    assert row in PAGE.splitlines()
    if not hasattr(tr, name):
        assert not NAMES[name].startswith("the same")
        with pytest.raises(AttributeError) as caught:
            getattr(tr, name)
        assert NAMES[name] in str(caught.value)
        assert "docs/reference/transformers4rec-names.md" in str(caught.value)


def test_page_has_no_row_of_a_name_that_the_original_lacks() -> None:
    table = PAGE.partition("## Every name")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == INVENTORY


def test_names_in_the_rows_exist() -> None:
    mentioned = {name for text in NAMES.values() for name in re.findall(r"`tr\.(\w+)", text)}
    assert {name for name in mentioned if not hasattr(tr, name)} == set()
    assert "MerlinDataLoader" in mentioned


def test_every_name_of_the_model_package_is_here() -> None:
    names = [name for name in vars(model) if not name.startswith("_")]
    assert [name for name in names if not hasattr(tr, name)] == []


def test_misspelt_name_is_pythons_own_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Modelle'"):
        tr.Modelle  # noqa: B018
