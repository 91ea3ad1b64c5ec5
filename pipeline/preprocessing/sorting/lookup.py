"""Where values stand among others, however many these are."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_LARGE = 4
"""Times as many known values as given ones, from which on the given ones are hashed."""


def places(given: pa.Array, known: pa.Array) -> np.ndarray:
    """(N,) int64 positions of `given` in `known`, -1 for what is missing or not there.

    `known` holds each value once and is never missing. Whichever is smaller is hashed: a table of
    twenty million categories for each half a million rows would take most of the time and memory.
    """
    if len(known) <= _LARGE * len(given):
        found = pc.index_in(given, value_set=known)
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)
    encoded = given.dictionary_encode()
    of_known = pc.index_in(known, value_set=encoded.dictionary)
    there = np.flatnonzero(of_known.is_valid().to_numpy(zero_copy_only=False))
    position = np.full(len(encoded.dictionary) + 1, -1)  # the last one is for what is missing
    position[of_known.drop_null().to_numpy()] = there
    return position[pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy()]


def places_of(column: pa.Array, known: pa.Array) -> np.ndarray:
    """`places` of a column of a log, whose texts may be a dictionary, or which may be all missing.

    They are read as what the `known` ones are.
    """
    if pa.types.is_dictionary(column.type):
        found = np.append(
            places_of(column.dictionary, known), -1
        )  # the last is for what is missing
        return found[pc.fill_null(column.indices, len(column.dictionary)).to_numpy()]
    return places(column.cast(known.type), known)
