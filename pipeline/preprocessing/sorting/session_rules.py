"""Session rules of the recipe: gaps, repeats, duplicates, overlong sessions.

All functions take interactions sorted by session and time and `starts`, the (S,) row at which each
session begins.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.data.values import UNKNOWN_INTEGER
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.durations import duration_microseconds
from pipeline.recipe.preprocess import Preprocess

_KEY_LIMIT = 2**62
"""Combined row keys stay below this, so that they do not overflow int64."""


def apply_session_rules(
    recipe: Preprocess, table: pa.Table, starts: NDArray[Any], report: RowCounts
) -> tuple[pa.Table, NDArray[Any]]:
    """Apply all rules of the recipe; returns the remaining rows and their `starts`.

    Dropped rows and sessions are counted in `report`.
    """
    if recipe.timestamp is not None:
        table, starts = drop_duplicates(recipe, table, starts, report)
    if recipe.session_gap is not None:
        table, starts = cut_at_gaps(table, starts, duration_microseconds(recipe.session_gap))
    if recipe.drop_repeats:
        table, starts = drop_repeats(table, starts, report)
    if recipe.longest_session is not None:
        table, starts = drop_overlong(recipe.longest_session, table, starts, report)
    return table, starts


def cut_at_gaps(table: pa.Table, starts: NDArray[Any], gap: int) -> tuple[pa.Table, NDArray[Any]]:
    """Begin a new session after more than `gap` microseconds without an interaction.

    Session ids become text: the id, a hyphen, and the number of the session from 0 on.
    """
    times = table[TIMESTAMP].to_numpy()
    is_start = np.empty(len(times), bool)
    is_start[:1] = True
    np.greater(np.diff(times), gap, out=is_start[1:])
    is_start[starts] = True
    number = np.cumsum(is_start) - 1
    lengths = np.diff(np.append(starts, len(times)))
    number -= np.repeat(number[starts], lengths)  # number within the id
    ids = pc.binary_join_element_wise(
        table[SESSION].combine_chunks().cast(pa.string()), pa.array(number).cast(pa.string()), "-"
    )
    table = table.set_column(table.column_names.index(SESSION), SESSION, ids)
    return table, np.flatnonzero(is_start)


def drop_repeats(
    table: pa.Table, starts: NDArray[Any], report: RowCounts
) -> tuple[pa.Table, NDArray[Any]]:
    """Drop interactions with the item of the previous interaction."""
    repeated = _is_repeat(table[ITEM].combine_chunks(), starts)
    lengths = np.add.reduceat(~repeated, starts) if len(starts) else starts
    report.dropped["rows with the item of the one before"] += int(repeated.sum())
    return table.filter(pa.array(~repeated)), np.cumsum(np.append(0, lengths))[:-1]


def _is_repeat(items: pa.Array, starts: NDArray[Any]) -> NDArray[Any]:
    """(N,) bool: whether the item equals that of the previous row of the session.

    False for null and for the placeholder, which stands for any text in an integer column.
    """
    same = np.zeros(len(items), bool)
    if len(items) > 1:
        encoded = items if pa.types.is_dictionary(items.type) else items.dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy()
        if pa.types.is_integer(encoded.dictionary.type):
            placeholder = pc.index(encoded.dictionary, UNKNOWN_INTEGER).as_py()  # -1 if absent
            codes = np.where(codes == placeholder, -1, codes)
        same[1:] = (codes[1:] == codes[:-1]) & (codes[1:] >= 0)
    same[starts] = False
    return same


def drop_duplicates(
    recipe: Preprocess, table: pa.Table, starts: NDArray[Any], report: RowCounts
) -> tuple[pa.Table, NDArray[Any]]:
    """Count rows that equal an earlier row; drop them if the recipe says `duplicates: drop`."""
    duplicates = duplicate_rows(recipe, table, starts)
    if not len(duplicates):
        return table, starts
    if recipe.duplicates == "keep":
        report.warnings["duplicated rows, kept"] += len(duplicates)
        return table, starts
    report.dropped["duplicated rows, dropped"] += len(duplicates)
    kept = np.ones(table.num_rows, np.bool_)
    kept[duplicates] = False
    # the first row of a session has no earlier row to equal, so that no session is lost
    return table.filter(pa.array(kept)), starts - np.searchsorted(duplicates, starts)


def duplicate_rows(recipe: Preprocess, table: pa.Table, starts: NDArray[Any]) -> NDArray[Any]:
    """Ascending numbers of the rows that equal an earlier row in all columns.

    Duplicates are among the rows that share session and time with a neighbour, of which most logs
    have few. Duplicates need not be neighbours themselves.
    """
    times = table[TIMESTAMP].to_numpy()
    tied = np.zeros(len(times) + 1, np.bool_)  # whether a row ties with the previous one
    np.equal(times[1:], times[:-1], out=tied[1:-1])
    tied[starts] = False
    rows = np.flatnonzero(tied[:-1] | tied[1:])
    if not len(rows):
        return rows
    key = np.cumsum(~tied[rows])
    is_placeholder = np.zeros(len(rows), np.bool_)  # never a duplicate
    names = [ITEM, *(feature.name for feature in recipe.read_scalar_features)]
    names += [feature.target_column for feature in recipe.target_encoded_features]
    for name in names:
        column = table[name].combine_chunks().take(pa.array(rows))
        if pa.types.is_integer(column.type):
            unknown = pc.fill_null(pc.equal(column, UNKNOWN_INTEGER), False)
            is_placeholder |= unknown.to_numpy(zero_copy_only=False)
        codes, num_codes = _codes(column)
        if int(key.max()) >= _KEY_LIMIT // num_codes:
            key, _ = _codes(pa.array(key))
        key = key * num_codes + codes
    codes, _ = _codes(pa.array(key))
    # codes are numbered by first occurrence: a code that is not a new maximum occurred before
    highest = np.maximum.accumulate(codes)
    return rows[1:][(codes[1:] <= highest[:-1]) & ~is_placeholder[1:]]


def _codes(column: pa.Array) -> tuple[NDArray[Any], int]:
    """(N,) integers, equal where values are equal, null included; and an upper bound of them."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    indices = encoded.indices.fill_null(len(encoded.dictionary))
    return indices.to_numpy().astype(np.int64), len(encoded.dictionary) + 1


