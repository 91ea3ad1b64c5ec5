"""What a run makes of the indices of a data directory.

Both may come from one preprocessing, or the data from one that went on from the run's with
`pipeline preprocess --from`: known values keep their indices there and new ones follow. To the run
a new value is what it would be in a request, unknown or one of its hash buckets.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.core.columns import OUT_OF_VOCABULARY, bucket_of
from pipeline.core.errors import ArtifactError
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted, TargetEncoding, Vocabulary

Rows = Mapping[str, np.ndarray]
"""By column, (V,) for each index of the data that of the run; a column that both read alike is not
among them."""


TRAINED_ON = "trained_on"
"""Fact of a run: the `training_fingerprint` of its data."""


def rows_for(run: Path, learned: Fitted, data: Data) -> dict[str, np.ndarray]:
    """How `run`, whose fitted state is `learned`, reads the columns of `data`.

    ArtifactError unless the values that the run knows have the same indices in the data, numbers
    the same scale, and training sessions all that the run reads of them.
    """
    found = data.fitted
    same_items = _goes_on(learned.item, found.item)
    same = (
        same_items
        and learned.recipe.feature_meanings == found.recipe.feature_meanings
        and learned.recipe.time_feature_names == found.recipe.time_feature_names
        and learned.standardizations == found.standardizations
        and learned.vocabularies.keys() == found.vocabularies.keys()
        and all(_goes_on(v, found.vocabularies[n]) for n, v in learned.vocabularies.items())
        and all(
            _equal(encoding, found.target_encodings[name])
            for name, encoding in learned.target_encodings.items()
        )
    )
    if not same:
        what = "other features" if same_items else "another catalogue"
        raise ArtifactError(
            f"{run} was trained on {what} than those of {data.path}. Use the data directory that "
            "it was trained on or one that `pipeline preprocess --from` made of it, or train again."
        )
    longest = learned.recipe.max_sequence_length
    if found.recipe.max_sequence_length < longest:
        raise ArtifactError(
            f"{data.path} keeps the newest {found.recipe.max_sequence_length} interactions before "
            f"the target, {run} reads {longest}. Preprocess with `max_sequence_length: {longest}`."
        )
    known = learned.of_columns
    return {
        name: _rows(known[name], vocabulary)
        for name, vocabulary in found.of_columns.items()
        if len(vocabulary.values) > len(known[name].values)
    }


def _goes_on(learned: Vocabulary, found: Vocabulary) -> bool:
    """Whether all that was learned has the same index in `found`."""
    begin = found.values[: len(learned.values)]
    return learned.hash_buckets == found.hash_buckets and learned.values.equals(begin)


def _equal(one: TargetEncoding, other: TargetEncoding) -> bool:
    return (
        one.values.equals(other.values)
        and np.array_equal(one.counts, other.counts)
        and np.array_equal(one.sums, other.sums)
    )


def _rows(learned: Vocabulary, found: Vocabulary) -> np.ndarray:
    """(V,) of `found`, which goes on from `learned`."""
    rows = np.arange(found.num_rows)
    rows[learned.num_rows :] = unknown_rows(found, first=len(learned.values))[learned.num_rows :]
    return rows


def unknown_rows(vocabulary: Vocabulary, *, first: int = 0) -> np.ndarray:
    """(V,) the index that a value has while it is unknown, from the `first` value on.

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
