"""Positions of values in a vocabulary of any size."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_LARGE = 4
"""Minimum ratio of vocabulary size to number of values at which the values are hashed."""


def positions(values: pa.Array, vocabulary: pa.Array) -> NDArray[Any]:
    """(N,) int64 positions of `values` in `vocabulary`, -1 for null and for unknown values.

    `vocabulary` has unique values without null. The smaller side is hashed: building a hash table
    of twenty million categories for each half a million rows would take most of the time and
    memory. The result is writable.
    """
    if len(vocabulary) <= _LARGE * len(values):
        indices = pc.index_in(values, value_set=vocabulary)
        return pc.fill_null(indices, -1).to_numpy().astype(np.int64)
    encoded = values.dictionary_encode()
    codes = pc.index_in(vocabulary, value_set=encoded.dictionary)
    # one entry more than there are codes, for null
    position_of_code = np.full(len(encoded.dictionary) + 1, -1)
    hits = codes.is_valid().to_numpy(zero_copy_only=False)
    position_of_code[codes.drop_null().to_numpy()] = np.flatnonzero(hits)
    return position_of_code[pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy()]


def column_positions(column: pa.Array, vocabulary: pa.Array) -> NDArray[Any]:
    """`positions` of a column of the log, cast to the type of `vocabulary`.

    The column may be dictionary-encoded or of Arrow's null type.
    """
    if pa.types.is_dictionary(column.type):
        # one entry more than the dictionary has, for null
        position_of_code = np.append(column_positions(column.dictionary, vocabulary), -1)
        return position_of_code[pc.fill_null(column.indices, len(column.dictionary)).to_numpy()]
    return positions(column.cast(vocabulary.type), vocabulary)
