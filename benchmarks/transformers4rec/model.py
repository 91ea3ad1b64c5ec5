"""Transformers4Rec's model of a task, built by its own API."""

import transformers4rec.torch as tr
from merlin.schema import Schema, Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata
from transformers4rec.config import transformer as architectures

RESERVED = 3
"""Rows of the item table without an item: padding, null, out of vocabulary."""


def read_schema(data):
    """Return the schema of the columns that a model reads."""
    schema = TensorflowMetadata.from_proto_text_file(data, "schema.pbtxt").to_merlin_schema()
    columns = schema.select_by_tag(Tags.CATEGORICAL) + schema.select_by_tag(Tags.CONTINUOUS)
    # the loader pads columns with this tag
    return Schema([c.with_tags(Tags.LIST) if c.is_list else c for c in columns])


def build_model(schema, task):
    """Return the model of a task with new weights."""
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
    """Return the config of the transformer, of the same shape as ours."""
    kinds = {
        "xlnet": architectures.XLNetConfig,
        "gpt2": architectures.GPT2Config,
        "bert": architectures.BertConfig,
    }
    options = {}
    if task["architecture"] == "bert":
        # `build` passes neither dropout nor inner width to Hugging Face
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


def exclude_reserved(model):
    """Exclude the reserved rows from the softmax, as in ours; return the hook's handle."""
    head = model.heads[0].prediction_task_dict["next-item"].pre.module

    def exclude(_module, _inputs, output):
        scores, targets = output
        scores = scores.clone()
        scores[:, :RESERVED] = float("-inf")
        return scores, targets

    return head.register_forward_hook(exclude)
