"""Repeated rows and overlong sessions, in a part that is sorted by session and time."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.data.values import UNKNOWN_INTEGER
from pipeline.logs.row_counts import Report
from pipeline.recipe.preprocess import Preprocess

_LARGEST = 2**62


def without_repeats(
    recipe: Preprocess, table: pa.Table, starts: np.ndarray, report: Report
) -> tuple[pa.Table, np.ndarray]:
    """Count rows that are equal to one before; leave them out where the recipe says so.

    `starts` (S,) is where each session begins, before and after.
    """
    repeated = _repeats(recipe, table, starts)
    if not len(repeated):
        return table, starts
    if recipe.duplicates == "keep":
        report.counted["duplicated rows, kept"] += len(repeated)
        return table, starts
    report.dropped["duplicated rows, dropped"] += len(repeated)
    kept = np.ones(table.num_rows, np.bool_)
    kept[repeated] = False
    # the first row of a session repeats none, so that none is lost
    return table.filter(pa.array(kept)), starts - np.searchsorted(repeated, starts)


def without_long(
    longest: int, table: pa.Table, starts: np.ndarray, report: Report
) -> tuple[pa.Table, np.ndarray]:
    """Leave out and count sessions of more than `longest` interactions."""
    lengths = np.diff(np.append(starts, table.num_rows))
    kept = lengths <= longest
    if kept.all():
        return table, starts
    report.counted[f"sessions longer than {longest}"] += int((~kept).sum())
    report.dropped[f"rows of sessions longer than {longest}"] += int(lengths[~kept].sum())
    lengths, rows = lengths[kept], np.repeat(kept, lengths)
    return table.filter(pa.array(rows)), np.cumsum(lengths) - lengths


def _repeats(recipe: Preprocess, table: pa.Table, starts: np.ndarray) -> np.ndarray:
    """Rows that are equal to one before, in order.

    They stand among rows of one session and time, of which most logs have few; equal ones need
    not be neighbours there.
    """
    times = table[TIMESTAMP].to_numpy()
    same = np.zeros(len(times) + 1, np.bool_)  # as the row before
    np.equal(times[1:], times[:-1], out=same[1:-1])
    same[starts] = False
    rows = np.flatnonzero(same[:-1] | same[1:])
    if not len(rows):
        return rows
    key = np.cumsum(~same[rows])
    unlike = np.zeros(len(rows), np.bool_)  # texts where integers were learned look alike
    names = [ITEM, *(feature.name for feature in recipe.scalar_features)]
    names += [feature.target_column for feature in recipe.features if feature.mean_of]
    for name in names:
        column = table[name].combine_chunks().take(pa.array(rows))
        if pa.types.is_integer(column.type):
            unknown = pc.fill_null(pc.equal(column, UNKNOWN_INTEGER), False)
            unlike |= unknown.to_numpy(zero_copy_only=False)
        codes, count = _codes(column)
        if int(key.max()) >= _LARGEST // count:
            key, _ = _codes(pa.array(key))
        key = key * count + codes
    codes, _ = _codes(pa.array(key))
    # codes are given in the order in which values first occur
    highest = np.maximum.accumulate(codes)
    return rows[1:][(codes[1:] <= highest[:-1]) & ~unlike[1:]]


def _codes(column: pa.Array) -> tuple[np.ndarray, int]:
    """(N,) integers, equal where values are, missing ones too; and a number above all."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    indices = encoded.indices.fill_null(len(encoded.dictionary))
    return indices.to_numpy().astype(np.int64), len(encoded.dictionary) + 1
