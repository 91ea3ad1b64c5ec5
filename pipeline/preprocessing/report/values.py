"""Raw values as a report shows them."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.fitted import Fitted
from pipeline.reports.charts import number

_LONGEST = 80


def texts(fitted: Fitted, name: str, places: np.ndarray) -> list[Any]:
    """Of the indices of a column at these places behind the reserved ones: integers, or text.

    Text is cut short. Buckets are told by their bounds, those of a hash by their number.
    """
    vocabulary = fitted.vocabularies[name]
    own = places - vocabulary.hash_buckets  # hash buckets stand before the values
    found = vocabulary.values.take(pa.array(own[own >= 0])).to_pylist()
    bounds = {feature.name: feature.buckets for feature in fitted.recipe.features}.get(name)
    if bounds:
        shown = [number(bound) for bound in bounds]
        names = [f"below {shown[0]}", *(f"{low} to {high}" for low, high in pairwise(shown))]
        names.append(f"{shown[-1]} or more")
        return [names[value] for value in found]
    rest = iter(found)
    return [
        _short(next(rest)) if known else f"hash bucket {place + 1}"
        for place, known in zip(places.tolist(), own >= 0, strict=True)
    ]


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST:
        return value[:_LONGEST] + "…"
    return value
