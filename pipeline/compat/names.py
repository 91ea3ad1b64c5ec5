"""What became of each public name of Transformers4Rec 23.12.

docs/reference/transformers4rec-names.md has these rows, too; a test compares the two.
"""

SAME = "the same"
"""Text of a name that means the same here."""

_PARTS = "a module of your own as `pre` (of a `SessionBatch`), `post` or `aggregation` (of vectors)"
_MEASURED = "`tr.SequentialBlock(inputs, a, b)`: widths are measured, any module is a block"
_TABLES = "arguments of `TabularSequenceFeatures.from_schema`; `shared_tables` shares a table"
_MASKING = "`masking=` of `from_schema` with its arguments, or `tr.{}`"
_LOADER = "`tr.MerlinDataLoader`"
_WORKFLOW = "`pipeline preprocess`, with NVTabular's own operators by `--workflow FILE.py`"

NAMES: dict[str, str] = {
    # transformers4rec.torch
    "Schema": "the same; also reads Merlin's own object",
    "ranking_metric": "the same: a module with the metrics",
    "requires_schema": "schemas are arguments",
    "T4RecConfig": "the same: the class of all configs",
    "GPT2Config": SAME,
    "XLNetConfig": "the same; attention follows the masking, with which `attn_type` must agree",
    "TransfoXLConfig": "Hugging Face has removed the architecture; `XLNetConfig` is its successor",
    "LongformerConfig": "the same, without clm, which would see its targets",
    "AlbertConfig": "the same; causal under clm",
    "ReformerConfig": "the same, a session is one chunk: `axial_pos_shape_first_dim` is no setting",
    "ElectraConfig": "the same; causal under clm, a discriminator under rtd",
    "T4RecTrainingArguments": "the same, with the arguments that Hugging Face still has",
    "SequentialBlock": "the same; begins with an input block, and has no `>>` and no `+`",
    "right_shift_block": _MEASURED,
    "build_blocks": _MEASURED,
    "BlockBase": _MEASURED,
    "TabularBlock": _PARTS,
    "Block": "the same, `output_size` is measured; a GRU needs `batch_first=True`",
    "MLPBlock": "the same, with `layer_norm` for `batch_norm`, which would mix sessions",
    "TabularTransformation": _PARTS,
    "SequentialTabularTransformations": "a list as `pre` or `post`",
    "TabularAggregation": _PARTS,
    "StochasticSwapNoise": "the same; changes inputs alone, not the targets",
    "TabularLayerNorm": SAME,
    "TabularDropout": SAME,
    "TransformerBlock": "the same; attention follows the masking, without `prepare_module`",
    "ContinuousFeatures": "the same, of rows; of sessions `TabularSequenceFeatures`",
    "EmbeddingFeatures": "the same, from a schema, of rows; of sessions `TabularSequenceFeatures`",
    "SoftEmbeddingFeatures": "the same, from a schema, of rows",
    "PretrainedEmbeddingsInitializer": SAME,
    "PretrainedEmbeddingFeatures": "columns tagged `embedding`, or `pretrained_embeddings={...}`",
    "TabularSequenceFeatures": "the same; `d_output` is linear, the newest interactions are read",
    "SequenceEmbeddingFeatures": "`TabularSequenceFeatures` with `continuous_tags=None`",
    "FeatureConfig": _TABLES,
    "TableConfig": _TABLES,
    "TabularFeatures": "the same: a tower of rows, without sessions and without an item",
    "Head": "the same; the loss of several tasks is a weighted mean",
    "Model": "the same; a saved model is JSON and safetensors, never a pickle",
    "PredictionTask": "the class of the three tasks; a loss of your own is `loss=`",
    "AsTabular": _PARTS,
    "ConcatFeatures": "the same, in the order of the schema",
    "FilterFeatures": "`schema.select_by_name` and the tags choose the features",
    "ElementwiseSum": SAME,
    "ElementwiseSumItemMulti": "the same; takes the name of the item",
    "MergeTabular": "`tr.ParallelBlock`, or one input block of both schemas",
    "StackFeatures": "the same, flattened to vectors",
    "BinaryClassificationTask": "the same; `summary_type` is last, and reads no padding",
    "RegressionTask": "the same; `summary_type` is last, and reads no padding",
    "NextItemPredictionTask": "the same, with `weight_tying` on, as its documentation said",
    "TabularModule": _PARTS,
    "SoftEmbedding": SAME,
    "Trainer": "the same calls on this project's Trainer; a run that is served: `pipeline train`",
    "LabelSmoothCrossEntropyLoss": SAME,
    "data": "the same names with synthetic data",
    # transformers4rec.config
    "BertConfig": "the same; `dropout` is used",
    "RobertaConfig": "the same; `dropout` is used",
    "transformer_registry": SAME,
    "T4RecTrainingArgumentsTF": "there is no TensorFlow here",
    "SchemaMixin": "schemas are arguments",
    # transformers4rec.torch.ranking_metric
    "RankingMetric": "the same, with one true item a row",
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
    "masking_registry": "`pipeline.model.masking.SHORT_NAMES` has the names",
    # transformers4rec.torch.utils
    "MerlinDataLoader": "the same, without `transforms`",
    "PyarrowDataLoader": _LOADER,
    "T4RecDataLoader": "`parse` of every engine gives `tr.MerlinDataLoader`",
    "DLDataLoader": _LOADER,
    "ParquetDataset": _LOADER,
    "ShuffleDataset": "`shuffle=True` of the loader",
    "to_core_schema": "not needed: ours and Merlin's schemas are taken everywhere",
    "fit_and_evaluate": "the same; returns the metrics of every window",
    "wipe_memory": SAME,
    "list_files": "`sorted(pathlib.Path(folder).rglob('*'))`",
    "visualize_response": "`pipeline.Client` returns raw ids as a frame",
    "pad_inputs": "a model pads and cuts ragged batches itself, to the newest interactions",
    "pad_batch": "a model pads and cuts ragged batches itself, to the newest interactions",
    "random_data_from_schema": SAME,
    # other modules of transformers4rec.torch
    "LogUniformSampler": "`negatives='log-uniform'`, or `tr.NegativeSampler`",
    "BinaryClassificationPrepareBlock": "part of `BinaryClassificationTask`",
    "RegressionPrepareBlock": "part of `RegressionTask`",
    "NextItemPredictionPrepareBlock": "part of `NextItemPredictionTask`",
    "DenseBlock": "`tr.MLPBlock`",
    "TransformerPrepare": "attention follows the masking",
    "GPT2Prepare": "attention follows the masking",
    "BuildableBlock": _MEASURED,
    "TabularData": "`dict[str, torch.Tensor]`",
    "TensorOrTabularData": "`torch.Tensor | dict[str, torch.Tensor]`",
    "PostContextFusion": "`tr.ParallelBlock`",
    # transformers4rec.utils and transformers4rec.data
    "save_time_based_splits": "the same, on the CPU; `cpu` changes nothing",
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
    """What an AttributeError says of a name that is not here."""
    if name not in NAMES:
        return f"module 'pipeline.compat' has no attribute {name!r}"
    page = "docs/reference/transformers4rec-names.md"
    return f"{name} of Transformers4Rec: {NAMES[name]}. See {page}."
