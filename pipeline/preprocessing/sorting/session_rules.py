"""Rules of the recipe that redefine sessions: gaps, repeats, duplicates, overlong sessions.

Functions take interactions sorted by session and time and `starts`, the (S,) row at which each
session begins. None needs NVTabular.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.data.values import UNKNOWN_INTEGER, decode_dictionary
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.blocks import to_frame
from pipeline.recipe.durations import duration_microseconds
from pipeline.recipe.preprocess import Preprocess


def apply_session_rules(
    recipe: Preprocess, table: pa.Table, starts: NDArray[Any], report: RowCounts
) -> tuple[pa.Table, NDArray[Any]]:
    """Apply all rules of the recipe; returns the remaining rows and their `starts`.

    Dropped rows and sessions are counted in `report`.
    """
    if recipe.timestamp is not None:
        duplicates = _duplicate_rows(recipe, table, starts)
        if recipe.duplicates == "keep":
            report.warnings["duplicated rows, kept"] += len(duplicates)
        else:
            report.dropped["duplicated rows, dropped"] += len(duplicates)
            kept = np.ones(table.num_rows, np.bool_)
            kept[duplicates] = False
            table, starts = _filter(table, starts, kept)
    if recipe.session_gap is not None:
        table, starts = _cut_at_gaps(table, starts, duration_microseconds(recipe.session_gap))
    if recipe.drop_repeats:
        repeated = _is_repeat(table[ITEM].combine_chunks(), starts)
        report.dropped["rows with the item of the one before"] += int(repeated.sum())
        table, starts = _filter(table, starts, ~repeated)
    if (longest := recipe.longest_session) is not None:
        lengths = np.diff(np.append(starts, table.num_rows))
        overlong = lengths > longest
        report.warnings[f"sessions longer than {longest}"] += int(overlong.sum())
        report.dropped[f"rows of sessions longer than {longest}"] += int(lengths[overlong].sum())
        table, starts = _filter(table, starts, np.repeat(~overlong, lengths))
    return table, starts


def _filter(
    table: pa.Table, starts: NDArray[Any], kept: NDArray[Any]
) -> tuple[pa.Table, NDArray[Any]]:
    """Rows of the (N,) mask `kept`, and the `starts` of the sessions that have some."""
    if kept.all():
        return table, starts
    lengths = np.add.reduceat(kept, starts, dtype=np.int64)
    lengths = lengths[lengths > 0]
    return table.filter(pa.array(kept)), np.cumsum(lengths) - lengths


def _cut_at_gaps(table: pa.Table, starts: NDArray[Any], gap: int) -> tuple[pa.Table, NDArray[Any]]:
    """Begin a new session after more than `gap` microseconds without an interaction.

    Session ids become text: the id, a hyphen, and the number of the session from 0 on.
    """
    times = table[TIMESTAMP].to_numpy()
    is_start = np.diff(times, prepend=times[:1]) > gap
    is_start[starts] = True
    number = np.cumsum(is_start) - 1
    lengths = np.diff(np.append(starts, len(times)))
    number -= np.repeat(number[starts], lengths)  # number within the id
    ids = pc.binary_join_element_wise(
        table[SESSION].combine_chunks().cast(pa.string()), pa.array(number).cast(pa.string()), "-"
    )
    table = table.set_column(table.column_names.index(SESSION), SESSION, ids)
    return table, np.flatnonzero(is_start)


def _is_repeat(items: pa.Array, starts: NDArray[Any]) -> NDArray[Any]:
    """(N,) bool: whether the item equals that of the row before in the same session.

    False for null, and for text read as integer, which is the same placeholder for all text.
    """
    items = decode_dictionary(items)
    same = np.zeros(len(items), bool)
    same[1:] = _is_true(pc.equal(items[1:], items[:-1]))
    if pa.types.is_integer(items.type):
        same &= ~_is_true(pc.equal(items, UNKNOWN_INTEGER))
    same[starts] = False
    return same


def _is_true(mask: pa.Array) -> NDArray[Any]:
    """(N,) bool, False for null."""
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def _duplicate_rows(recipe: Preprocess, table: pa.Table, starts: NDArray[Any]) -> NDArray[Any]:
    """Ascending row numbers of rows that equal an earlier row in all columns.

    Duplicates are among the rows that share session and time with a neighbour, of which most logs
    have few. Duplicates need not be neighbours themselves.
    """
    times = table[TIMESTAMP].to_numpy()
    tied = np.zeros(len(times) + 1, np.bool_)  # with the row before
    np.equal(times[1:], times[:-1], out=tied[1:-1])
    tied[starts] = False
    rows = np.flatnonzero(tied[:-1] | tied[1:])
    names = [ITEM, *(feature.name for feature in recipe.scalar_features)]
    names += [feature.target_column for feature in recipe.target_encoded_features]
    frame = to_frame(table.select(names).take(pa.array(rows)))
    # the placeholder of text read as integer: never a duplicate
    is_placeholder = (frame == UNKNOWN_INTEGER).any(axis=1)
    group = np.cumsum(~tied[rows])
    return rows[(frame.assign(**{SESSION: group}).duplicated() & ~is_placeholder).to_numpy()]


def keep_newest(sessions: pa.Table, keep: int) -> pa.Table:
    """Encoded sessions with the newest `keep` interactions of each in the list columns."""
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
