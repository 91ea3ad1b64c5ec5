"""What a recipe can ask for by name, so that it is checked without torch.

One line for each file in `pipeline/model/architectures` and in `pipeline/model/losses`.
"""

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "gpt2": ("clm",),
    "xlnet": ("clm", "mlm", "plm", "rtd"),
    "bert": ("clm", "mlm", "rtd"),
    "albert": ("clm", "mlm", "rtd"),
    "electra": ("clm", "mlm", "rtd"),
    "roberta": ("clm", "mlm", "rtd"),
    "longformer": ("mlm", "rtd"),
    "reformer": ("clm", "mlm", "rtd"),
    "gru": ("clm",),
    "lstm": ("clm",),
    "sasrec": ("clm",),
    "hstu": ("clm",),
    "core": ("clm",),
    "ligr": ("clm",),
    "huggingface": ("clm", "mlm", "rtd"),
}
"""Sequence encoders with the maskings that each works with."""

FULL_LOSSES = ("cross-entropy",)
"""Losses over the scores of the whole catalogue."""
SAMPLED_LOSSES = ("sampled-softmax", "gbce", "bpr", "bpr-max", "top1", "top1-max")
"""Losses over the target and some negatives."""
NEGATIVES = ("uniform", "log-uniform", "popularity", "in-batch")
"""Where negatives come from."""
