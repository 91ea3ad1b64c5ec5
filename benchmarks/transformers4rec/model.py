"""The original's model of a task, by its own API."""

import transformers4rec.torch as tr
from merlin.schema import Schema, Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata
from transformers4rec.config import transformer as architectures

RESERVED = 3
"""Rows of the item table that stand for no item: padding, missing, unknown."""


def read_schema(data):
    """The columns that a model reads, of a data directory."""
    schema = TensorflowMetadata.from_proto_text_file(data, "schema.pbtxt").to_merlin_schema()
    chosen = schema.select_by_tag(Tags.CATEGORICAL) + schema.select_by_tag(Tags.CONTINUOUS)
    # its loader pads what is tagged so
    return Schema([c.with_tags(Tags.LIST) if c.is_list else c for c in chosen])


def build_model(schema, task):
    """The model of a task with fresh weights."""
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema,
        max_sequence_length=task["longest"],
        embedding_dims={"item_id": task["d_model"]},
        embedding_dim_default=task.get("embedding_dim", 16),
        aggregation="concat",
        d_output=task["d_model"] if len(schema) > 1 else None,
        masking=task["masking"],
        mlm_probability=task["mlm_probability"],
    )
    prediction = tr.NextItemPredictionTask(weight_tying=True)
    return _encoder(task).to_torch_model(inputs, prediction)


def _encoder(task):
    """The shape that ours has too; what `build` does not pass on is given to Hugging Face."""
    kinds = {
        "xlnet": architectures.XLNetConfig,
        "gpt2": architectures.GPT2Config,
        "bert": architectures.BertConfig,
    }
    options = {}
    if task["architecture"] == "bert":
        # its `build` ignores the dropout, and leaves BERT's own inner width
        options = {
            "intermediate_size": 4 * task["d_model"],
            "hidden_dropout_prob": task["dropout"],
            "attention_probs_dropout_prob": task["dropout"],
        }
    return kinds[task["architecture"]].build(
        d_model=task["d_model"],
        n_head=task["n_head"],
        n_layer=task["n_layer"],
        total_seq_length=task["longest"],
        dropout=task["dropout"],
        initializer_range=0.02,
        layer_norm_eps=1e-5,
        **options,
    )


def leave_out_reserved(model):
    """Give reserved rows no share of the softmax, as in ours; returns a handle to undo it."""
    head = model.heads[0].prediction_task_dict["next-item"].pre.module

    def hide(_module, _given, output):
        scores, targets = output
        scores = scores.clone()
        scores[:, :RESERVED] = float("-inf")
        return scores, targets

    return head.register_forward_hook(hide)
