"""Names that a recipe can choose from, so that it is checked without importing torch.

One line for each architecture of `pipeline/model/architectures` and loss of
`pipeline/model/losses`.
"""

import re
from collections.abc import Collection

from pipeline.core.expressions import Expression

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
"""Architectures with the maskings that each supports."""

FULL_LOSSES = ("cross-entropy",)
"""Losses over the logits of the whole catalogue."""
SAMPLED_LOSSES = ("sampled-softmax", "gbce", "bpr", "bpr-max", "top1", "top1-max")
"""Losses over the target and N negatives."""
METRICS = ("recall", "ndcg", "dcg", "mrr", "map", "precision")
"""Ranking metrics."""
METRICS_ON_REQUEST = ("novelty", "serendipity", "diversity", "miscalibration", "debiased")
"""Metrics of top-K lists that `evaluate --metrics` adds, see `pipeline.evaluation.list_metrics`."""
PLUGIN_LOSSES: set[str] = set()
"""Losses that `pipeline.plugins` has registered."""
PLUGIN_METRICS: set[str] = set()
"""Ranking metrics that `pipeline.plugins` has registered."""
FROM_PLUGINS = "One of your own needs the file that registers it: --plugins FILE.py."
"""Hint of the error of an unknown name."""
TARGET_METRICS = {
    "binary": ("auc", "log_loss", "precision", "recall", "calibration_error"),
    "regression": ("rmse", "mae"),
}
"""Metrics of a target beside the next item that can choose the best weights, by its kind."""
TARGET_METRIC_NAME = re.compile(
    rf"([A-Za-z]\w*)\.({'|'.join(name for names in TARGET_METRICS.values() for name in names)})"
)
"""A metric of a target, such as purchase.auc."""
NEXT_ITEM = "next_item"
"""Name of the next item's score in `rank_by`."""
RANKING_FUNCTIONS = {"log": [1], "exp": [1]}
"""Functions of `rank_by`, with their numbers of arguments."""
NEGATIVES = ("uniform", "log-uniform", "popularity", "in-batch")
"""Distributions of negatives."""


def ranking_cutoff(metric: str) -> int | None:
    """Cutoff of a ranking metric such as ndcg@20, None for any other text."""
    name, _, cutoff = metric.partition("@")
    is_number = cutoff.isascii() and cutoff.isdigit() and not cutoff.startswith("0")
    return int(cutoff) if is_number and name in {*METRICS, *PLUGIN_METRICS} else None


def ranking_expression(text: str, item_targets: Collection[str]) -> Expression:
    """Read `rank_by`, of `next_item` and targets per item. ValueError for anything else."""
    if not item_targets:
        raise ValueError("no target has `per_item`, so that there is nothing to combine")
    expression = Expression(text, RANKING_FUNCTIONS)
    expression.check_names([NEXT_ITEM, *item_targets])
    if not expression.names:
        raise ValueError(f"`{text}` is one number for all items; name {NEXT_ITEM} or a target")
    return expression
