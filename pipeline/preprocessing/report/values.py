"""Values of a categorical column: their labels, the most frequent ones, their popularity."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.fitted import Fitted
from pipeline.preprocessing.report.histogram import round_digits
from pipeline.recipe.features import BucketFeature
from pipeline.reports.charts import format_number

_MAX_LABEL = 80
_CURVE_POINTS = 48


def labels_of(fitted: Fitted, name: str, positions: NDArray[Any]) -> list[Any]:
    """Raw values at positions counted after the reserved indices: integers or short text.

    A bucket of numbers is labelled by its bounds, a hash bucket by its number.
    """
    vocabulary = fitted.vocabularies[name]
    in_vocabulary = positions - vocabulary.hash_buckets  # hash buckets come before the values
    values = vocabulary.values.take(pa.array(in_vocabulary[in_vocabulary >= 0])).to_pylist()
    feature = next((f for f in fitted.recipe.features if f.name == name), None)
    if isinstance(feature, BucketFeature):
        texts = [format_number(bound) for bound in feature.buckets]
        ranges = [f"{low} to {high}" for low, high in pairwise(texts)]
        names = [f"below {texts[0]}", *ranges, f"{texts[-1]} or more"]
        return [names[value] for value in values]
    remaining = iter(values)
    return [
        _shorten(next(remaining)) if index >= 0 else f"hash bucket {position + 1}"
        for position, index in zip(positions.tolist(), in_vocabulary, strict=True)
    ]


def _shorten(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_LABEL:
        return value[:_MAX_LABEL] + "…"
    return value


def most_frequent(counts: NDArray[Any], min_count: float, num: int) -> NDArray[Any]:
    """Positions of at most `num` counts of `min_count` or more, descending; ties by position."""
    if len(counts) > num:  # a lower bound that few counts reach saves sorting the rest
        min_count = max(min_count, np.partition(counts, -num)[-num])
    candidates = np.flatnonzero(counts >= min_count)
    return candidates[np.argsort(-counts[candidates], kind="stable")][:num]


def popularity(counts: NDArray[Any]) -> dict[str, Any]:
    """Distribution of (V,) interactions over items; items without any are left out.

    `curve` is a list of [share of the items, share of the interactions with that many most popular
    items]. `gini` is 0 if all items are equally popular and near 1 if one item has all
    interactions. Shares are None without any interaction.
    """
    descending = -np.sort(-counts[counts > 0])
    num_items, total = len(descending), int(descending.sum())
    if not num_items:
        return {"items": 0, "gini": None, "top_1_percent": None, "top_10_percent": None,
                "curve": []}  # fmt: skip
    cumulative = np.cumsum(descending)
    ranks = np.unique(np.rint(np.geomspace(1, num_items, _CURVE_POINTS)).astype(np.int64))
    # sum of count x rank, the most popular item last
    weighted = int((descending * np.arange(num_items, 0, -1)).sum())

    def share_of_top(num: int) -> float:
        return round_digits(int(cumulative[num - 1]) / total)

    return {
        "items": num_items,
        "gini": round_digits(2 * weighted / (num_items * total) - (num_items + 1) / num_items),
        "top_1_percent": share_of_top(-(-num_items // 100)),
        "top_10_percent": share_of_top(-(-num_items // 10)),
        "curve": [[round_digits(rank / num_items), share_of_top(rank)] for rank in ranks],
    }