def drop_overlong(
    longest: int, table: pa.Table, starts: NDArray[Any], report: RowCounts
) -> tuple[pa.Table, NDArray[Any]]:
    """Drop sessions of more than `longest` interactions."""
    lengths = np.diff(np.append(starts, table.num_rows))
    kept = lengths <= longest
    if kept.all():
        return table, starts
    report.warnings[f"sessions longer than {longest}"] += int((~kept).sum())
    report.dropped[f"rows of sessions longer than {longest}"] += int(lengths[~kept].sum())
    lengths, rows = lengths[kept], np.repeat(kept, lengths)
    return table.filter(pa.array(rows)), np.cumsum(lengths) - lengths


def keep_newest(sessions: pa.Table, keep: int) -> pa.Table:
    """Cut the list columns of encoded sessions to the newest `keep` interactions."""
    lists = [name for name in sessions.column_names if pa.types.is_list(sessions[name].type)]
    lengths = pc.list_value_length(sessions[lists[0]].combine_chunks()).to_numpy()
    if not (lengths > keep).any():
        return sessions
    ends = np.cumsum(lengths)
    from_end = np.repeat(ends, lengths) - np.arange(ends[-1])  # 1 is the newest
    kept = np.flatnonzero(from_end <= keep)
    offsets = pa.array(np.append(0, np.cumsum(np.minimum(lengths, keep))), pa.int32())
    for name in lists:
        column = sessions[name].combine_chunks()
        # NumPy's indexing is far faster than Arrow's filter
        values = pa.array(column.flatten().to_numpy()[kept])
        newest = pa.ListArray.from_arrays(offsets, values, column.type)
        sessions = sessions.set_column(sessions.column_names.index(name), name, newest)
    return sessions
