"""Raw values as a report shows them."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.charts import number
from pipeline.core.fitted import Fitted

_LONGEST = 80


def texts(fitted: Fitted, name: str, places: np.ndarray) -> list[Any]:
    """Of the values of a column at these places of its vocabulary: integers, or text, cut short.

    Buckets are told by their bounds.
    """
    found = fitted.vocabularies[name].values.take(pa.array(places)).to_pylist()
    bounds = {feature.name: feature.buckets for feature in fitted.recipe.features}.get(name)
    if bounds:
        shown = [number(bound) for bound in bounds]
        names = [f"below {shown[0]}", *(f"{low} to {high}" for low, high in pairwise(shown))]
        names.append(f"{shown[-1]} or more")
        return [names[value] for value in found]
    return [
        value if not isinstance(value, str) or len(value) <= _LONGEST else value[:_LONGEST] + "…"
        for value in found
    ]
