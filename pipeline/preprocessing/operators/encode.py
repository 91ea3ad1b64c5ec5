"""Categorical values to indices, as an NVTabular operator."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema, Tags
from numpy.typing import NDArray
from nvtabular.ops import Operator
from nvtabular.ops.categorify import _emb_sz_rule

from pipeline.core.columns import FIRST_ITEM, NULL, OUT_OF_VOCABULARY, PADDING, bucket_of
from pipeline.preprocessing.lookup import positions


class Encode(Operator):
    """Index of each value in a vocabulary, the counterpart of NVTabular's Categorify.

    Lookups use Arrow's hash tables. Unlike Categorify, a column without any value is accepted.
    Indices are NULL, OUT_OF_VOCABULARY, the hash buckets of the column from FIRST_ITEM on, then the
    vocabulary.

    Args:
        vocabularies: by column, values in the order of their indices
        hash_buckets: by column, number of indices that values outside the vocabulary share in
            place of OUT_OF_VOCABULARY
        padded: second and later columns of a multi-valued feature, in which a missing value is
            PADDING
    """

    def __init__(
        self,
        vocabularies: dict[str, pa.Array],
        hash_buckets: dict[str, int] | None = None,
        padded: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.vocabularies = vocabularies
        self.hash_buckets = hash_buckets or {}
        self.padded = frozenset(padded)

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """Replace values by int64 indices."""
        indices = {
            name: indices_of(
                df[name],
                self.vocabularies[name],
                self.hash_buckets.get(name, 0),
                PADDING if name in self.padded else NULL,
            )
            for name in col_selector.names
        }
        return pd.DataFrame(indices, index=df.index, copy=False)

    def _compute_properties(self, col_schema: ColumnSchema, input_schema: Schema) -> ColumnSchema:
        column = super()._compute_properties(col_schema, input_schema)
        name = col_schema.name
        first = FIRST_ITEM + self.hash_buckets.get(name, 0)
        cardinality, dimension = _emb_sz_rule(first + len(self.vocabularies[name]))
        properties = {
            "domain": {"min": 0, "max": cardinality - 1, "name": name},
            "embedding_sizes": {"cardinality": cardinality, "dimension": dimension},
        }
        return col_schema.with_properties({**column.properties, **properties})

    @property
    def output_tags(self) -> list[Tags]:
        """Categorical."""
        return [Tags.CATEGORICAL]

    @property
    def output_dtype(self) -> type:
        """int64 indices."""
        return np.int64


def indices_of(
    column: pd.Series, vocabulary: pa.Array, hash_buckets: int = 0, missing: int = NULL
) -> NDArray[Any]:
    """(N,) int64 indices of a column.

    `missing` for null; OUT_OF_VOCABULARY, or a hash bucket, for values outside `vocabulary`.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = pa.array(column.cat.categories, from_pandas=True)
        indices = np.append(value_indices(categories, vocabulary, hash_buckets, missing), missing)
        return indices[column.cat.codes.to_numpy()]  # code -1, the last entry, is null
    return value_indices(pa.array(column, from_pandas=True), vocabulary, hash_buckets, missing)


def value_indices(
    values: pa.Array, vocabulary: pa.Array, hash_buckets: int = 0, missing: int = NULL
) -> NDArray[Any]:
    """`indices_of` of an array."""
    if pa.types.is_null(values.type):
        return np.full(len(values), missing, np.int64)
    if values.type != vocabulary.type:
        values = values.cast(vocabulary.type)
    indices = positions(values, vocabulary)
    is_unknown = indices < 0
    indices += FIRST_ITEM + hash_buckets
    indices[is_unknown] = OUT_OF_VOCABULARY
    if values.null_count:
        indices[values.is_null().to_numpy(zero_copy_only=False)] = missing
    if hash_buckets:
        is_unknown &= indices == OUT_OF_VOCABULARY  # and not null
        indices[is_unknown] = buckets_of(values.filter(pa.array(is_unknown)), hash_buckets)
    return indices


def buckets_of(values: pa.Array, hash_buckets: int) -> NDArray[Any]:
    """(N,) hash bucket indices of values outside the vocabulary."""
    encoded = values.dictionary_encode()
    texts = encoded.dictionary.cast(pa.string()).to_pylist()
    buckets = np.array([bucket_of(text, hash_buckets) for text in texts], np.int64)
    return buckets[encoded.indices.to_numpy()]
