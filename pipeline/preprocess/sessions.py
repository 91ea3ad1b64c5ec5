"""What a session is, where the log leaves it open: cut where nothing happened, without repeats.

The operators stand before NVTabular's others. Interactions of one user or session must be in one
partition.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema
from nvtabular.ops import Operator

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.logreport import Report
from pipeline.core.recipe import Preprocess
from pipeline.core.spans import gap_microseconds
from pipeline.preprocess.operators import session_order


class CutSessions(Operator):
    """A new session after more than `gap` microseconds without an interaction.

    The id of a session becomes text: the one it had, a hyphen, and its number from 0 on.
    """

    def __init__(self, session: str, timestamp: str, gap: int) -> None:
        super().__init__()
        self.session = session
        self.timestamp = timestamp
        self.gap = gap

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """The same rows in their order, with new ids of the session."""
        whole = df[[self.session, self.timestamp]]
        frame = whole if isinstance(df, pd.DataFrame) else whole.to_pandas()
        order, starts = session_order(frame[self.session], frame[self.timestamp])
        numbers = np.empty(len(frame), np.int64)
        cut = cuts(frame[self.timestamp].to_numpy()[order], starts, self.gap)
        numbers[order] = ordinals(cut, starts)
        ids = numbered(pa.array(frame[self.session], from_pandas=True), numbers).to_pandas()
        result = df[col_selector.names].copy(deep=False)
        result[self.session] = ids.to_numpy()
        return result

    def compute_output_schema(
        self,
        input_schema: Schema,
        col_selector: ColumnSelector,
        prev_output_schema: Schema | None = None,
    ) -> Schema:
        """Same columns; the session is text."""
        schema = super().compute_output_schema(input_schema, col_selector, prev_output_schema)
        return Schema(
            [
                ColumnSchema(c.name, tags=c.tags, properties=c.properties, dtype="string")
                if c.name == self.session
                else c
                for c in schema
            ]
        )


class DropRepeats(Operator):
    """Without interactions whose item is that of the one before, in time, in the same session."""

    def __init__(self, session: str, timestamp: str, item: str) -> None:
        super().__init__()
        self.session = session
        self.timestamp = timestamp
        self.item = item

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """The rows that stay, in their order."""
        whole = df[[self.session, self.timestamp, self.item]]
        frame = whole if isinstance(df, pd.DataFrame) else whole.to_pandas()
        order, starts = session_order(frame[self.session], frame[self.timestamp])
        item = pa.array(frame[self.item], from_pandas=True).take(pa.array(order))
        kept = np.empty(len(frame), bool)
        kept[order] = ~repeats(item, starts)
        return df[col_selector.names][kept]


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
    """(N,) bool: whether the item is that of the interaction before; a missing one never is."""
    same = np.zeros(len(item), bool)
    if len(item) > 1:
        codes = item if pa.types.is_dictionary(item.type) else item.dictionary_encode()
        index = pc.fill_null(codes.indices, -1).to_numpy()
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
