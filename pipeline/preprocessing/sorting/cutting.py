"""What a session is, on arrays: cut where nothing happened, without repeats, the newest alone.

Interactions stand by session and time. Nothing here needs NVTabular.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.data.values import UNKNOWN_INTEGER
from pipeline.logs.row_counts import Report
from pipeline.recipe.durations import gap_microseconds
from pipeline.recipe.preprocess import Preprocess


def cuts(times: np.ndarray, starts: np.ndarray, gap: int) -> np.ndarray:
    """(N,) bool: where a session begins, of interactions by session and time."""
    begins = np.empty(len(times), bool)
    begins[:1] = True
    np.greater(np.diff(times), gap, out=begins[1:])
    begins[starts] = True
    return begins


def ordinals(begins: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(N,) number of the session of each interaction among those with the same id."""
    number = np.cumsum(begins) - 1
    lengths = np.diff(np.append(starts, len(begins)))
    return number - np.repeat(number[starts], lengths)


def numbered(ids: pa.Array, numbers: np.ndarray) -> pa.Array:
    """Ids with a number behind."""
    text = ids.cast(pa.string())
    return pc.binary_join_element_wise(text, pa.array(numbers).cast(pa.string()), "-")


def repeats(item: pa.Array, starts: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the item is that of the interaction before.

    A missing one never is, nor a text where integers were learned: all of these look alike.
    """
    same = np.zeros(len(item), bool)
    if len(item) > 1:
        codes = item if pa.types.is_dictionary(item.type) else item.dictionary_encode()
        index = pc.fill_null(codes.indices, -1).to_numpy()
        if pa.types.is_integer(codes.dictionary.type):
            unknown = pc.index(codes.dictionary, UNKNOWN_INTEGER).as_py()  # -1 where there is none
            index = np.where(index == unknown, -1, index)
        same[1:] = (index[1:] == index[:-1]) & (index[1:] >= 0)
    same[starts] = False
    return same


def reshaped(
    recipe: Preprocess, table: pa.Table, starts: np.ndarray, report: Report
) -> tuple[pa.Table, np.ndarray]:
    """Interactions by session and time, and where each session begins, as the recipe wants them."""
    if recipe.session_gap is not None:
        times = table[TIMESTAMP].to_numpy()
        begins = cuts(times, starts, gap_microseconds(recipe.session_gap))
        ids = numbered(table[SESSION].combine_chunks(), ordinals(begins, starts))
        starts = np.flatnonzero(begins)
        table = table.set_column(table.column_names.index(SESSION), SESSION, ids)
    if recipe.drop_repeats:
        drop = repeats(table[ITEM].combine_chunks(), starts)
        lengths = np.add.reduceat(~drop, starts) if len(starts) else starts
        table = table.filter(pa.array(~drop))
        starts = np.cumsum(np.append(0, lengths))[:-1]
        report.dropped["rows with the item of the one before"] += int(drop.sum())
    return table, starts


def without_oldest(sessions: pa.Table, keep: int) -> pa.Table:
    """Sessions as lists, with the newest `keep` interactions of each."""
    lists = [name for name in sessions.column_names if pa.types.is_list(sessions[name].type)]
    lengths = pc.list_value_length(sessions[lists[0]].combine_chunks()).to_numpy()
    if not (lengths > keep).any():
        return sessions
    ends = np.cumsum(lengths)
    left = np.repeat(ends, lengths) - np.arange(ends[-1])  # 1 is the newest
    kept = np.flatnonzero(left <= keep)
    offsets = pa.array(np.append(0, np.cumsum(np.minimum(lengths, keep))), pa.int32())
    for name in lists:
        column = sessions[name].combine_chunks()
        # far faster than Arrow's own filter
        values = pa.array(column.flatten().to_numpy()[kept])
        cut = pa.ListArray.from_arrays(offsets, values, column.type)
        sessions = sessions.set_column(sessions.column_names.index(name), name, cut)
    return sessions
