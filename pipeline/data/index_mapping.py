"""Mapping of the indices of a data directory to those of a run.

The data are those of the run's training, or `pipeline preprocess --from` extended them: old values
keep their indices and new values follow. The run reads a new value as in a request: out of
vocabulary or as a hash bucket.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.columns import OUT_OF_VOCABULARY, bucket_of
from pipeline.core.errors import ArtifactError
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted, TargetEncoding, Vocabulary

TRAINED_ON = "trained_on"
"""Fact of a run: the `training_fingerprint` of its data."""


def rows_for(run: Path, run_fitted: Fitted, data: Data) -> dict[str, NDArray[Any]]:
    """(V,) run indices for the indices of `data`, by column; unchanged columns are left out.

    ArtifactError unless the values of the run have the same indices in `data`, numbers have the
    same scale, and training sessions are long enough for the run.
    """
    fitted = data.fitted
    same_items = _extends(fitted.item, run_fitted.item)
    if not (same_items and _same_features(fitted, run_fitted)):
        what = "other features" if same_items else "another catalogue"
        raise ArtifactError(
            f"{run} was trained on {what} than those of {data.path}. Use the data directory that "
            "it was trained on or one that `pipeline preprocess --from` made of it, or train again."
        )
    longest = run_fitted.recipe.max_sequence_length
    if fitted.recipe.max_sequence_length < longest:
        raise ArtifactError(
            f"{data.path} keeps the newest {fitted.recipe.max_sequence_length} interactions before "
            f"the target, {run} reads {longest}. Preprocess with `max_sequence_length: {longest}`."
        )
    vocabularies = run_fitted.of_columns
    return {
        name: _rows(vocabulary, vocabularies[name])
        for name, vocabulary in fitted.of_columns.items()
        if len(vocabulary.values) > len(vocabularies[name].values)
    }


def _same_features(fitted: Fitted, run_fitted: Fitted) -> bool:
    return (
        run_fitted.recipe.feature_meanings == fitted.recipe.feature_meanings
        and run_fitted.recipe.time_feature_names == fitted.recipe.time_feature_names
        and run_fitted.standardizations == fitted.standardizations
        and run_fitted.vocabularies.keys() == fitted.vocabularies.keys()
        and all(_extends(fitted.vocabularies[n], v) for n, v in run_fitted.vocabularies.items())
        and all(
            _equal(encoding, fitted.target_encodings[name])
            for name, encoding in run_fitted.target_encodings.items()
        )
    )


def _extends(vocabulary: Vocabulary, earlier: Vocabulary) -> bool:
    """Whether all values of `earlier` have the same index in `vocabulary`."""
    begin = vocabulary.values[: len(earlier.values)]
    return earlier.hash_buckets == vocabulary.hash_buckets and earlier.values.equals(begin)


def _equal(one: TargetEncoding, other: TargetEncoding) -> bool:
    return (
        one.values.equals(other.values)
        and np.array_equal(one.counts, other.counts)
        and np.array_equal(one.sums, other.sums)
    )


def _rows(vocabulary: Vocabulary, earlier: Vocabulary) -> NDArray[Any]:
    """(V,) indices in `earlier` for those of `vocabulary`, which extends it."""
    rows = np.arange(vocabulary.num_rows)
    unknown = unknown_rows(vocabulary, first=len(earlier.values))
    rows[earlier.num_rows :] = unknown[earlier.num_rows :]
    return rows


def unknown_rows(vocabulary: Vocabulary, *, first: int = 0) -> NDArray[Any]:
    """(V,) index of each value, from the `first` one on, as if it were out of vocabulary.

    Reserved indices and hash buckets keep their own.
    """
    rows = np.arange(vocabulary.num_rows)
    rows[vocabulary.first :] = OUT_OF_VOCABULARY
    if vocabulary.hash_buckets:
        texts = vocabulary.values[first:].cast(pa.string()).to_pylist()
        rows[vocabulary.first + first :] = [
            bucket_of(text, vocabulary.hash_buckets) for text in texts
        ]
    return rows
