"""Counterpart of each public name of Transformers4Rec 23.12.

docs/reference/transformers4rec-names.md has the same rows, which a test compares.
"""

SAME = "the same"
"""Text for a name with the same meaning here."""

_PARTS = "your module as `pre` (reads a `SessionBatch`), `post` or `aggregation` (read vectors)"
_MEASURED = "`tr.SequentialBlock(inputs, a, b)`, which takes any module and measures widths"
_TABLES = "arguments of `TabularSequenceFeatures.from_schema`; `shared_tables` shares a table"
_MASKING = "`masking=` of `from_schema` with its arguments, or `tr.{}`"
_LOADER = "`tr.MerlinDataLoader`"
_WORKFLOW = "`pipeline preprocess`, with NVTabular's own operators by `--workflow FILE.py`"

NAMES: dict[str, str] = {
    # transformers4rec.torch
    "Schema": "the same; also reads a Merlin schema",
    "ranking_metric": "the same: a module with the metrics",
    "requires_schema": "pass schemas as arguments",
    "T4RecConfig": "the same: base class of the configs",
    "GPT2Config": SAME,
    "XLNetConfig": "the same; the masking decides the attention, and `attn_type` must agree",
    "TransfoXLConfig": "removed from Hugging Face; `XLNetConfig` is its successor",
    "LongformerConfig": "the same, without clm, which would see its targets",
    "AlbertConfig": "the same; causal under clm",
    "ReformerConfig": "the same; a session is one chunk, so no `axial_pos_shape_first_dim`",
    "ElectraConfig": "the same; causal under clm, a discriminator under rtd",
    "T4RecTrainingArguments": "the same, with the arguments of the installed Hugging Face",
    "SequentialBlock": "the same, without `>>` and `+`; the first block is an input block",
    "right_shift_block": _MEASURED,
    "build_blocks": _MEASURED,
    "BlockBase": _MEASURED,
    "TabularBlock": _PARTS,
    "Block": "the same; measures `output_size`, and a GRU needs `batch_first=True`",
    "MLPBlock": "the same, with `layer_norm` in place of `batch_norm`, which mixes sessions",
    "TabularTransformation": _PARTS,
    "SequentialTabularTransformations": "a list as `pre` or `post`",
    "TabularAggregation": _PARTS,
    "StochasticSwapNoise": "the same; changes the inputs, not the targets",
    "TabularLayerNorm": SAME,
    "TabularDropout": SAME,
    "TransformerBlock": "the same, without `prepare_module`; the masking decides the attention",
    "ContinuousFeatures": "the same, for rows; for sessions `TabularSequenceFeatures`",
    "EmbeddingFeatures": "the same, for rows; for sessions `TabularSequenceFeatures`",
    "SoftEmbeddingFeatures": "the same, from a schema, for rows",
    "PretrainedEmbeddingsInitializer": SAME,
    "PretrainedEmbeddingFeatures": "columns tagged `embedding`, or `pretrained_embeddings={...}`",
    "TabularSequenceFeatures": "the same; `d_output` is linear, the newest interactions are read",
    "SequenceEmbeddingFeatures": "`TabularSequenceFeatures` with `continuous_tags=None`",
    "FeatureConfig": _TABLES,
    "TableConfig": _TABLES,
    "TabularFeatures": "the same, for rows without sessions and items",
    "Head": "the same; the loss of several tasks is their weighted mean",
    "Model": "the same; saved as JSON and safetensors, never as a pickle",
    "PredictionTask": "base class of the three tasks; pass your own loss as `loss=`",
    "AsTabular": _PARTS,
    "ConcatFeatures": "the same, in the order of the schema",
    "FilterFeatures": "select features by `schema.select_by_name` and tags",
    "ElementwiseSum": SAME,
    "ElementwiseSumItemMulti": "the same; takes the name of the item",
    "MergeTabular": "`tr.ParallelBlock`, or one input block of both schemas",
    "StackFeatures": "the same, flattened to vectors",
    "BinaryClassificationTask": "the same; `summary_type` defaults to last, and ignores padding",
    "RegressionTask": "the same; `summary_type` defaults to last, and ignores padding",
    "NextItemPredictionTask": "the same, with `weight_tying` by default",
    "TabularModule": _PARTS,
    "SoftEmbedding": SAME,
    "Trainer": "the same methods; for a run to serve, use `pipeline train`",
    "LabelSmoothCrossEntropyLoss": SAME,
    "data": "the same names with synthetic data",
    # transformers4rec.config
    "BertConfig": "the same; applies `dropout`",
    "RobertaConfig": "the same; applies `dropout`",
    "transformer_registry": SAME,
    "T4RecTrainingArgumentsTF": "none: TensorFlow is not supported",
    "SchemaMixin": "pass schemas as arguments",
    # transformers4rec.torch.ranking_metric
    "RankingMetric": "the same, with one target a row",
    "PrecisionAt": SAME,
    "RecallAt": SAME,
    "AvgPrecisionAt": SAME,
    "DCGAt": SAME,
    "NDCGAt": SAME,
    "MeanReciprocalRankAt": "the same, also as `MRRAt`",
    "ranking_metrics_registry": SAME,
    # transformers4rec.torch.masking
    "MaskSequence": "a subclass of `pipeline.model.masking.Masking`",
    "MaskingInfo": "`pipeline.model.masking.MaskedSequence`",
    "CausalLanguageModeling": _MASKING.format("CausalMasking"),
    "MaskedLanguageModeling": _MASKING.format("MaskedMasking"),
    "PermutationLanguageModeling": _MASKING.format("PermutationMasking"),
    "ReplacementLanguageModeling": _MASKING.format("ReplacementMasking"),
    "masking_registry": "`pipeline.model.masking.SHORT_NAMES`",
    # transformers4rec.torch.utils
    "MerlinDataLoader": "the same, without `transforms`",
    "PyarrowDataLoader": _LOADER,
    "T4RecDataLoader": "`tr.MerlinDataLoader`, which `parse` returns for every engine",
    "DLDataLoader": _LOADER,
    "ParquetDataset": _LOADER,
    "ShuffleDataset": "`shuffle=True` of the loader",
    "to_core_schema": "not needed: Merlin schemas are accepted everywhere",
    "fit_and_evaluate": "the same; returns the metrics of every window",
    "wipe_memory": SAME,
    "list_files": "`sorted(pathlib.Path(folder).rglob('*'))`",
    "visualize_response": "`pipeline.Client` returns raw ids as a DataFrame",
    "pad_inputs": "not needed: a model pads ragged batches and reads the newest interactions",
    "pad_batch": "not needed: a model pads ragged batches and reads the newest interactions",
    "random_data_from_schema": SAME,
    # other modules of transformers4rec.torch
    "LogUniformSampler": "`negatives='log-uniform'`, or `tr.NegativeSampler`",
    "BinaryClassificationPrepareBlock": "part of `BinaryClassificationTask`",
    "RegressionPrepareBlock": "part of `RegressionTask`",
    "NextItemPredictionPrepareBlock": "part of `NextItemPredictionTask`",
    "DenseBlock": "`tr.MLPBlock`",
    "TransformerPrepare": "not needed: the masking decides the attention",
    "GPT2Prepare": "not needed: the masking decides the attention",
    "BuildableBlock": _MEASURED,
    "TabularData": "`dict[str, torch.Tensor]`",
    "TensorOrTabularData": "`torch.Tensor | dict[str, torch.Tensor]`",
    "PostContextFusion": "`tr.ParallelBlock`",
    # transformers4rec.utils and transformers4rec.data
    "save_time_based_splits": "the same, on the CPU; ignores `cpu`",
    "session_aggregator": _WORKFLOW,
    "remove_consecutive_interactions": "`drop_repeats` of a recipe",
    "add_item_first_seen_col_to_df": _WORKFLOW,
    "generate_session_interactions": "`pipeline synthesize`, `tr.random_data_from_schema`",
    "generate_item_interactions": "`pipeline synthesize`, `tr.random_data_from_schema`",
    "synthetic_ecommerce_data_schema": "`tr.data.music_streaming_testing_data.schema`",
    "Dataset": "`tr.data.Dataset(schema)`",
    # merlin_standard_lib
    "ColumnSchema": "`create_categorical`, `create_continuous`; indices count from 3",
    "schema": "`tr.Schema`, `tr.ColumnSchema` and `tr.Tags`",
    "categorical_cardinalities": "`schema.categorical_cardinalities()`",
    "get_embedding_sizes_from_schema": "`schema.embedding_sizes(multiplier)`",
    "Registry": "tables by name, such as `tr.transformer_registry`",
    "RegistryMixin": "tables by name, such as `tr.transformer_registry`",
}
"""Text by name."""


def message(name: str) -> str:
    """Message of the AttributeError for a missing name."""
    if name not in NAMES:
        return f"module 'pipeline.compat' has no attribute {name!r}"
    page = "docs/reference/transformers4rec-names.md"
    return f"{name} of Transformers4Rec: {NAMES[name]}. See {page}."
