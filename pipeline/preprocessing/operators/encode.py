"""Values of categorical columns to indices, as an NVTabular operator."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import delayed
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema, Tags
from nvtabular.ops.categorify import _emb_sz_rule
from nvtabular.ops.stat_operator import StatOperator

from pipeline.core.columns import FIRST_ITEM, NULL, OUT_OF_VOCABULARY, PADDING
from pipeline.core.hashing import bucket_of
from pipeline.preprocessing.sorting.lookup import places
from pipeline.preprocessing.statistics import counts_of, merge_counts, vocabulary_of


class Encode(StatOperator):
    """NVTabular's Categorify on arrays: each value is looked up once, in Arrow's hash tables.

    Unlike the original it takes a column that is missing throughout, in training or in a
    partition, and of equally frequent values the smaller one comes first: the original leaves
    their order to an unstable sort. Indices are the original's: NULL, OUT_OF_VOCABULARY, then the
    values from FIRST_ITEM on, behind hash buckets where a column has some.
    """

    def __init__(
        self,
        thresholds: dict[str, int] | None = None,
        vocabularies: dict[str, pa.Array] | None = None,
        hash_buckets: dict[str, int] | None = None,
        further: Collection[str] = (),
    ) -> None:
        """Of columns by name.

        Args:
            thresholds: how often a value is seen, at least, to get an index of its own; 1 if not
                given
            vocabularies: values in the order of their indices; then there is nothing to fit
            hash_buckets: how many indices values without one of their own share, in place of one
            further: columns of the second and later ones of several values, where missing is
                PADDING
        """
        super().__init__()
        self.thresholds = thresholds or {}
        self.vocabularies = dict(vocabularies or {})
        self.hash_buckets = hash_buckets or {}
        self.further = frozenset(further)
        self.fitted = vocabularies is not None

    def fit(self, col_selector: ColumnSelector, ddf: Any) -> Any:
        """Counts of each column's values, still to be computed."""
        parts = [delayed(counts_of)(part, col_selector.names) for part in ddf.to_delayed()]
        return delayed(merge_counts)(parts)

    def fit_finalize(self, dask_stats: dict[str, pa.Table]) -> None:
        """Order the values by how often they were seen."""
        for name, counts in dask_stats.items():
            self.vocabularies[name] = vocabulary_of(counts, self.thresholds.get(name, 1))

    def clear(self) -> None:
        """Forget what was learned."""
        self.vocabularies = {}

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """Replace values by their indices; NULL and OUT_OF_VOCABULARY are two of them."""
        on_arrays = isinstance(df, pd.DataFrame)
        look_up = indices_of if on_arrays else _looked_up
        found = {
            name: look_up(
                df[name],
                self.vocabularies[name],
                self.hash_buckets.get(name, 0),
                PADDING if name in self.further else NULL,
            )
            for name in col_selector.names
        }
        return pd.DataFrame(found, index=df.index, copy=False) if on_arrays else type(df)(found)

    def _compute_properties(self, col_schema: ColumnSchema, input_schema: Schema) -> ColumnSchema:
        found = super()._compute_properties(col_schema, input_schema)
        vocabulary = self.vocabularies.get(col_schema.name)
        if vocabulary is None:
            return found
        first = FIRST_ITEM + self.hash_buckets.get(col_schema.name, 0)
        cardinality, dimension = _emb_sz_rule(first + len(vocabulary))
        added = {
            "domain": {"min": 0, "max": cardinality - 1, "name": col_schema.name},
            "embedding_sizes": {"cardinality": cardinality, "dimension": dimension},
        }
        return col_schema.with_properties({**found.properties, **added})

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
) -> np.ndarray:
    """(N,) int64: `missing` for what is; OUT_OF_VOCABULARY, or one of the hash buckets behind it,
    for what `vocabulary` lacks."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        known = pa.array(column.cat.categories, from_pandas=True)
        of_category = np.append(_positions(known, vocabulary, hash_buckets, missing), missing)
        return of_category[column.cat.codes.to_numpy()]  # -1 is missing
    return _positions(pa.array(column, from_pandas=True), vocabulary, hash_buckets, missing)


def _positions(
    given: pa.Array, vocabulary: pa.Array, hash_buckets: int, missing: int
) -> np.ndarray:
    if pa.types.is_null(given.type):
        return np.full(len(given), missing, np.int64)
    if given.type != vocabulary.type:
        given = given.cast(vocabulary.type)
    indices = places(given, vocabulary)
    unknown = indices < 0
    indices += FIRST_ITEM + hash_buckets
    indices[unknown] = OUT_OF_VOCABULARY
    if given.null_count:
        indices[given.is_null().to_numpy(zero_copy_only=False)] = missing
    if hash_buckets:
        unknown &= indices == OUT_OF_VOCABULARY  # and not missing
        indices[unknown] = buckets_of(given.filter(pa.array(unknown)), hash_buckets)
    return indices


def buckets_of(given: pa.Array, hash_buckets: int) -> np.ndarray:
    """(N,) indices of values that have none of their own."""
    encoded = given.dictionary_encode()
    texts = encoded.dictionary.cast(pa.string()).to_pylist()
    found = np.array([bucket_of(text, hash_buckets) for text in texts], np.int64)
    return found[encoded.indices.to_numpy()]


def _looked_up(column: Any, vocabulary: pa.Array, hash_buckets: int, missing: int) -> Any:
    """The same on cuDF, whose names are those of pandas."""
    frame = type(column.to_frame())
    first = FIRST_ITEM + hash_buckets
    table = frame({"value": vocabulary.to_pandas(), "index": np.arange(len(vocabulary))})
    rows = frame({"value": column.reset_index(drop=True)})
    rows["row"] = rows.index
    joined = rows.merge(table, on="value", how="left").sort_values("row")
    indices = joined["index"].fillna(OUT_OF_VOCABULARY - first).astype("int64") + first
    indices.index = column.index
    indices = indices.mask(column.isna(), missing)
    if hash_buckets:
        unknown = indices == OUT_OF_VOCABULARY
        given = column[unknown]
        given = given.to_pandas() if hasattr(given, "to_pandas") else given
        values = pa.array(given, from_pandas=True).cast(vocabulary.type)
        indices[unknown] = buckets_of(values, hash_buckets)
    return indices
